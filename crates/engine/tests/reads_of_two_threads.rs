//! With several threads the set of reads is the same for every input of one shape.

#![allow(clippy::print_stdout, reason = "says that a part was skipped")]

#[path = "support/reads.rs"]
mod reads;
mod support;

use std::num::NonZeroUsize;

use occlude_engine::Spill;

#[test]
fn two_threads_read_the_same_set_for_every_input() {
    let two = const { NonZeroUsize::new(2).unwrap() };
    let mut mapped = reads::reads_of_runs(two, Spill::SharedMemory).unwrap();
    for reads in &mut mapped {
        // A place belongs to one layer, so equal sets are equal sets for each layer.
        reads.sort_unstable();
    }
    for (run, reads) in mapped.iter().enumerate() {
        assert_eq!(*reads, mapped[0], "run {run}");
    }
    // What is read ahead has an order, however many threads open it.
    if let Some(direct) = reads::reads_of_runs(two, Spill::direct(reads::folder())) {
        assert!(
            reads::is_one_cycle(&direct.concat()),
            "{:?}",
            direct.concat()
        );
    }
}
