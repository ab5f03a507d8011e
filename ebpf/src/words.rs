//! Loads and stores of whole words at any address of a packet.
//!
//! What lies in a packet is aligned to nothing, so the compiler would read and write it byte by byte:
//! it holds BPF for a machine that traps. The kernel refuses an unaligned access to a packet only
//! where the machine itself does (`check_pkt_ptr_alignment`), which neither x86-64 nor arm64 do.

#[cfg(target_arch = "bpf")]
use core::{arch::asm, mem::MaybeUninit};

use bytemuck::Pod;

/// A value where the compiler can use words too.
#[cfg(target_arch = "bpf")]
#[repr(C, align(8))]
struct Aligned<T>(T);

/// Reads a `T` at `start`.
///
/// # Safety
/// The `size_of::<T>()` bytes from `start` are inside of the packet.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn load<T: Pod>(start: *const u8) -> T {
    let mut value = MaybeUninit::<Aligned<T>>::uninit();
    let to = value.as_mut_ptr().cast::<u8>();
    let mut done = 0;
    macro_rules! load {
        ($word:ty, $instruction:literal) => {
            while done + size_of::<$word>() <= size_of::<T>() {
                let word: u64;
                // SAFETY: reads a word of the bytes that the caller vouches for.
                unsafe {
                    asm!(
                        $instruction,
                        word = out(reg) word,
                        from = in(reg) start.add(done),
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                // SAFETY: `done` is a multiple of the word's size, the value is aligned to the
                // largest word, and this word ends inside of it.
                unsafe { to.add(done).cast::<$word>().write(word as $word) };
                done += size_of::<$word>();
            }
        };
    }
    load!(u64, "{word} = *(u64 *)({from} + 0)");
    load!(u32, "{word} = *(u32 *)({from} + 0)");
    load!(u16, "{word} = *(u16 *)({from} + 0)");
    load!(u8, "{word} = *(u8 *)({from} + 0)");
    // SAFETY: the words above are all bytes of it, and any bytes make a `T: Pod`.
    unsafe { value.assume_init() }.0
}

/// Writes `value` to `start`.
///
/// # Safety
/// The `size_of::<T>()` bytes from `start` are inside of the packet, and may be written.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn store<T: Pod>(start: *mut u8, value: T) {
    let value = Aligned(value);
    let from = (&raw const value).cast::<u8>();
    let mut done = 0;
    macro_rules! store {
        ($word:ty, $instruction:literal) => {
            while done + size_of::<$word>() <= size_of::<T>() {
                // SAFETY: `done` is a multiple of the word's size, the value is aligned to the
                // largest word, and this word ends inside of it.
                let word = u64::from(unsafe { from.add(done).cast::<$word>().read() });
                // SAFETY: writes a word of the bytes that the caller vouches for.
                unsafe {
                    asm!(
                        $instruction,
                        word = in(reg) word,
                        to = in(reg) start.add(done),
                        options(nostack, preserves_flags),
                    );
                }
                done += size_of::<$word>();
            }
        };
    }
    store!(u64, "*(u64 *)({to} + 0) = {word}");
    store!(u32, "*(u32 *)({to} + 0) = {word}");
    store!(u16, "*(u16 *)({to} + 0) = {word}");
    store!(u8, "*(u8 *)({to} + 0) = {word}");
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn load<T: Pod>(start: *const u8) -> T {
    // SAFETY: the caller vouches for the bytes, and any bytes make a `T: Pod`.
    unsafe { start.cast::<T>().read_unaligned() }
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn store<T: Pod>(start: *mut u8, value: T) {
    // SAFETY: the caller vouches for the bytes.
    unsafe { start.cast::<T>().write_unaligned(value) }
}
