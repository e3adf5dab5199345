//! The image of a virtual machine, booted with a TPM in software: what the firmware and the
//! kernel measured decides whether it gets a key.
#![allow(clippy::print_stdout, reason = "says that a test was skipped")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::deployment::{Owner, text};
use crate::support::model::{self, assert_close, expected, probabilities};
use crate::support::process::{Service, binary, free_address, run};

/// A boot takes some twenty seconds where the processor is emulated, on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// A virtual machine that is started again and again, with one TPM.
struct VirtualMachine {
    image: PathBuf,
    folder: PathBuf,
    disk: PathBuf,
    broker: SocketAddr,
}

/// One boot of it.
struct Boot {
    tpm: Child,
    emulator: Service,
}

/// The image that `make image` made; none if there is none, which a test says.
fn image() -> Option<PathBuf> {
    let image = std::env::var_os("OCCLUDE_IMAGE").map(PathBuf::from);
    let image = image.filter(|folder| folder.join("initrd").exists());
    if image.is_none() {
        println!("skipped: there is no image; `make image` makes it");
    }
    image
}

impl VirtualMachine {
    /// None if something that it needs is not here, which a test says.
    fn of(owner: &Owner, container: &str) -> Option<Self> {
        let image = image()?;
        for program in ["swtpm", "qemu-system-x86_64"] {
            let mut command = Command::new(program);
            let silent = command.arg("--version").stdout(Stdio::null()).status();
            if silent.is_err() {
                println!("skipped: {program} is not installed");
                return None;
            }
        }
        Some(Self {
            image,
            folder: owner.folder().to_owned(),
            disk: owner.at(container),
            broker: owner.broker.address,
        })
    }

    fn command_line(&self) -> String {
        // The host's loopback, as QEMU's network shows it to its guest.
        format!(
            "console=ttyS0 panic=-1 OCCLUDE_TEE=tpm OCCLUDE_BROKER=http://10.0.2.2:{} \
             OCCLUDE_LISTEN=0.0.0.0:8000 -- --model /dev/vda",
            self.broker.port()
        )
    }

    fn boot(&self, command_line: &str) -> Boot {
        let address = free_address();
        let at = |name: &str| text(&self.folder.join(name)).to_owned();
        let of_image = |name: &str| text(&self.image.join(name)).to_owned();
        let control = at("swtpm");
        let _ = std::fs::remove_file(&control);
        let tpm = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate", &format!("dir={}", text(&self.folder))])
            .args(["--ctrl", &format!("type=unixio,path={control}")])
            .spawn()
            .expect("swtpm starts");
        wait("swtpm", || Path::new(&control).exists());
        let port = address.port();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "1G", "-nodefaults", "-no-reboot", "-nographic"])
            .args(["-serial", "stdio", "-bios", &of_image("firmware-tpm.fd")])
            .args(["-kernel", &of_image("kernel")])
            .args(["-initrd", &of_image("initrd")])
            .args(["-append", command_line])
            .arg("-netdev")
            .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:8000"))
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-drive")
            .arg(format!(
                "file={},format=raw,if=virtio,readonly=on",
                text(&self.disk)
            ))
            .args(["-chardev", &format!("socket,id=control,path={control}")])
            .args(["-tpmdev", "emulator,id=tpm,chardev=control"])
            .args(["-device", "tpm-tis,tpmdev=tpm"]);
        let log = self.folder.join(format!("console-{port}.log"));
        let emulator = Service::spawn(&mut command, log, address);
        Boot { tpm, emulator }
    }

    /// What the console says of a boot that gets no key.
    fn refused(&self, command_line: &str) -> String {
        let boot = self.boot(command_line);
        wait("the end of the machine", || {
            boot.emulator.log().contains("reboot: Power down")
        });
        let console = boot.emulator.log();
        assert!(
            console.contains("serve ended with exit code 3"),
            "{console}"
        );
        console
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = self.tpm.kill();
        let _ = self.tpm.wait();
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < BOOT_LIMIT, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Evidence that the machine printed because it was given no key.
fn evidence_in(console: &str) -> Value {
    let line = console.lines().find(|line| line.starts_with("{\""));
    let line = line.unwrap_or_else(|| panic!("no evidence: {console}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {console}"))
}

#[test]
fn the_image_serves_as_it_was_measured_and_gets_no_key_with_another_command_line() {
    let owner = Owner::new(96, &binary());
    let Some(machine) = VirtualMachine::of(&owner, "model.occ") else {
        return;
    };
    let command_line = machine.command_line();

    // The owner of `Owner::new` accepts the simulated TEE alone. What is printed then is
    // what the owner writes a policy from, having booted the image on a machine of theirs.
    let evidence = evidence_in(&machine.refused(&command_line));
    let log = evidence["body"]["event_log"].as_str();
    let log = log.unwrap_or_else(|| panic!("no log: {evidence}"));
    let log = BASE64_STANDARD.decode(log).expect("base64");
    let initrd = std::fs::read(machine.image.join("initrd")).expect("the image");
    let digest: [u8; 32] = Sha256::digest(&initrd).into();
    assert!(
        log.windows(32).any(|window| window == digest),
        "the initial file system was measured"
    );
    std::fs::write(owner.at("evidence.json"), evidence.to_string()).expect("written");
    std::fs::write(owner.at("event-log"), &log).expect("written");
    std::fs::write(owner.at("any.toml"), "format = 1\nreviewed = true\n").expect("written");
    let shown = run([
        "attest",
        "verify",
        "--evidence",
        text(&owner.at("evidence.json")),
        "--policy",
        text(&owner.at("any.toml")),
        "--json",
    ]);
    let claims: Value = serde_json::from_str(&shown.out).expect("JSON");
    let key = claims["platform"]["tpm"]["attestation-key"].as_str();
    let measured = run([
        "attest",
        "measure",
        "tpm",
        "--event-log",
        text(&owner.at("event-log")),
        "--attestation-key",
        key.expect("a key"),
        "--owner",
        &owner.public(),
    ])
    .success();
    let policy = measured.replace("reviewed = false", "reviewed = true");
    std::fs::write(owner.at("measured.toml"), &policy).expect("written");
    let service = policy.find("[service").expect("owners");
    std::fs::write(owner.at("broker.toml"), &policy[..service]).expect("written");
    owner.set_policy("broker.toml").success();

    let boot = machine.boot(&command_line);
    let url = boot.emulator.url();
    wait("the server in the machine", || {
        let console = boot.emulator.log();
        assert!(!console.contains("serve ended"), "{console}");
        run(["attest", "show", &url]).code == 0
    });
    let input = model::secret_input(97);
    let answer = owner.infer(&url, "measured.toml", &input).success();
    assert_close(&probabilities(&answer), &expected(&owner.model, &input));
    drop(boot);

    let console = machine.refused(&format!("quiet {command_line}"));
    assert!(console.contains("for tpm.pcrs"), "{console}");
}

/// The reference is the tool of AMD's users, `sev-snp-measure`, from its Python package.
#[test]
fn a_launch_of_the_image_measures_what_another_tool_says() {
    let Some(image) = image() else {
        return;
    };
    let python = std::env::var_os("OCCLUDE_PYTHON").map(PathBuf::from);
    let Some(python) = python.filter(|path| path.exists()) else {
        println!("skipped: no Python environment (OCCLUDE_PYTHON); `make test` makes one");
        return;
    };
    let file = |name: &str| text(&image.join(name)).to_owned();
    let command_line = "console=ttyS0 panic=-1 OCCLUDE_TEE=snp OCCLUDE_MODEL=/dev/vda";
    for (processors, kind) in [("1", "EPYC-v4"), ("4", "EPYC-Genoa")] {
        let printed = run([
            "attest",
            "measure",
            "snp",
            "--firmware",
            &file("firmware-snp.fd"),
            "--kernel",
            &file("kernel"),
            "--initrd",
            &file("initrd"),
            "--append",
            command_line,
            "--processors",
            processors,
            "--processor-type",
            kind,
        ])
        .success();
        let other = Command::new(python.with_file_name("sev-snp-measure"))
            .args(["--mode", "snp", "--guest-features", "1"])
            .args(["--vcpus", processors, "--vcpu-type", kind])
            .args(["--ovmf", &file("firmware-snp.fd")])
            .args(["--kernel", &file("kernel"), "--initrd", &file("initrd")])
            .args(["--append", command_line])
            .output()
            .expect("the other tool runs");
        let expected = String::from_utf8_lossy(&other.stdout).trim().to_owned();
        assert_eq!(expected.len(), 96, "{other:?}");
        let line = format!("measurements = [\"{expected}\"]");
        assert!(printed.contains(&line), "{line} in {printed}");
    }
}
