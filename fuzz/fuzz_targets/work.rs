//! What a server says that an answer costs, and what a client says that it found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_inference_protocol::{Puzzle, WorkWanted, work_number};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(wanted) = text.parse::<WorkWanted>() {
        assert!(wanted.bits <= 256);
        let again = wanted.to_string().parse::<WorkWanted>();
        assert_eq!(again, Ok(wanted));
    }
    if let Some(number) = work_number(text) {
        assert!(Puzzle::new(&[0; 32], None, bytes).bits(number) <= 256);
    }
});
