//! End-to-end tests: the real binary, on loopback, attacked as the operator would.
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod attacks;
mod bad_input;
mod bench;
mod documents;
mod evaluate;
mod fetch;
mod golden;
mod guard;
mod image;
mod main_job;
mod plan;
mod recorded;
mod support;
mod tpm;
