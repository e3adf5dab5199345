//! The whole path in one process: broker, sealed model, server, client, and
//! whoever stands between them.

mod attacks;
mod budgets;
mod leases;
mod middle;
mod service;
mod starting;
mod telemetry;
mod work;
mod world;
