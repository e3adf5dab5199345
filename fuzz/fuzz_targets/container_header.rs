//! Headers of sealed models, from a hostile host.
//!
//! Nothing panics, and a header that is read has exactly the bytes it was read from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_container::{HEADER_LENGTH, Header};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        assert_eq!(header.to_bytes(), bytes[..HEADER_LENGTH]);
        assert!(header.file_length() > HEADER_LENGTH as u64);
        let _ = header.digest();
    }
});
