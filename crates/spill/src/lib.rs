//! Keeps panels of weights encrypted where the host has them: in memory that it can
//! reach, or on its disk.
//!
//! 1. [`MappedStore::new`] maps shared memory, [`DirectStore::new`] makes an unnamed file
//!    that is read and written past the page cache; each draws a key that never leaves
//!    this process and lives as long as the store.
//! 2. [`Store::append`] encrypts a panel into it, once, and returns a [`Ticket`], which
//!    stays in protected memory.
//! 3. [`Store::open`] brings a panel back, as often as it is needed, from as many threads
//!    as like: exactly the bytes that were appended for that ticket, or an error. A
//!    [`Reader`] does so for the runs of one session, and reads a disk ahead of them.
//!
//! What this does not do: it neither hides how large panels are nor when they are
//! read, and it forgets everything with the process.
//!
//! Who is hostile: whoever can read and write the mapping or the file, while it is in
//! use too. So no Rust reference to such memory is ever formed, each of its bytes is read
//! once for each opening, and what was read is what was authenticated.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "gives out parts of a mapping")]
mod buffer;
mod cipher;
mod direct;
mod disk;
#[cfg_attr(
    thread_sanitizer,
    allow(unsafe_code, reason = "calls into the sanitizer, in its builds only")
)]
mod locks;
mod mapped;
#[allow(unsafe_code, reason = "maps and unmaps memory")]
mod mapping;
mod mirror;
mod read_ahead;
mod store;
#[allow(
    unsafe_code,
    reason = "memory that others write is read through pointers"
)]
mod untrusted;

pub use cipher::{CipherError, CipherKind};
pub use direct::{DirectError, DirectStore};
pub use disk::Disk;
pub use mapped::MappedStore;
pub use mirror::{Mirror, Repair};
pub use read_ahead::{DEFAULT_READ_AHEAD, LEAST_READ_AHEAD};
pub use store::{AppendError, Observer, OpenError, PanelName, Reader, Store, Ticket};
