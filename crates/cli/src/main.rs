//! The `occlude` command: a thin layer over the libraries.
//!
//! Everything is decided in the crates below; this one reads arguments, environment
//! and configuration files, shows progress, prints results for people or as JSON,
//! and turns errors into the documented exit codes ([`failure::Exit`]).
//!
//! Nothing is printed with colours unless standard error is a terminal, and never a
//! key, a weight, an input or (but for `infer`, whose job it is) an output.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod failure;
mod logging;
mod output;
mod tensors;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::failure::{Exit, Failure};

/// Freed memory is wiped, so that keys and tensors do not linger in the heap of a
/// process that goes on running.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> std::process::ExitCode {
    // While this is the only thread. Where it cannot be done, without /proc for example,
    // commands that need ONNX Runtime refuse, and say how else.
    let _ = occlude_engine::forbid_telemetry();
    let weakening = match occlude_weakening::start() {
        Ok(weakening) => weakening,
        Err(error) => {
            output::error(&Failure::usage(error.to_string()));
            return Exit::Usage.into();
        }
    };
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers; everything else is wrong usage.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            let _ = error.print();
            return exit.into();
        }
    };
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was installed before");
    }
    logging::start(arguments.log_format);
    if let Some(weakening) = weakening {
        tracing::warn!("WEAKENED on purpose: {weakening}");
    }
    // It may hold a key: no core dump, no swap where allowed.
    if arguments.command.holds_secrets() {
        let hardening = occlude_engine::memory::harden_process();
        tracing::debug!(?hardening, "process hardened");
    }
    match run(arguments.command) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output::error(&failure);
            failure.exit().into()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Keygen(arguments) => commands::keygen::run(&arguments),
        Command::Seal(arguments) => commands::seal::run(&arguments),
        Command::Unseal(arguments) => commands::unseal::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Verify(arguments) => commands::verify::run(&arguments),
        Command::Broker(arguments) => asynchronous(commands::broker::run(arguments)),
        Command::Serve(arguments) => asynchronous(commands::serve::run(arguments)),
        Command::Attest(arguments) => asynchronous(commands::attest::run(arguments)),
        Command::Tee(arguments) => commands::tee::run(arguments),
        Command::Policy(arguments) => commands::policy::run(&arguments),
        Command::Infer(arguments) => asynchronous(commands::infer::run(arguments)),
        Command::Proxy(arguments) => asynchronous(commands::proxy::run(arguments)),
        Command::Guard(arguments) => commands::guard::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(arguments),
        Command::Evaluate(arguments) => asynchronous(commands::evaluate::run(arguments)),
        Command::MeasureMemory => commands::bench::measure_memory(),
        Command::Completions(arguments) => commands::completions::run(&arguments),
    }
}

/// Runs a command that talks to the network.
fn asynchronous<F: Future<Output = Result<(), Failure>>>(command: F) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?
        .block_on(command)
}
