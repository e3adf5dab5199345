//! Indexes of sealed models, whose author may be hostile too.
//!
//! Nothing panics, and the tensors of an index that is read lie apart from each
//! other and within the container.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_container::Index;

fuzz_target!(|input: (u64, &[u8])| {
    let (data_length, json) = input;
    if let Ok(index) = Index::parse(json, data_length) {
        let mut end = 0;
        for tensor in &index.tensors {
            assert!(tensor.offset >= end);
            end = tensor.offset + tensor.length;
            assert!(end <= data_length);
        }
        assert_eq!(index.data_length(), end);
    }
});
