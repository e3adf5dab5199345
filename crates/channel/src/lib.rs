//! The end-to-end channel: Oblivious HTTP whose key is bound into attestation evidence.
