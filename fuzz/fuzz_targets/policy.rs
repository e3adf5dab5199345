//! Policies, plain and signed, from a hostile file.
//!
//! Nothing panics, and a policy that is read means the same after it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::{Policy, PolicyFile};

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::parse(text) {
        assert_eq!(Policy::parse(&policy.to_toml()), Ok(policy));
    }
    let _ = PolicyFile::parse(text, None);
});
