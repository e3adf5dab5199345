//! The inference service inside the trusted execution environment.
