//! Subnormal numbers, which many processors take far longer for than for others.
//!
//! How long an answer takes would tell inputs so small apart: `occlude evaluate protection`
//! measures it. So they are zero, in ONNX Runtime's threads (which it sees to itself, when it
//! is asked to) and in those that call it.

/// Runs an inference with subnormal numbers taken for zero, on this thread.
pub fn flushed<T>(inference: impl FnOnce() -> T) -> T {
    // SAFETY: Rust's arithmetic assumes these flags as they were when a thread started. What
    // runs here is ONNX Runtime, which sets them in its own threads, and kernels it calls
    // back, whose arithmetic is of values that no compiler knows; nothing is computed here
    // that depends on the flags being one way or the other, and they are put back after it.
    unsafe { no_denormals::no_denormals(inference) }
}
