//! The attacks of a cloud's operator, carried out. Each must fail.
//!
//! The operator is root on the host: it reads and rewrites every file and packet,
//! runs its own servers, restarts and rolls back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use occlude_attest::{AttestationResponse, ServiceStatement};
use occlude_channel::{Gateway, Kem, Limits};

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{
    Service, binary, free_address, occlude, production_binary, run, run_binary,
};
use crate::support::search::Secrets;
use crate::support::wire::{Given, Seen, ask, get, man_in_the_middle, recording_relay};

const ATTESTATION: &str = "/.well-known/occlude/attestation";
const CHANNEL: &str = "/.well-known/occlude/channel";

/// Attack 1: the operator greps.
#[test]
fn the_operator_finds_no_secret_in_files_wire_logs_or_a_core_dump() {
    let owner = Owner::new(11, &binary());
    let operator = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(operator.path().join("tmp")).expect("created");
    std::fs::copy(owner.at("model.occ"), operator.path().join("model.occ")).expect("copied");
    let input = model::secret_input(12);
    let input_bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
    let secrets = Secrets::new(
        owner
            .model
            .weights
            .iter()
            .map(Vec::as_slice)
            .chain([input_bytes.as_slice()]),
        &owner.model.names,
    );
    assert!(secrets.len() > 100_000, "there is something to find");
    assert!(
        secrets.find(&owner.model.onnx).is_some(),
        "a search of the plain model finds it"
    );
    assert!(
        secrets.find(&input_bytes).is_some(),
        "a search of the plain input finds it"
    );

    let (broker_side, broker_wire) = recording_relay(owner.broker.address);
    let address = free_address();
    let log = operator.path().join("server.log");
    let script = format!(
        "ulimit -c unlimited; exec {} serve --model model.occ --broker http://{broker_side} --tee simulated --listen {address}",
        text(&binary())
    );
    let mut shell = Command::new("sh");
    shell
        .current_dir(operator.path())
        .env("TMPDIR", operator.path().join("tmp"))
        .env("OCCLUDE_LOG", "trace")
        .args(["-c", &script]);
    let server = Service::start(&mut shell, log, address);
    let (user_side, user_wire) = recording_relay(address);
    owner
        .infer(&format!("http://{user_side}"), "policy.toml", &input)
        .success();
    assert!(
        user_wire.bytes().len() > 8 << 10,
        "the request crossed the recorded wire"
    );
    assert!(
        broker_wire.bytes().len() > 1 << 10,
        "the key crossed the recorded wire"
    );

    let process = PathBuf::from(format!("/proc/{}", server.id()));
    let metrics = get(address, "/metrics").body;
    assert!(!metrics.is_empty());
    let mut seen = vec![
        ("the user's wire".to_owned(), user_wire.bytes()),
        ("the broker's wire".to_owned(), broker_wire.bytes()),
        ("the metrics".to_owned(), metrics),
    ];
    if std::fs::read(process.join("environ")).is_ok() {
        seen.extend(process_files(&process));
    } else {
        eprintln!(
            "note: only root may read a hardened process's /proc entries; they were not searched"
        );
    }
    // Not SEGV: Rust's own handler takes the first one for a stack that overflowed.
    server.signal("ABRT");
    let said = server.ends();
    assert_eq!(said.code, -1, "a signal ended it");
    seen.push(("the log".to_owned(), said.err.into_bytes()));
    let files = files_below(operator.path());
    assert!(files.iter().any(|path| path.ends_with("model.occ")));
    let core = files.iter().find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("core"))
    });
    assert_eq!(core, None, "the kernel wrote no core dump");
    core_dump_control();
    for path in files {
        seen.push((
            path.display().to_string(),
            std::fs::read(&path).expect("read"),
        ));
    }
    for (place, bytes) in seen {
        assert_eq!(secrets.find(&bytes), None, "in {place}");
    }
}

/// What root reads of a process without stopping it. Deleted files that are still
/// open count as the server's files too.
fn process_files(process: &Path) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    for name in ["environ", "cmdline", "maps"] {
        let bytes = std::fs::read(process.join(name)).expect("root may read it");
        seen.push((format!("/proc/…/{name}"), bytes));
    }
    for file in std::fs::read_dir(process.join("fd"))
        .expect("root may list it")
        .flatten()
    {
        let path = std::fs::read_link(file.path()).unwrap_or_default();
        let on_disk =
            path.is_absolute() && !path.starts_with("/dev") && !path.starts_with("/memfd:");
        if on_disk && let Ok(bytes) = std::fs::read(file.path()) {
            seen.push((format!("open file {}", path.display()), bytes));
        }
    }
    seen
}

/// An ordinary process does leave a core dump here, or the test above says little.
fn core_dump_control() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _ = Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", "ulimit -c unlimited; kill -ABRT $$"])
        .status();
    if files_below(folder.path()).is_empty() {
        eprintln!(
            "skipped: this machine writes no core dumps beside a process, so their absence proves nothing"
        );
    }
}

/// Attack 2: a man in the middle with genuine old evidence.
#[test]
fn genuine_evidence_recorded_earlier_is_refused() {
    let owner = Owner::new(21, &binary());
    let server = owner.serve("model.occ");
    let recorded = get(
        server.address,
        &format!("{ATTESTATION}?nonce={}", "5a".repeat(32)),
    );
    assert_eq!(
        recorded.status,
        200,
        "{}",
        String::from_utf8_lossy(&recorded.body)
    );
    let with_own_key = Given {
        body: with_own_channel_key(&recorded),
        ..recorded.clone()
    };
    for recorded in [recorded, with_own_key] {
        let attacker = Attacker::new(move |_| recorded.clone());
        attacker.is_refused_by(&owner, NOT_COVERED);
    }
}

/// Attack 2, second half: its own key under genuine fresh evidence, of the server that
/// it stands before and of another one.
#[test]
fn another_channel_key_under_fresh_evidence_is_refused() {
    let owner = Owner::new(23, &binary());
    let operator = Owner::new(24, &binary());
    let (server, other) = (owner.serve("model.occ"), owner.serve("model.occ"));
    let look_alike = operator.serve("model.occ");
    let honest = server.address;
    for evidence in [server.address, other.address, look_alike.address] {
        // Its own key in the owner's statement, over fresh evidence.
        let attacker = Attacker::new(move |seen| {
            let mut stated = get(honest, &seen.path_and_query);
            stated.body = with_own_channel_key(&stated);
            let fresh = response(&get(evidence, &seen.path_and_query));
            let forged = AttestationResponse::new(
                response(&stated).statement().to_vec(),
                fresh.evidence().clone(),
            );
            Given {
                body: forged.encode(),
                ..stated
            }
        });
        attacker.is_refused_by(&owner, NOT_COVERED);
    }
    for evidence in [other.address, look_alike.address] {
        // The owner's genuine statement, over fresh evidence of another server.
        let attacker = Attacker::new(move |seen| {
            let stated = get(honest, &seen.path_and_query);
            let fresh = response(&get(evidence, &seen.path_and_query));
            let forged = AttestationResponse::new(
                response(&stated).statement().to_vec(),
                fresh.evidence().clone(),
            );
            Given {
                body: forged.encode(),
                ..stated
            }
        });
        attacker.is_refused_by(&owner, NOT_COVERED);
    }
}

const NOT_COVERED: &str = "made for another nonce or another statement";

/// A man in the middle who answers for evidence as it likes, and sees what comes
/// through the channel.
struct Attacker {
    address: std::net::SocketAddr,
    encapsulated: Arc<AtomicUsize>,
}

impl Attacker {
    fn new(attestation: impl Fn(&Seen) -> Given + Send + Sync + 'static) -> Self {
        let encapsulated = Arc::new(AtomicUsize::new(0));
        let counter = encapsulated.clone();
        let address = man_in_the_middle(move |seen| {
            if seen.path_and_query.starts_with(ATTESTATION) {
                return attestation(&seen);
            }
            counter.fetch_add(1, Ordering::SeqCst);
            Given {
                status: 500,
                content_type: String::new(),
                body: Vec::new(),
            }
        });
        Self {
            address,
            encapsulated,
        }
    }

    /// The user refuses for `reason`, before anything was sent.
    #[track_caller]
    fn is_refused_by(&self, user: &Owner, reason: &str) {
        user.infer(
            &format!("http://{}", self.address),
            "policy.toml",
            &model::secret_input(25),
        )
        .fails_with(3, reason);
        assert_eq!(
            self.encapsulated.load(Ordering::SeqCst),
            0,
            "nothing was sent"
        );
    }
}

fn response(given: &Given) -> AttestationResponse {
    AttestationResponse::decode(&given.body).expect("a server's answer")
}

/// The answer with the channel key of somebody else in its statement.
fn with_own_channel_key(given: &Given) -> Vec<u8> {
    let genuine = response(given);
    let mut statement = ServiceStatement::decode(genuine.statement()).expect("a statement");
    let own = Gateway::new(Kem::XWing, Limits::default()).expect("a key");
    statement.channel_keys = own.key_configurations();
    AttestationResponse::new(statement.encode(), genuine.evidence().clone()).encode()
}

/// Attack 3: rolling the container back to an older signed version.
#[test]
fn an_older_signed_version_is_refused_by_user_and_broker() {
    let owner = Owner::new(31, &binary());
    owner.seal("newer.occ", 2);
    owner.add_model("newer.occ").success();
    std::fs::write(owner.at("policy.toml"), owner.user_policy(&binary(), 2)).expect("written");
    let rolled_back = owner.serve("model.occ");
    owner
        .infer(&rolled_back.url(), "policy.toml", &model::secret_input(32))
        .fails_with(3, "version");
    let current = owner.serve("newer.occ");
    owner
        .infer(&current.url(), "policy.toml", &model::secret_input(32))
        .success();

    run(owner.order(&["withdraw", "--model", "classifier", "--below-version", "2"])).success();
    owner
        .serve_refused(&binary(), "model.occ", &[])
        .fails_with(3, "withdrawn");
}

/// Attack 4: swapping two models' files.
#[test]
fn swapped_and_spliced_model_files_are_refused() {
    let owner = Owner::new(41, &binary());
    run([
        "seal",
        text(&owner.at("model.onnx")),
        "-o",
        text(&owner.at("other.occ")),
        "--key",
        text(&owner.at("owner.key")),
        "--id",
        "another-model",
    ])
    .success();
    owner.add_model("other.occ").success();
    let swapped = owner.serve("other.occ");
    owner
        .infer(&swapped.url(), "policy.toml", &model::secret_input(42))
        .fails_with(3, "classifier");

    let (mut spliced, other) = (read(&owner.at("model.occ")), read(&owner.at("other.occ")));
    assert_eq!(spliced.len(), other.len());
    spliced[4096..].copy_from_slice(&other[4096..]);
    std::fs::write(owner.at("spliced.occ"), spliced).expect("written");
    owner
        .serve_refused(&binary(), "spliced.occ", &[])
        .fails_with(
            3,
            "spliced.occ: the list of chunk digests is not the one that the owner signed",
        );
}

/// Attack 5: a server with another measurement asks the broker for the key.
#[test]
fn a_changed_binary_gets_no_key() {
    let owner = Owner::new(51, &binary());
    let changed = changed_binary(owner.folder());
    owner
        .serve_refused(&changed, "model.occ", &[])
        .fails_with(3, "measurement");
    let audit = run(owner.order(&["audit", "--json"])).success();
    assert!(
        audit.contains("measurement"),
        "the broker recorded its refusal: {audit}"
    );
    let genuine = owner.serve("model.occ");
    owner
        .infer(&genuine.url(), "policy.toml", &model::secret_input(52))
        .success();
}

/// Attack 6: a genuine build, run by the operator with its own model, owner and broker.
#[test]
fn a_genuine_server_of_another_owner_is_refused() {
    let owner = Owner::new(61, &binary());
    let operator = Owner::new(62, &binary());
    let look_alike = operator.serve("model.occ");
    owner
        .infer(&look_alike.url(), "policy.toml", &model::secret_input(63))
        .fails_saying(3, &other_owner(&look_alike, &operator, &owner));
}

/// Attack 6 with nothing but the model and its key the operator's: it is a customer of the
/// owner's broker too, and calls its model as the owner does.
#[test]
fn a_genuine_server_with_the_operators_model_from_the_owners_broker_is_refused() {
    let owner = Owner::new(66, &binary());
    let operator = Owner::new(67, &binary());
    let at_the_owners = |order: &[&str]| {
        let mut arguments = operator.order(order);
        *arguments.last_mut().expect("the broker") = owner.broker.url();
        run(arguments).success();
    };
    at_the_owners(&["add-model", text(&operator.at("model.occ"))]);
    at_the_owners(&["set-policy", text(&operator.at("broker-policy.toml"))]);
    std::fs::copy(operator.at("model.occ"), owner.at("theirs.occ")).expect("copied");
    let server = owner.serve("theirs.occ");
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(68))
        .fails_saying(3, &other_owner(&server, &operator, &owner));

    // Nor can it stand beside the owner's, in the process that runs it.
    owner
        .serve_refused(&binary(), "model.occ", &["--model", "theirs.occ"])
        .fails_saying(
            3,
            &format!(
                "a server serves the models of one owner: model.occ is of {}, theirs.occ of {}",
                owner.public(),
                operator.public()
            ),
        );
}

/// Attack 6 with nothing but the broker the operator's: one that has no key, and one that
/// passes on what the owner's broker says.
#[test]
fn a_genuine_server_with_the_operators_broker_is_refused() {
    let owner = Owner::new(69, &binary());
    let operator = Owner::new(70, &binary());
    let (relay, _) = recording_relay(owner.broker.address);
    let serve = |broker: &str| {
        let address = free_address();
        let mut command = occlude(&binary());
        command
            .current_dir(owner.folder())
            .args(["serve", "--model", "model.occ", "--tee", "simulated"])
            .args(["--listen", &address.to_string(), "--broker", broker]);
        (command, address)
    };
    let (mut command, address) = serve(&operator.broker.url());
    Service::spawn(&mut command, owner.at("no-key.log"), address)
        .ends()
        .fails_saying(
            3,
            &format!(
                "the broker {}/ refuses the key of model classifier version 1: the broker refuses \
                 the key: the broker has no such key",
                operator.broker.url()
            ),
        );

    let broker_of = |url: &str| {
        let policy = owner.user_policy(&binary(), 1);
        let policy = format!("{policy}[service.configuration]\nbrokers = [\"{url}/\"]\n");
        std::fs::write(owner.at("broker-named.toml"), policy).expect("written");
    };
    broker_of(&owner.broker.url());
    let (mut command, address) = serve(&format!("http://{relay}"));
    let relayed = Service::start(&mut command, owner.at("relayed.log"), address);
    owner
        .infer(
            &relayed.url(),
            "broker-named.toml",
            &model::secret_input(65),
        )
        .fails_saying(
            3,
            &format!(
                "the policy refuses {}/: the service has brokers = \"http://{relay}/\", the policy \
                 accepts [\"{}/\"]",
                relayed.url(),
                owner.broker.url()
            ),
        );
    let genuine = owner.serve("model.occ");
    owner
        .infer(
            &genuine.url(),
            "broker-named.toml",
            &model::secret_input(65),
        )
        .success();
}

/// What a user is told whose policy names another owner than the server serves.
fn other_owner(server: &Service, found: &Owner, expected: &Owner) -> String {
    format!(
        "the policy refuses {}/: the service serves owner {}, the policy accepts {}",
        server.url(),
        found.public(),
        expected.public()
    )
}

/// Attack 6, second half: a weaker configuration of the owner's own service.
#[test]
fn a_genuine_server_with_a_weaker_channel_is_refused() {
    let owner = Owner::new(64, &binary());
    let address = free_address();
    let mut command = owner.serve_command(&binary(), "model.occ", address, &["--kem", "x25519"]);
    let weaker = Service::start(&mut command, owner.at("weaker.log"), address);
    owner
        .infer(&weaker.url(), "policy.toml", &model::secret_input(65))
        .fails_with(3, "kem");
}

/// Attack 7: the same encapsulated request twice, across a restart, and with the
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

/// Clients take nothing that was not encapsulated for a result.
#[test]
fn a_plain_answer_is_no_result_and_a_plain_request_gets_none() {
    let owner = Owner::new(91, &binary());
    let server = owner.serve("model.occ");
    let honest = server.address;
    let plain = Seen {
        method: "POST".to_owned(),
        path_and_query: "/v2/models/classifier/infer".to_owned(),
        content_type: "application/json".to_owned(),
        body: b"{}".to_vec(),
    };
    let refused = ask(honest, &plain);
    assert_eq!(
        refused.status,
        421,
        "{}",
        String::from_utf8_lossy(&refused.body)
    );
    let forged = serde_json::json!({
        "model_name": "classifier",
        "outputs": [{"name": model::OUTPUT, "datatype": "FP32", "shape": [1, 10], "data": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}],
    });
    let attacker = man_in_the_middle(move |seen| {
        if seen.path_and_query == CHANNEL {
            let body = forged.to_string().into_bytes();
            return Given {
                status: 200,
                content_type: "application/json".to_owned(),
                body,
            };
        }
        ask(honest, &seen)
    });
    let said = owner.infer(
        &format!("http://{attacker}"),
        "policy.toml",
        &model::secret_input(92),
    );
    assert_ne!(said.code, 0, "{}", said.out);
    assert!(!said.out.contains("class_probabilities"), "{}", said.out);
}

/// A copy of the development binary with one byte more: it runs as before, and
/// measures otherwise. A child writes it: were it open for writing here, another
/// test's child could inherit it and keep it from being run.
fn changed_binary(folder: &Path) -> PathBuf {
    let changed = folder.join("occlude-changed");
    let status = Command::new("sh")
        .args(["-c", r#"cp "$0" "$1" && printf '\0' >> "$1""#])
        .args([&binary(), &changed])
        .status()
        .expect("sh runs");
    assert!(status.success());
    let beside = binary().with_file_name("libonnxruntime.so.1.32.0");
    std::os::unix::fs::symlink(beside, folder.join("libonnxruntime.so.1.32.0")).expect("linked");
    changed
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

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the file can be read")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("listed").flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}
