//! The commands of bpf(2) that aya keeps to itself, each one system call.
#![expect(unsafe_code, reason = "bpf(2) takes addresses as numbers")]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};

/// A TC program as the verifier gets it, with what relates its instructions to BTF.
pub(crate) struct TcProgram<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) license: &'a CStr,
    pub(crate) instructions: &'a [bpf_insn],
    pub(crate) btf: BorrowedFd<'a>,
    pub(crate) functions: Records<'a>,
    pub(crate) lines: Records<'a>,
}

/// Records of one size, one after the other.
pub(crate) struct Records<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) record_bytes: usize,
}

/// Gives the kernel types and names. What it finds wrong with them goes to `log`.
pub(crate) fn load_btf(btf: &[u8], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    // SAFETY: `no_attr` has written every byte of the union, and each member is made of integers.
    let request = unsafe { &mut attr.__bindgen_anon_7 };
    request.btf = address(btf);
    request.btf_size = length(btf);
    if !log.is_empty() {
        request.btf_log_level = LOG_LEVEL;
        request.btf_log_size = length(log);
        request.btf_log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: BTF and log are borrowed for the call, with their own lengths; the answer is a new
    // descriptor.
    unsafe { new_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr) }
}

/// Hands a program to the verifier. What that finds goes to `log`, and is not asked for without.
pub(crate) fn load_program(program: &TcProgram<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.__bindgen_anon_3 };
    request.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    request.insns = address(program.instructions);
    request.insn_cnt = length(program.instructions);
    request.license = program.license.as_ptr() as u64;
    let name = program.name.to_bytes_with_nul();
    for (to, from) in request.prog_name.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    request.prog_btf_fd = number(program.btf);
    request.func_info = address(program.functions.bytes);
    request.func_info_rec_size = program.functions.record_bytes as u32;
    request.func_info_cnt = program.functions.count();
    request.line_info = address(program.lines.bytes);
    request.line_info_rec_size = program.lines.record_bytes as u32;
    request.line_info_cnt = program.lines.count();
    if !log.is_empty() {
        request.log_level = LOG_LEVEL;
        request.log_size = length(log);
        request.log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: everything is borrowed for the call, each with its own length, and the licence ends
    // with NUL; the answer is a new descriptor.
    unsafe { new_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
}

/// Writes the first entry of an array.
pub(crate) fn fill(map: &MapData, value: &[u8]) -> io::Result<()> {
    put(map, 0, value)
}

/// Puts a program into a program array.
pub(crate) fn put_program(map: &MapData, key: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    put(map, key, &program.as_raw_fd().to_ne_bytes())
}

fn put(map: &MapData, key: u32, value: &[u8]) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    if info.value_size() as usize != value.len() || info.key_size() != 4 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = number(map.fd().as_fd());
    request.key = (&raw const key) as u64;
    request.__bindgen_anon_1.value = address(value);
    // SAFETY: key and value live through the call, and have the map's sizes.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// Empties an entry of a program array; `false` if it is empty.
pub(crate) fn remove(map: &MapData, key: u32) -> io::Result<bool> {
    let info = map.info().map_err(io::Error::other)?;
    if info.key_size() != 4 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = number(map.fd().as_fd());
    request.key = (&raw const key) as u64;
    // SAFETY: the key lives through the call, and has the map's size.
    match unsafe { call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Closes a map to writing from here, so that the verifier knows what is in it.
pub(crate) fn freeze(map: &MapData) -> io::Result<()> {
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.__bindgen_anon_2 };
    request.map_fd = number(map.fd().as_fd());
    // SAFETY: this command takes no address.
    unsafe { call(bpf_cmd::BPF_MAP_FREEZE, &mut attr) }?;
    Ok(())
}

/// How many keys a map has, `most` at most: a walk begins anew where the key that it stands on goes.
pub(crate) fn count_keys(map: &MapData, key_bytes: u32, most: u32) -> io::Result<u32> {
    let mut key = vec![0_u8; key_bytes as usize];
    let mut next = key.clone();
    for count in 0..most {
        let mut attr = no_attr();
        // SAFETY: as in `load_btf`.
        let request = unsafe { &mut attr.__bindgen_anon_2 };
        request.map_fd = number(map.fd().as_fd());
        request.key = if count == 0 { 0 } else { address(&key) };
        request.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        // SAFETY: the kernel reads and writes a key each, for which both have room; both live through the
        // call. Without a key it answers with the first.
        match unsafe { call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => mem::swap(&mut key, &mut next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(most)
}

/// Runs a program once on a frame (`BPF_PROG_TEST_RUN`). Returns what it returned, and leaves in `frame`
/// what it made of it.
pub(crate) fn run_program(
    program: BorrowedFd<'_>,
    frame: &mut Vec<u8>,
    context: &[u8],
) -> io::Result<i32> {
    /// What a program may put in front or behind.
    const GROWTH_BYTES: usize = 256;
    let mut out = vec![0; frame.len() + GROWTH_BYTES];
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.test };
    request.prog_fd = number(program);
    request.data_in = address(frame);
    request.data_size_in = length(frame);
    request.data_out = out.as_mut_ptr() as u64;
    request.data_size_out = length(&out);
    request.ctx_in = address(context);
    request.ctx_size_in = length(context);
    request.repeat = 1;
    // SAFETY: frame, its copy and the context live through the call, each with its own length.
    unsafe { call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has written integers over integers.
    let answer = unsafe { attr.test };
    out.truncate(answer.data_size_out as usize);
    *frame = out;
    Ok(answer.retval.cast_signed())
}

/// Gives what `fd` is of a name on a BPF file system.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = no_attr();
    // SAFETY: as in `load_btf`.
    let request = unsafe { &mut attr.__bindgen_anon_4 };
    request.bpf_fd = number(fd);
    request.pathname = path.as_ptr() as u64;
    // SAFETY: the path lives through the call and ends with NUL.
    unsafe { call(bpf_cmd::BPF_OBJ_PIN, &mut attr) }?;
    Ok(())
}

/// What the verifier did last, and in numbers (`BPF_LOG_LEVEL1`, `BPF_LOG_STATS`).
const LOG_LEVEL: u32 = 1 | 4;

impl Records<'_> {
    fn count(&self) -> u32 {
        (self.bytes.len().checked_div(self.record_bytes).unwrap_or(0)) as u32
    }
}

fn no_attr() -> bpf_attr {
    // SAFETY: a union of structs of integers, for which zeroes are a value.
    unsafe { mem::zeroed() }
}

/// # Safety
/// The command answers with a new descriptor, and `attr` is as [`call`] wants it.
unsafe fn new_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { call(command, attr) }?;
    // SAFETY: nobody else knows of a descriptor that the kernel has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// Every address in `attr` is of as much memory as the command reads or writes there.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    let size = mem::size_of::<bpf_attr>();
    // SAFETY: the kernel reads `size` bytes of `attr`, which has as many; the rest is the caller's
    // promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

fn length<T>(slice: &[T]) -> u32 {
    slice.len() as u32
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
