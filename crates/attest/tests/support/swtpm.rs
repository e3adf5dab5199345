//! A TPM in software, for tests: `swtpm`, listening on sockets in a temporary folder.
//!
//! It is a TPM like any other but for who holds its keys, and its dynamic launch is one
//! that the test makes: it proves that evidence is collected and judged, nothing else.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::print_stdout, reason = "says that a test was skipped")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running TPM; it ends with this.
pub(crate) struct SoftwareTpm {
    folder: tempfile::TempDir,
    process: Child,
}

/// Requests to the emulator itself (swtpm's `tpm_ioctl.h`).
const SET_LOCALITY: u32 = 5;
const HASH_START: u32 = 6;
const HASH_DATA: u32 = 7;
const HASH_END: u32 = 8;

impl SoftwareTpm {
    /// Starts one that was never used before; none if `swtpm` is not installed, which a
    /// test says.
    pub(crate) fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.path().display())])
            .args(["--server", &format!("type=unixio,path={}", at("tpm"))])
            .args(["--ctrl", &format!("type=unixio,path={}", at("control"))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: swtpm is not installed");
                return None;
            }
            Err(error) => panic!("swtpm: {error}"),
        };
        let tpm = Self { folder, process };
        let patience = Instant::now() + Duration::from_secs(30);
        // Sockets are there a moment before anybody listens.
        for socket in [tpm.socket(), tpm.control()] {
            while UnixStream::connect(&socket).is_err() {
                assert!(Instant::now() < patience, "swtpm does not listen");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Some(tpm)
    }

    /// Where it takes commands.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("tpm")
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// Measures a digest into a register, as a boot does.
    pub(crate) fn extend(&self, register: u32, digest: &[u8; 32]) {
        // TPM2_PCR_Extend (part 3, section 22.2), authorized by an empty password.
        let mut body = register.to_be_bytes().to_vec();
        body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        body.extend([0, 0, 0, 1, 0, 0x0b]);
        body.extend(digest);
        let mut command = vec![0x80, 2];
        command.extend((10 + body.len() as u32).to_be_bytes());
        command.extend([0, 0, 1, 0x82]);
        command.extend(body);
        let response = exchange(&self.socket(), &command);
        assert_eq!(response[6..10], [0; 4], "the TPM refuses to extend");
    }

    /// Launches as a processor does: it alone resets registers 17 to 22, measures its own
    /// code into 17, and that code what it starts into 18.
    pub(crate) fn launch(&self, code: &[u8], started: &[u8; 32]) {
        self.ask(HASH_START, &[]);
        let length = (code.len() as u32).to_be_bytes();
        self.ask(HASH_DATA, &[&length[..], code].concat());
        self.ask(HASH_END, &[]);
        self.ask(SET_LOCALITY, &[2]);
        self.extend(18, started);
        self.ask(SET_LOCALITY, &[0]);
    }

    fn ask(&self, request: u32, argument: &[u8]) {
        let mut socket = UnixStream::connect(self.control()).expect("connected");
        let bytes = [&request.to_be_bytes()[..], argument].concat();
        socket.write_all(&bytes).expect("sent");
        let mut result = [0; 4];
        socket.read_exact(&mut result).expect("answered");
        assert_eq!(result, [0; 4], "swtpm refuses request {request}");
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends one command and reads its response.
fn exchange(socket: &Path, command: &[u8]) -> Vec<u8> {
    let mut socket = UnixStream::connect(socket).expect("connected");
    socket.write_all(command).expect("sent");
    let mut response = vec![0; 10];
    socket.read_exact(&mut response).expect("answered");
    let length = u32::from_be_bytes([response[2], response[3], response[4], response[5]]);
    response.resize(length as usize, 0);
    socket.read_exact(&mut response[10..]).expect("answered");
    response
}
