//! Work that must not delay answers.

/// Lets the calling thread take no core from a thread that is running: it starts when
/// one is idle or its turn comes. Where the system refuses, everything stays right,
/// only later.
pub(crate) fn give_way() {
    #[cfg(target_os = "linux")]
    {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the call reads the parameters, and changes how this thread is
        // scheduled, nothing else.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    }
}
