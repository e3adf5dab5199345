//! Intel TXT: a launch that the processor measures into registers of the TPM which
//! nothing else can reset ("Intel Trusted Execution Technology Software Development
//! Guide", section 1.10). Like every TPM it says what was started and hides nothing.
//!
//! Evidence is a TPM's quote with register 17, the launch's authenticated code and its
//! policy, and register 18, what that code launched. Before a launch they hold ones,
//! which no measuring reaches.

mod collect;
mod verify;

pub(crate) use collect::{check_present, collect};
pub(crate) use verify::verify;
