//! The sealed-model container: seal, open, verify, unseal, inspect.
