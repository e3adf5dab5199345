//! Attacks of a cloud's operator that `occlude evaluate protection` does not carry out.
//! Each must fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{
    Service, binary, free_address, occlude, production_binary, run, run_binary,
};
use crate::support::wire::{Seen, ask, man_in_the_middle};

const CHANNEL: &str = "/.well-known/occlude/channel";

/// The same encapsulated request twice, across a restart, and with the
/// clock set back.
#[test]
fn a_replayed_request_is_refused_even_after_a_restart_or_with_the_clock_set_back() {
    let owner = Owner::new(71, &binary());
    let clock = Clock::new(owner.folder());
    let address = free_address();
    let start = || {
        let mut command = owner.serve_command(&binary(), "model.occ", address, &[]);
        clock.rule(&mut command);
        Service::start(&mut command, owner.at("replayed.log"), address)
    };
    let server = start();
    let captured: Arc<Mutex<Option<(Seen, u16)>>> = Arc::default();
    let shared = captured.clone();
    let attacker = man_in_the_middle(move |seen| {
        let given = ask(address, &seen);
        if seen.path_and_query == CHANNEL {
            *shared.lock().expect("no thread panicked") = Some((seen, given.status));
        }
        given
    });
    owner
        .infer(
            &format!("http://{attacker}"),
            "policy.toml",
            &model::secret_input(72),
        )
        .success();
    let (request, first) = captured
        .lock()
        .expect("no thread panicked")
        .clone()
        .expect("a request passed");
    assert_eq!(first, 200);
    let replayed = |when: &str, reason: &str| {
        let given = ask(address, &request);
        assert_ne!(given.status, 200, "{when}");
        let said = String::from_utf8_lossy(&given.body).into_owned();
        assert!(
            said.contains(reason),
            "{when}: expected {reason:?} in {said}"
        );
    };
    replayed("at once", "seen before");
    clock.set_back();
    replayed("with the clock set back", "seen before");
    server.kill();
    let _restarted = start();
    replayed("after a restart", "http-problem-types#ohttp-key");
}

/// A production build refuses simulated evidence whatever the policy says.
#[test]
fn a_production_build_refuses_simulated_evidence_everywhere() {
    let Some(production) = production_binary() else {
        eprintln!(
            "skipped: no production binary (OCCLUDE_PRODUCTION_BINARY); `make test` builds one"
        );
        return;
    };
    let owner = Owner::new(81, &binary());
    let server = owner.serve("model.occ");
    run_binary(
        &production,
        [
            "attest",
            "verify",
            &server.url(),
            "--policy",
            text(&owner.at("policy.toml")),
        ],
    )
    .fails_with(3, "simulated");
    run_binary(&production, ["attest", "show", &server.url()]).fails_with(3, "simulated");
    owner
        .serve_refused(&production, "model.occ", &[])
        .fails_with(3, "simulated");
    let address = free_address();
    let mut command = occlude(&production);
    command
        .args(["broker", "--listen", &address.to_string(), "--database"])
        .arg(owner.at("production.db"));
    let broker = Service::start(&mut command, owner.at("production-broker.log"), address);
    run([
        "broker",
        "set-policy",
        text(&owner.at("broker-policy.toml")),
        "--key",
        text(&owner.at("owner.key")),
        "--broker",
        &broker.url(),
    ])
    .fails_with(3, "simulated");
}

/// A wall clock that the test rules: a library, preloaded into the server, that
/// answers with the time of two days ago once a file says so.
struct Clock {
    library: PathBuf,
    switch: PathBuf,
}

impl Clock {
    fn new(folder: &Path) -> Self {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        std::fs::write(&source, include_str!("support/clock.c")).expect("written");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler");
        assert!(status.success());
        let clock = Self {
            library,
            switch: folder.join("set-the-clock-back"),
        };
        let before = clock.now();
        clock.set_back();
        assert!(clock.now() < before - 86_400, "the clock can be set back");
        std::fs::remove_file(&clock.switch).expect("and forward again");
        clock
    }

    fn rule(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("CLOCK_SWITCH", &self.switch);
    }

    fn set_back(&self) {
        std::fs::write(&self.switch, "").expect("written");
    }

    fn now(&self) -> i64 {
        let mut date = Command::new("date");
        self.rule(&mut date);
        let output = date.arg("+%s").output().expect("date runs");
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .expect("seconds")
    }
}
