//! The ABI's types as aya wants them.

/// Lets any plain-old-data type be a key or a value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Plain<T>(pub(super) T);

#[expect(unsafe_code, reason = "aya's Pod is an unsafe trait")]
// SAFETY: aya reads a `Pod` as bytes and makes one from any bytes of its size. `bytemuck::Pod`
// promises both for `T` (no padding, no invalid bit patterns, `Copy`, `'static`), and
// `repr(transparent)` gives `Plain<T>` the size, alignment and bytes of `T`.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
