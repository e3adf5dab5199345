//! Talking to a TPM: commands and responses, one after the other, in bytes of the
//! `tpm2-protocol` crate. The device is Linux's resource manager, or the socket of a TPM
//! in software.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tpm2_protocol::basic::{TpmBuffer, TpmHandle};
use tpm2_protocol::constant::TPM_MAX_COMMAND_SIZE;
use tpm2_protocol::data::{TpmRc, TpmRcBase, TpmSt, TpmsAuthCommand};
use tpm2_protocol::frame::{TpmFrame, TpmResponse, TpmUnmarshalBody, tpm_marshal_command};
use tpm2_protocol::{TpmError, TpmWriter};

use crate::CollectError;
use crate::machine::Machine;

/// Bytes of a response's head: tag, length, code.
const HEAD_BYTES: usize = 10;

/// How long a TPM in software may think; the kernel limits hardware itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Codes by which a TPM asks for the same command once more: `TPM_RC_YIELDED`,
/// `TPM_RC_TESTING`, `TPM_RC_RETRY` ("TPM 2.0 Library", part 2, section 6.6.3).
const LATER: [[u8; 4]; 3] = [[0, 0, 9, 0x08], [0, 0, 9, 0x0a], [0, 0, 9, 0x22]];

/// How often that is done, and how long is waited before.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// The authorization by a password, `TPM_RS_PW`.
const PASSWORD: u32 = 0x4000_0009;

/// A TPM that was opened.
pub(crate) struct Device {
    path: PathBuf,
    stream: Stream,
}

enum Stream {
    Device(File),
    Socket(UnixStream),
}

impl Device {
    /// Opens a machine's TPM.
    pub(crate) fn open(machine: &Machine) -> Result<Self, CollectError> {
        let path = machine.tpm();
        let stream = connect(&path).map_err(|source| CollectError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, stream })
    }

    /// Runs a command that needs no authorization.
    pub(crate) fn run<R: TpmUnmarshalBody>(
        &mut self,
        command: &impl TpmFrame,
    ) -> Result<R, CollectError> {
        self.exchange(command, TpmSt::NoSessions, &[])
    }

    /// Runs a command on something that has no password, and says so.
    pub(crate) fn run_authorized<R: TpmUnmarshalBody>(
        &mut self,
        command: &impl TpmFrame,
    ) -> Result<R, CollectError> {
        let nobody = TpmsAuthCommand {
            session_handle: TpmHandle::new(PASSWORD),
            nonce: TpmBuffer::new(),
            session_attributes: tpm2_protocol::data::TpmaSession::default(),
            hmac: TpmBuffer::new(),
        };
        self.exchange(command, TpmSt::Sessions, &[nobody])
    }

    fn exchange<R: TpmUnmarshalBody>(
        &mut self,
        command: &impl TpmFrame,
        tag: TpmSt,
        sessions: &[TpmsAuthCommand],
    ) -> Result<R, CollectError> {
        let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
        let mut writer = TpmWriter::new(&mut buffer);
        tpm_marshal_command(command, tag, sessions, &mut writer)
            .map_err(|error| self.failed(protocol(&error)))?;
        let mut response = self.transfer(writer.as_bytes())?;
        for _ in 0..ATTEMPTS {
            if !LATER.iter().any(|code| response[6..].starts_with(code)) {
                break;
            }
            std::thread::sleep(PAUSE);
            response = self.transfer(writer.as_bytes())?;
        }
        let response =
            TpmResponse::cast(&response).map_err(|error| self.failed(protocol(&error)))?;
        match response.rc() {
            Ok(TpmRc::Fmt0(TpmRcBase::Success)) => {}
            code => {
                let code = code.map_or_else(|error| error.to_string(), |code| format!("{code}"));
                return Err(self.failed(Error::other(format!(
                    "the TPM refuses {}: {code}",
                    command.cc()
                ))));
            }
        }
        response
            .unmarshal()
            .map_err(|error| self.failed(protocol(&error)))
    }

    fn transfer(&mut self, command: &[u8]) -> Result<Vec<u8>, CollectError> {
        let response = match &mut self.stream {
            Stream::Device(file) => transfer(file, command),
            Stream::Socket(socket) => transfer(socket, command),
        };
        response.map_err(|error| self.failed(error))
    }

    /// Why something of this TPM cannot be used.
    pub(crate) fn failed(&self, source: Error) -> CollectError {
        CollectError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// What the crate says of bytes that it cannot write or read.
pub(crate) fn protocol(error: &TpmError) -> Error {
    Error::other(error.to_string())
}

/// Opens a device or a socket. Anything else, such as a file that somebody named by
/// mistake, is not written to.
fn connect(path: &Path) -> std::io::Result<Stream> {
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_socket() && !kind.is_char_device() {
        return Err(Error::other("neither a device nor a socket"));
    }
    if kind.is_socket() {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        return Ok(Stream::Socket(socket));
    }
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(Stream::Device(device))
}

/// Sends a command and reads the response, of which a device gives all at once and a
/// socket as much as it has.
fn transfer(stream: &mut (impl Read + Write), command: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(command)?;
    let mut response = vec![0; TPM_MAX_COMMAND_SIZE];
    let mut length = 0;
    let mut expected = HEAD_BYTES;
    while length < expected {
        let read = stream.read(&mut response[length..])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        length += read;
        if length >= HEAD_BYTES {
            let bytes = [response[2], response[3], response[4], response[5]];
            expected = u32::from_be_bytes(bytes) as usize;
            if expected > response.len() {
                return Err(Error::other(format!("the TPM announces {expected} bytes")));
            }
        }
    }
    response.truncate(length);
    Ok(response)
}
