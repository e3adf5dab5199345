//! Bad input at the command line: each ends in its own exit code and reason, and
//! leaves nothing half-written.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::deployment::{Owner, text};
use crate::support::model;
use crate::support::process::{Service, binary, free_address, occlude, run, said};
use crate::support::wire::{Given, Seen, ask, ask_announcing, man_in_the_middle};

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
    let refused = |bytes: &[u8], reason: &str| {
        let error = format!("{}: {reason}", text(&owner.at("altered.occ")));
        verify(bytes).fails_saying(3, &error);
    };
    refused(
        &whole[..whole.len() - 1],
        "the file is truncated: 1 bytes are missing",
    );
    refused(
        &[&whole[..], &[0]].concat(),
        "the file has 1 bytes too many",
    );
    refused(b"", "not a sealed model: it does not start as one");
    for (position, reason) in [
        (0, "not a sealed model: it does not start as one"),
        (8, "format version 0: this program reads version 1"),
        (100, "byte 100 of the header must be zero"),
        (HEADER - 1, "byte 4095 of the header must be zero"),
        (HEADER, "chunk 0 is not authentic"),
        (HEADER + 5_000, "chunk 0 is not authentic"),
        (
            whole.len() - 1,
            "the list of chunk digests is not the one that the owner signed",
        ),
    ] {
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        refused(&flipped, reason);
    }
}

#[test]
fn a_pipe_is_no_container_and_nothing_waits_for_its_writer() {
    let owner = Owner::new(125, &binary());
    let made = Command::new("mkfifo").arg(owner.at("pipe")).status();
    assert!(made.expect("mkfifo runs").success());
    let (pipe, key) = (owner.at("pipe"), owner.at("owner.key"));
    let error = format!(
        "{}: a folder, a pipe or a character device, not a regular file or a disk",
        text(&pipe)
    );
    let (pipe, key) = (text(&pipe), text(&key));
    run(["verify", pipe, "--key", key]).fails_saying(1, &error);
    run(["inspect", pipe]).fails_saying(1, &error);
    run(["unseal", pipe, "-o", "never.onnx", "--key", key]).fails_saying(1, &error);
    owner.serve_refused(&binary(), "pipe", &[]).fails_saying(
        1,
        "pipe: a folder, a pipe or a character device, not a regular file or a disk",
    );
}

#[test]
fn a_wrong_owner_and_a_wrong_key_are_told() {
    let owner = Owner::new(102, &binary());
    let stranger = Owner::new(103, &binary());
    let container = owner.at("model.occ");
    let error = format!(
        "{}: the model belongs to {}, not to {}",
        text(&container),
        owner.public(),
        stranger.public()
    );
    run(["verify", text(&container), "--owner", &stranger.public()]).fails_saying(3, &error);
    run([
        "unseal",
        text(&container),
        "-o",
        text(&owner.at("back.onnx")),
        "--key",
        text(&stranger.at("owner.key")),
    ])
    .fails_saying(3, &error);
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
    let at = |name: &str| text(&owner.at(name)).to_owned();
    seal("text.onnx", "text.occ").fails_saying(
        1,
        &format!(
            "{}: not an ONNX model: an unknown wire type at byte 0",
            at("text.onnx")
        ),
    );
    seal("absent.onnx", "absent.occ").fails_saying(
        1,
        &format!(
            "{}: No such file or directory (os error 2)",
            at("absent.onnx")
        ),
    );
    assert!(!owner.at("text.occ").exists() && !owner.at("absent.occ").exists());
    seal("model.onnx", "model.occ").fails_saying(
        1,
        &format!("{} exists already and is not overwritten", at("model.occ")),
    );
    run([
        "seal",
        text(&owner.at("model.onnx")),
        "-o",
        "/dev/full",
        "--key",
        text(&owner.at("owner.key")),
    ])
    .fails_saying(
        1,
        "/dev/full: writing the sealed model: No space left on device (os error 28)",
    );
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
    .fails_saying(
        2,
        "--chunk-size: a chunk of 100 bytes: expected a power of two from 4 KiB to 16 MiB",
    );
}

#[test]
fn an_interrupted_seal_leaves_nothing() {
    let owner = Owner::new(106, &binary());
    let model = model::external(owner.folder(), 2 << 30);
    for signal in ["-INT", "-KILL"] {
        let folder = owner.at(signal);
        std::fs::create_dir(&folder).expect("created");
        // Whoever starts the tests in the background of a script has SIGINT ignored.
        let mut child = occlude(Path::new("env"))
            .arg("--default-signal=INT")
            .arg(binary())
            .args(["seal", text(&model), "-o", text(&folder.join("never.occ"))])
            .args(["--key", text(&owner.at("owner.key"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        // What it has written so far has no name yet, or a temporary one.
        let under_way = || {
            let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", child.id())) else {
                return true; // Only root may look; it is stopped soon anyway.
            };
            files.flatten().any(|file| {
                let inside =
                    std::fs::read_link(file.path()).is_ok_and(|path| path.starts_with(&folder));
                inside && std::fs::metadata(file.path()).is_ok_and(|file| file.len() > 0)
            })
        };
        let begun = Instant::now();
        while !under_way() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it does not begin to write"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(
            child.try_wait().expect("asked").is_none(),
            "it is still sealing"
        );
        let status = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
        let status = child.wait().expect("it ends");
        assert!(!status.success(), "it was interrupted");
        assert_eq!(
            std::fs::read_dir(&folder).expect("listed").count(),
            0,
            "after {signal}"
        );
    }
}

#[test]
fn sealing_verifying_and_unsealing_take_constant_memory() {
    let owner = Owner::new(120, &binary());
    let model = model::external(owner.folder(), 768 << 20);
    let key = owner.at("owner.key");
    let (sealed, back) = (owner.at("large.occ"), owner.at("back.onnx"));
    let commands = [
        vec![
            "seal",
            text(&model),
            "-o",
            text(&sealed),
            "--key",
            text(&key),
        ],
        vec!["verify", text(&sealed), "--key", text(&key)],
        vec![
            "unseal",
            text(&sealed),
            "-o",
            text(&back),
            "--key",
            text(&key),
        ],
    ];
    for command in commands {
        let peak = peak_memory(occlude(&binary()).args(&command));
        assert!(peak < 100 << 20, "{} takes {peak} bytes", command[0]);
    }
}

/// The highest resident memory of a command that must succeed, in bytes.
fn peak_memory(command: &mut Command) -> u64 {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let mut peak = 0;
    loop {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let resident = status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        peak = peak.max(resident.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().expect("asked") {
            assert!(status.success(), "{command:?}");
            assert!(peak > 0, "memory was measured");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_id_is_random_unless_the_owner_names_it() {
    let owner = Owner::new(121, &binary());
    let seal = |output: &str| {
        let printed = run([
            "seal",
            text(&owner.at("model.onnx")),
            "-o",
            text(&owner.at(output)),
            "--key",
            text(&owner.at("owner.key")),
            "--json",
        ])
        .success();
        let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        json["id"].as_str().expect("an id").to_owned()
    };
    let (first, second) = (seal("first.occ"), seal("second.occ"));
    assert_ne!(first, second);
    assert!(
        first.starts_with("model-") && !first.contains("first"),
        "{first}"
    );
}

#[test]
fn a_reader_that_has_had_enough_ends_a_command_quietly() {
    let owner = Owner::new(122, &binary());
    for command in ["completions bash", "--help", "inspect model.occ --json"] {
        let script = format!(
            "{} {command} | true; echo ${{PIPESTATUS[0]}}",
            text(&binary())
        );
        let output = Command::new("bash")
            .current_dir(owner.folder())
            .args(["-c", &script])
            .output()
            .expect("bash runs");
        let said = said(&output);
        assert_eq!((said.out.trim(), said.err.trim()), ("0", ""), "{command}");
    }
}

#[test]
fn a_rolled_back_audit_log_shows_against_an_earlier_head() {
    let owner = Owner::new(123, &binary());
    let head = owner.at("head.json");
    let audit = |owner: &Owner, option: &str| {
        let mut arguments = owner.order(&["audit", option]);
        arguments.push(text(&head).to_owned());
        // The option's value stands right behind it.
        let value = arguments.pop().expect("just pushed");
        arguments.insert(3, value);
        run(arguments)
    };
    audit(&owner, "--export-head").success();
    run(owner.order(&["withdraw", "--model", "other", "--below-version", "2"])).success();
    let text_of_log = audit(&owner, "--since").success();
    assert!(
        text_of_log.contains("withdrawn") && text_of_log.contains("model-added"),
        "{text_of_log}"
    );
    // Another broker's log does not continue this one, as a rolled-back one would not.
    let other = Owner::new(124, &binary());
    audit(&other, "--since").fails_saying(3, "comparing with the earlier head: the log is signed by another broker than the earlier head");
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
    infer("pixels", model::npy(&good)).fails_saying(
        1,
        "400 Bad Request: the model has no input `pixels`; its inputs are `pixel_intensities`",
    );
    infer(model::INPUT, model::npy(&good[..63])).fails_saying(
        1,
        "400 Bad Request: the input `pixel_intensities` takes shape [any, 64], not [1, 63]",
    );
    let integers = String::from_utf8_lossy(&model::npy(&good)[..80]).contains("<f4");
    assert!(integers);
    let mut retyped = model::npy(&good);
    let position = retyped
        .windows(3)
        .position(|window| window == b"<f4")
        .expect("a type");
    retyped[position..position + 3].copy_from_slice(b"<i4");
    infer(model::INPUT, retyped).fails_saying(
        1,
        "400 Bad Request: the input `pixel_intensities` takes FP32, not INT32",
    );
    // What a model makes of NaN is the model's affair: here, NaN, null in JSON.
    let printed = owner
        .infer(&server.url(), "policy.toml", &[f32::NAN; 64])
        .success();
    let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(
        json[model::OUTPUT]["data"],
        serde_json::json!(vec![Option::<f32>::None; 10])
    );
    owner
        .infer(&server.url(), "absent.toml", &good)
        .fails_saying(
            1,
            &format!(
                "{}: No such file or directory (os error 2)",
                text(&owner.at("absent.toml"))
            ),
        );
    // Used wrongly, which is seen before anything is sent.
    owner
        .infer("ftp://host", "policy.toml", &good)
        .fails_saying(
            2,
            "ftp://host/ is not a server's address: expected http://HOST or https://HOST",
        );
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
    said.fails_saying(
        3,
        &format!(
            "nothing was sent to {}/: model unknown is not in the policy",
            server.url()
        ),
    );
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
    let channel = "/.well-known/occlude/channel";
    let request = |body| Seen::new("POST", channel, "message/ohttp-req", body);
    let post = |body: Vec<u8>| ask(address, &request(body));
    let refused = |given: Given, status: u16, reason: &str| {
        let body = String::from_utf8_lossy(&given.body).into_owned();
        assert_eq!((given.status, &*body), (status, reason));
    };
    refused(
        post(Vec::new()),
        400,
        r#"{"error":"the encapsulated request has 0 bytes, the shortest possible has 1143"}"#,
    );
    refused(
        post(vec![0xff; 5_000]),
        400,
        r#"{"error":"no key 255 is in use here","type":"https://iana.org/assignments/http-problem-types#ohttp-key"}"#,
    );
    let oversized = ask_announcing(address, &request(Vec::new()), (1 << 20) + 1);
    refused(
        oversized,
        413,
        r#"{"error":"the encapsulated request is longer than 1048576 bytes"}"#,
    );
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
    let nobody = format!("http://{}", free_address());
    serve(nobody.clone()).fails_saying(
        4,
        &format!(
            "the key of model classifier version 1 is not to be had from the broker {nobody}/: the \
             broker is unavailable: error sending request for url ({nobody}/occlude/v0/auth): \
             client error (Connect): tcp connect error: Connection refused (os error 111)"
        ),
    );
    let lie = b"{\"nonce\": 7}".to_vec();
    let liar = man_in_the_middle(move |_| Given::new(200, "application/json", lie.clone()));
    serve(format!("http://{liar}")).fails_saying(4, &format!(
            "the key of model classifier version 1 is not to be had from the broker http://{liar}/: \
             the broker's answer to the challenge is malformed: invalid type: integer `7`, expected \
             a string at line 1 column 11"
        ));
}

#[test]
fn a_port_in_use_is_told() {
    let owner = Owner::new(112, &binary());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    let in_use = format!("cannot listen on {address}: Address already in use (os error 98)");
    let mut command = owner.serve_command(&binary(), "model.occ", address, &[]);
    Service::spawn(&mut command, owner.at("taken.log"), address)
        .ends()
        .fails_saying(1, &in_use);
    let said = run([
        "broker",
        "--listen",
        &address.to_string(),
        "--database",
        text(&owner.at("taken.db")),
    ]);
    said.fails_saying(1, &in_use);
    assert!(
        !owner.at("taken.db").exists() && !owner.at("taken.db.master-key").exists(),
        "a broker without a port makes no database"
    );
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let owner = Owner::new(113, &binary());
    let url = format!("http://{}", free_address());
    owner
        .infer(&url, "policy.toml", &model::secret_input(114))
        .fails_saying(
            4,
            &format!(
                "{url}/ is unavailable: no connection: client error (Connect): tcp connect error: \
             Connection refused (os error 111)"
            ),
        );
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
    foreign.fails_saying(
        3,
        &format!(
            "{}: the model belongs to {}, not to {}",
            text(&owner.at("model.occ")),
            owner.public(),
            stranger.public()
        ),
    );
}

#[test]
fn flags_win_over_environment_and_file_and_unknown_settings_are_refused() {
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
    // The environment wins over the file, and a flag over both.
    let from_environment = free_address();
    let mut command = serve(&[]);
    command.env("OCCLUDE_LISTEN", from_environment.to_string());
    drop(Service::start(
        &mut command,
        owner.at("environment.log"),
        from_environment,
    ));
    let mut command = serve(&["--listen", &from_flag.to_string()]);
    command.env("OCCLUDE_LISTEN", from_environment.to_string());
    drop(Service::start(&mut command, owner.at("all.log"), from_flag));
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(owner.at("occlude.toml"))
        .expect("opened");
    file.write_all(b"surprise = true\n").expect("written");
    let output = serve(&[]).output().expect("run");
    said(&output).fails_with(
        2,
        "unknown field `surprise`, expected one of `model`, `broker`, ",
    );
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
