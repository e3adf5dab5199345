//! The log of a boot, which comes along with a TPM's quote and is signed by nobody.
//!
//! Verifiers read it only behind a quote that holds, where no other target gets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::tpm;

fuzz_target!(|bytes: &[u8]| {
    // One log leads to one value of each register, however often it is read.
    let registers = tpm::registers_of_log(bytes);
    assert_eq!(registers, tpm::registers_of_log(bytes));
});
