//! What `harden_process` changes. Alone in its process: it cannot be undone.

use occlude_engine::memory::harden_process;
use rustix::process::{DumpableBehavior, Resource};

#[test]
fn a_hardened_process_writes_no_core_and_cannot_be_dumped() {
    let hardening = harden_process();
    assert!(hardening.core_dumps_disabled, "{hardening:?}");
    assert_eq!(
        rustix::process::dumpable_behavior().unwrap(),
        DumpableBehavior::NotDumpable,
    );
    let limit = rustix::process::getrlimit(Resource::Core);
    assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    assert_eq!(hardening.memory_locked, hardening.shortfalls.is_empty());
}
