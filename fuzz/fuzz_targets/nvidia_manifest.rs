//! A reference integrity manifest of NVIDIA's: XML with its signature inside. Verifiers
//! read its values only behind NVIDIA's signature, where no other target gets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use occlude_attest::nvidia;

fuzz_target!(|bytes: &[u8]| nvidia::read_as_if_signed(bytes));
