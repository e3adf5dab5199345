//! What an operator may hand to verifiers beside evidence: certificates, revocation lists,
//! Intel's collateral, reference manifests, headers of images, keys of devices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::Collateral;

fuzz_target!(|bytes: &[u8]| {
    let mut collateral = Collateral::default();
    let added = collateral.add(bytes);
    // What was taken can be described, and all that can be described was taken.
    assert!(added || collateral.items().is_empty());
});
