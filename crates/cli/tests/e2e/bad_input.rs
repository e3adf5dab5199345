//! Bad input at the command line: each ends in its own exit code and reason, and
//! leaves nothing half-written.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{Service, binary, free_address, occlude, run, said};
use crate::support::wire::{Given, Seen, ask, man_in_the_middle};

/// The fixed length of a container's header (docs/container-format.md).
const HEADER: usize = 4096;

#[test]
fn altered_containers_are_refused_by_verify() {
    let owner = Owner::new(101, &binary());
    let whole = std::fs::read(owner.at("model.occ")).expect("read");
    let verify = |bytes: &[u8]| {
        std::fs::write(owner.at("altered.occ"), bytes).expect("written");
        run([
            "verify",
            text(&owner.at("altered.occ")),
            "--key",
            text(&owner.at("owner.key")),
        ])
    };
    verify(&whole).success();
    verify(&whole[..whole.len() - 1]).fails_with(3, "altered.occ");
    verify(&[&whole[..], &[0]].concat()).fails_with(3, "altered.occ");
    verify(b"").fails_with(3, "altered.occ");
    for position in [
        0,
        8,
        100,
        HEADER - 1,
        HEADER,
        HEADER + 5_000,
        whole.len() - 1,
    ] {
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        verify(&flipped).fails_with(3, "altered.occ");
    }
}

#[test]
fn a_wrong_owner_and_a_wrong_key_are_told() {
    let owner = Owner::new(102, &binary());
    let stranger = Owner::new(103, &binary());
    let container = owner.at("model.occ");
    run(["verify", text(&container), "--owner", &stranger.public()]).fails_with(3, "owner");
    run([
        "unseal",
        text(&container),
        "-o",
        text(&owner.at("back.onnx")),
        "--key",
        text(&stranger.at("owner.key")),
    ])
    .fails_with(3, "owner");
    assert!(!owner.at("back.onnx").exists());
}

#[test]
fn a_model_comes_back_as_it_was() {
    let owner = Owner::new(104, &binary());
    run([
        "unseal",
        text(&owner.at("model.occ")),
        "-o",
        text(&owner.at("back.onnx")),
        "--key",
        text(&owner.at("owner.key")),
    ])
    .success();
    let back = std::fs::read(owner.at("back.onnx")).expect("read");
    for weight in &owner.model.weights {
        assert!(
            back.windows(weight.len()).any(|window| window == weight),
            "a weight is missing"
        );
    }
}

#[test]
fn what_is_no_model_is_not_sealed_and_leaves_nothing() {
    let owner = Owner::new(105, &binary());
    let seal = |model: &str, output: &str| {
        run([
            "seal",
            text(&owner.at(model)),
            "-o",
            text(&owner.at(output)),
            "--key",
            text(&owner.at("owner.key")),
        ])
    };
    std::fs::write(owner.at("text.onnx"), "this is no protobuf of any kind").expect("written");
    seal("text.onnx", "text.occ").fails_with(1, "text.onnx");
    seal("absent.onnx", "absent.occ").fails_with(1, "absent.onnx");
    assert!(!owner.at("text.occ").exists() && !owner.at("absent.occ").exists());
    seal("model.onnx", "model.occ").fails_with(1, "exists");
    run([
        "seal",
        text(&owner.at("model.onnx")),
        "-o",
        "/dev/full",
        "--key",
        text(&owner.at("owner.key")),
    ])
    .fails_with(1, "/dev/full");
    run([
        "seal",
        text(&owner.at("model.onnx")),
        "-o",
        "x.occ",
        "--key",
        text(&owner.at("owner.key")),
        "--chunk-size",
        "100",
    ])
    .fails_with(2, "--chunk-size");
}

#[test]
fn an_interrupted_seal_leaves_nothing() {
    let owner = Owner::new(106, &binary());
    let folder = owner.at("interrupted");
    std::fs::create_dir(&folder).expect("created");
    // A pipe that never ends is a model that is never done.
    let fifo = owner.at("endless.onnx");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo runs")
            .success()
    );
    let mut child = occlude(&binary())
        .args([
            "seal",
            text(&fifo),
            "-o",
            text(&folder.join("never.occ")),
            "--key",
            text(&owner.at("owner.key")),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    std::thread::sleep(Duration::from_millis(300));
    let _ = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    std::thread::sleep(Duration::from_millis(100));
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(std::fs::read_dir(&folder).expect("listed").count(), 0);
}

#[test]
fn inputs_of_a_wrong_name_shape_or_type_are_told_what_was_expected() {
    let owner = Owner::new(107, &binary());
    let server = owner.serve("model.occ");
    let infer = |name: &str, npy: Vec<u8>| {
        std::fs::write(owner.at("bad.npy"), npy).expect("written");
        run([
            "infer",
            &server.url(),
            "--model",
            "classifier",
            "--policy",
            text(&owner.at("policy.toml")),
            "--input",
            &format!("{name}={}", text(&owner.at("bad.npy"))),
        ])
    };
    let good = model::secret_input(108);
    infer("pixels", model::npy(&good)).fails_with(1, model::INPUT);
    infer(model::INPUT, model::npy(&good[..63])).fails_with(1, "64");
    let integers = String::from_utf8_lossy(&model::npy(&good)[..80]).contains("<f4");
    assert!(integers);
    let mut retyped = model::npy(&good);
    let position = retyped
        .windows(3)
        .position(|window| window == b"<f4")
        .expect("a type");
    retyped[position..position + 3].copy_from_slice(b"<i4");
    infer(model::INPUT, retyped).fails_with(1, "FP32");
    // What a model makes of NaN is the model's affair: here, NaN.
    let said = infer(model::INPUT, model::npy(&vec![f32::NAN; 64]));
    assert_eq!(said.code, 0, "{}", said.err);
    owner
        .infer(&server.url(), "absent.toml", &good)
        .fails_with(1, "absent.toml");
    let said = run([
        "infer",
        &server.url(),
        "--model",
        "unknown",
        "--policy",
        text(&owner.at("policy.toml")),
        "--input",
        &format!("{}={}", model::INPUT, text(&owner.at("bad.npy"))),
    ]);
    said.fails_with(3, "unknown");
}

#[test]
fn empty_oversized_and_unknown_encapsulations_are_refused_and_nothing_is_lost() {
    let owner = Owner::new(109, &binary());
    let address = free_address();
    let mut command = owner.serve_command(
        &binary(),
        "model.occ",
        address,
        &["--maximum-request", "1MiB"],
    );
    let server = Service::start(&mut command, owner.at("small.log"), address);
    let post = |body: Vec<u8>| {
        ask(
            address,
            &Seen {
                method: "POST".to_owned(),
                path_and_query: "/.well-known/occlude/channel".to_owned(),
                content_type: "message/ohttp-req".to_owned(),
                body,
            },
        )
    };
    assert_eq!(post(Vec::new()).status, 400);
    assert_eq!(post(vec![0xff; 5_000]).status, 400);
    assert_eq!(post(vec![0; (1 << 20) + 1]).status, 413);
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(110))
        .success();
}

#[test]
fn a_broker_that_is_down_or_lies_is_told_apart() {
    let owner = Owner::new(111, &binary());
    let serve = |broker: String| {
        let address = free_address();
        let mut command = occlude(&binary());
        command
            .args([
                "serve",
                "--tee",
                "simulated",
                "--listen",
                &address.to_string(),
                "--broker",
                &broker,
                "--model",
            ])
            .arg(owner.at("model.occ"));
        Service::spawn(&mut command, owner.at("lied-to.log"), address).ends()
    };
    serve(format!("http://{}", free_address())).fails_with(4, "broker");
    let liar = man_in_the_middle(|_| Given {
        status: 200,
        content_type: "application/json".to_owned(),
        body: b"{\"nonce\": 7}".to_vec(),
    });
    let said = serve(format!("http://{liar}"));
    assert!(
        matches!(said.code, 1 | 3 | 4) && said.err.contains("broker"),
        "{} {}",
        said.code,
        said.err
    );
}

#[test]
fn a_port_in_use_is_told() {
    let owner = Owner::new(112, &binary());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    let mut command = owner.serve_command(&binary(), "model.occ", address, &[]);
    Service::spawn(&mut command, owner.at("taken.log"), address)
        .ends()
        .fails_with(1, &address.to_string());
    let said = run([
        "broker",
        "--listen",
        &address.to_string(),
        "--database",
        text(&owner.at("taken.db")),
    ]);
    said.fails_with(1, &address.to_string());
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let owner = Owner::new(113, &binary());
    let url = format!("http://{}", free_address());
    owner
        .infer(&url, "policy.toml", &model::secret_input(114))
        .fails_with(4, &url["http://".len()..]);
}

#[test]
fn orders_of_another_owner_are_refused_by_the_broker() {
    let owner = Owner::new(115, &binary());
    let stranger = Owner::new(116, &binary());
    let order = run([
        "broker",
        "withdraw",
        "--model",
        "classifier",
        "--below-version",
        "9",
        "--key",
        text(&stranger.at("owner.key")),
        "--broker",
        &owner.broker.url(),
    ]);
    order.success();
    // It was about the stranger's own models: the owner's still get their key.
    owner.serve("model.occ");
    let foreign = run([
        "broker",
        "add-model",
        text(&owner.at("model.occ")),
        "--key",
        text(&stranger.at("owner.key")),
        "--broker",
        &owner.broker.url(),
    ]);
    foreign.fails_with(3, "owner");
}

#[test]
fn the_settings_file_gives_way_to_flags_and_refuses_what_it_does_not_know() {
    let owner = Owner::new(117, &binary());
    let (from_file, from_flag) = (free_address(), free_address());
    std::fs::write(
        owner.at("occlude.toml"),
        format!(
            "[serve]\nmodel = [\"{}\"]\nbroker = \"{}\"\ntee = \"simulated\"\nlisten = \"{from_file}\"\n",
            text(&owner.at("model.occ")),
            owner.broker.url(),
        ),
    )
    .expect("written");
    let serve = |more: &[&str]| {
        let mut command = occlude(&binary());
        command
            .args(["serve", "--config", text(&owner.at("occlude.toml"))])
            .args(more);
        command
    };
    drop(Service::start(
        &mut serve(&[]),
        owner.at("file.log"),
        from_file,
    ));
    drop(Service::start(
        &mut serve(&["--listen", &from_flag.to_string()]),
        owner.at("flag.log"),
        from_flag,
    ));
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(owner.at("occlude.toml"))
        .expect("opened");
    file.write_all(b"surprise = true\n").expect("written");
    let output = serve(&[]).output().expect("run");
    said(&output).fails_with(2, "surprise");
}

#[test]
fn nothing_is_coloured_and_logs_can_be_json() {
    let owner = Owner::new(118, &binary());
    let address = free_address();
    let mut command =
        owner.serve_command(&binary(), "model.occ", address, &["--log-format", "json"]);
    let server = Service::start(&mut command, owner.at("json.log"), address);
    owner
        .infer(&server.url(), "policy.toml", &model::secret_input(119))
        .success();
    let log = server.log();
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(
        log.lines()
            .any(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{log}"
    );
    let mut error = String::new();
    let mut child = occlude(&binary())
        .args(["verify", "absent.occ", "--owner", &owner.public()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut error)
        .expect("read");
    let _ = child.wait();
    assert!(
        error.contains("absent.occ") && !error.contains('\u{1b}'),
        "{error}"
    );
}
