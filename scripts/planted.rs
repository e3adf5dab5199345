//! Errors that a sanitizer must report, for `scripts/sanitize`: one that does not see
//! these would not see ours. Tests, so that what is true of them is true of tests.

use std::hint::black_box;

/// What a sanitizer must not report.
#[test]
fn nothing() {
    let numbers = black_box(vec![1_u64; 64]);
    let (half, other) = numbers.split_at(32);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| half.iter().sum::<u64>());
        assert_eq!(other.iter().sum::<u64>() + thread.join().unwrap(), 64);
    });
}

/// Reads one number behind a vector, as a kernel with a wrong length would.
#[test]
fn address() {
    let numbers = black_box(vec![1.0_f32; 64]);
    let start = numbers.as_ptr();
    let sum: f32 = (0..=black_box(numbers.len()))
        // SAFETY: none; the last one is not inside.
        .map(|index| unsafe { *start.add(index) })
        .sum();
    black_box(sum);
}

/// Two threads write to the same numbers, as a kernel with wrong pieces of work would.
#[test]
fn thread() {
    struct Shared(*mut f32);
    // SAFETY: none.
    unsafe impl Sync for Shared {}

    let mut numbers = black_box(vec![0.0_f32; 64]);
    let shared = &Shared(numbers.as_mut_ptr());
    let write = move |from: usize| {
        for index in from..from + 40 {
            // SAFETY: none; the threads' ranges overlap.
            unsafe { *black_box(shared.0.add(index)) += 1.0 };
        }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || write(24));
        write(0);
        thread.join().unwrap();
    });
}
