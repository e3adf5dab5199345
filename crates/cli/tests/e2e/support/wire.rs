//! The operator's network, for tests, in which it works.

use std::net::SocketAddr;

use occlude_evaluate::protection::wire;
pub(crate) use occlude_evaluate::protection::wire::{Given, Seen};

#[track_caller]
pub(crate) fn man_in_the_middle(
    answer: impl Fn(Seen) -> Given + Send + Sync + 'static,
) -> SocketAddr {
    wire::man_in_the_middle(answer).expect("a free port")
}

#[track_caller]
pub(crate) fn ask(target: SocketAddr, seen: &Seen) -> Given {
    wire::ask(target, seen).expect("the server answers")
}

#[track_caller]
pub(crate) fn ask_announcing(target: SocketAddr, seen: &Seen, length: usize) -> Given {
    let patience = std::time::Duration::from_secs(60);
    wire::ask_announcing(target, seen, length as u64, patience).expect("the server answers")
}

#[track_caller]
pub(crate) fn get(target: SocketAddr, path_and_query: &str) -> Given {
    wire::get(target, path_and_query).expect("the server answers")
}
