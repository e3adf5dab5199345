//! Keeps panels of weights encrypted in memory that the host controls.
//!
//! 1. [`MappedStore::new`] maps shared memory of a fixed size and draws a key that
//!    never leaves this process and lives as long as the store.
//! 2. [`MappedStore::append`] encrypts a panel into it, once, and returns a [`Ticket`],
//!    which stays in protected memory.
//! 3. [`MappedStore::open`] brings a panel back, as often as it is needed, from as many
//!    threads as like: exactly the bytes that were appended for that ticket, or an
//!    error.
//!
//! What this does not do: it neither hides how large panels are nor when they are
//! read, and it forgets everything with the process.
//!
//! Who is hostile: whoever can read and write the mapping, while it is in use too. So
//! no Rust reference to it is ever formed, each of its bytes is read once for each
//! opening, and what was read is what was authenticated.

#![deny(unsafe_code)]

mod cipher;
mod store;
#[allow(
    unsafe_code,
    reason = "memory that others write is read through pointers"
)]
mod untrusted;

pub use cipher::{CipherKind, UnknownCipher};
pub use store::{AppendError, MappedStore, OpenError, PanelName, Ticket};
