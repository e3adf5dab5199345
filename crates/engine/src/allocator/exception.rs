//! The C++ exception by which ONNX Runtime learns that there is no memory.
//!
//! ONNX Runtime does not check what an allocator returns: most operators write to a
//! null pointer. Its own allocators throw `std::bad_alloc`, which it handles
//! everywhere; so do we, with the C++ runtime that it was loaded with.

use std::io;
use std::sync::OnceLock;

type Throw = unsafe extern "C-unwind" fn() -> !;

static THROW: OnceLock<Throw> = OnceLock::new();

/// Finds the C++ runtime's function that throws. ONNX Runtime must have been loaded.
///
/// # Errors
/// When ONNX Runtime has no C++ runtime of the usual name; none that could be loaded
/// works without.
pub(super) fn prepare() -> io::Result<()> {
    if THROW.get().is_some() {
        return Ok(());
    }
    // SAFETY: the name is terminated, and a library that is loaded already runs no code
    // when it is opened once more. It is never closed.
    let library = unsafe {
        libc::dlopen(
            c"libstdc++.so.6".as_ptr(),
            libc::RTLD_NOW | libc::RTLD_NOLOAD,
        )
    };
    if library.is_null() {
        return Err(io::Error::other("libstdc++.so.6 is not loaded"));
    }
    // SAFETY: the library is open, and the name is terminated.
    let symbol = unsafe { libc::dlsym(library, c"_ZSt17__throw_bad_allocv".as_ptr()) };
    if symbol.is_null() {
        return Err(io::Error::other("libstdc++.so.6 throws no std::bad_alloc"));
    }
    // SAFETY: the mangled name is that of `void std::__throw_bad_alloc()`, which never
    // returns; the pointer is not null, and the library stays loaded.
    let throw = unsafe { std::mem::transmute::<*mut libc::c_void, Throw>(symbol) };
    THROW.get_or_init(|| throw);
    Ok(())
}

/// Throws `std::bad_alloc`; returns only if [`prepare`] did not succeed before.
///
/// # Safety
/// The caller was called by C++ through an ABI that may unwind, with nothing between
/// that would have to be dropped.
pub(super) unsafe fn throw_bad_alloc() {
    if let Some(throw) = THROW.get() {
        // SAFETY: by this function's contract.
        unsafe { throw() };
    }
}
