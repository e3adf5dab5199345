//! With one thread the sequence of reads is the same for every input of one shape.

#![allow(clippy::print_stdout, reason = "says that a part was skipped")]

#[path = "support/reads.rs"]
mod reads;
mod support;

use std::num::NonZeroUsize;

use occlude_engine::Spill;

#[test]
fn one_thread_reads_the_same_sequence_for_every_input() {
    let mapped = reads::reads_of_runs(NonZeroUsize::MIN, Spill::SharedMemory).unwrap();
    assert!(mapped[0].len() > 50, "{} panels", mapped[0].len());
    for (run, reads) in mapped.iter().enumerate() {
        assert_eq!(*reads, mapped[0], "run {run}");
    }
    let direct = Spill::direct(reads::folder());
    if let Some(direct) = reads::reads_of_runs(NonZeroUsize::MIN, direct) {
        assert!(
            reads::is_one_cycle(&direct.concat()),
            "{:?}",
            direct.concat()
        );
    }
}
