//! End-to-end tests: the real binary, on loopback, attacked as the operator would.

mod attacks;
mod bad_input;
mod golden;
mod main_job;
mod support;
