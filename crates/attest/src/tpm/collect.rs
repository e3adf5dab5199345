//! Collecting a quote, from the machine's TPM.
//!
//! It is signed by a key that the TPM makes anew from its endorsement seed each time, on
//! P-256, restricted to signing what the TPM itself says. So it is the same key until the
//! TPM is cleared, and nothing has to be stored.

use std::io::Error;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::pkcs8::EncodePublicKey;
use tpm2_protocol::basic::{TpmBuffer, TpmHandle, TpmList};
use tpm2_protocol::data::{
    Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmEccCurve, TpmaObject, TpmlPcrSelection,
    TpmsEccParms, TpmsEccPoint, TpmsPcrSelect, TpmsPcrSelection, TpmsSchemeHash,
    TpmsSensitiveCreate, TpmtEccScheme, TpmtKdfScheme, TpmtPublic, TpmtSigScheme, TpmtSignature,
    TpmtSymDefObject, TpmuAsymScheme, TpmuPublicId, TpmuPublicParms,
};
use tpm2_protocol::frame::{
    TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmFlushContextCommand,
    TpmFlushContextResponse, TpmPcrReadCommand, TpmPcrReadResponse, TpmQuoteCommand,
    TpmQuoteResponse,
};
use tpm2_protocol::{TpmMarshal, TpmWriter};

use super::TpmDigest;
use super::device::{Device, protocol};
use super::verify::{Body, QuoteBody};
use crate::binding::BindingForm;
use crate::machine::Machine;
use crate::{Binding, CollectError, Evidence, TeeKind};

/// The registers of a TPM.
const REGISTERS: u8 = 24;

/// How many registers a TPM gives at once, at most.
const AT_ONCE: u8 = 8;

/// How often registers are read that change meanwhile.
const ATTEMPTS: usize = 5;

/// Keys that are made from the TPM's endorsement seed, `TPM_RH_ENDORSEMENT`.
const ENDORSEMENT: u32 = 0x4000_000b;

/// Where the kernel shows the firmware's log of the boot.
const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// The longest log that travels along: a whole answer has at most 256 KiB.
const MAX_LOG_BYTES: usize = 128 * 1024;

/// Whether this machine's TPM can be asked.
pub(crate) fn check_present(machine: &Machine) -> Result<(), CollectError> {
    check_present_of(machine, TeeKind::Tpm)
}

/// The same, for any kind of evidence that is a TPM's quote.
pub(crate) fn check_present_of(machine: &Machine, tee: TeeKind) -> Result<(), CollectError> {
    let path = machine.tpm();
    if path.exists() {
        return Ok(());
    }
    Err(CollectError::NotPresent {
        tee,
        missing: format!("{} is not there", path.display()),
    })
}

pub(crate) fn collect(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    collect_of_kind(machine, binding, TeeKind::Tpm)
}

/// Evidence of any kind that is a TPM's quote.
pub(crate) fn collect_of_kind(
    machine: &Machine,
    binding: &Binding,
    tee: TeeKind,
) -> Result<Evidence, CollectError> {
    check_present_of(machine, tee)?;
    let mut device = Device::open(machine)?;
    let key = AttestationKey::make(&mut device)?;
    let quoted = quote(
        &mut device,
        key.handle,
        &binding.in_form(BindingForm::Digest),
    );
    key.forget(&mut device)?;
    let quoted = quoted?;
    let body = Body {
        ak_public: STANDARD.encode(&key.public),
        ak_certificates: Vec::new(),
        event_log: event_log(machine).map(|log| STANDARD.encode(log)),
        tpm_quote: QuoteBody {
            message: STANDARD.encode(quoted.message),
            pcrs: quoted.pcrs,
            signature: STANDARD.encode(bytes_of(&device, &quoted.signature)?),
        },
    };
    let body = serde_json::to_value(body).expect("a quote has a JSON form");
    Ok(Evidence::new(tee, body))
}

/// A key in the TPM.
struct AttestationKey {
    handle: TpmHandle,
    /// `SubjectPublicKeyInfo`.
    public: Vec<u8>,
}

impl AttestationKey {
    fn make(device: &mut Device) -> Result<Self, CollectError> {
        let made: TpmCreatePrimaryResponse = device.run_authorized(&TpmCreatePrimaryCommand {
            handles: [TpmHandle::new(ENDORSEMENT)],
            in_sensitive: Tpm2bSensitiveCreate::from(TpmsSensitiveCreate::default()),
            in_public: Tpm2bPublic::from(template()),
            outside_info: TpmBuffer::new(),
            creation_pcr: TpmList::new(),
        })?;
        let TpmuPublicId::Ecc(point) = &made.out_public.unique else {
            return Err(device.failed(Error::other("the TPM made another kind of key")));
        };
        let mut encoded = vec![4];
        for coordinate in [&point.x, &point.y] {
            // Zeros in front are left out by some.
            encoded.extend(vec![0; 32_usize.saturating_sub(coordinate.len())]);
            encoded.extend(coordinate.iter());
        }
        let public = p256::PublicKey::from_sec1_bytes(&encoded)
            .ok()
            .and_then(|key| key.to_public_key_der().ok())
            .ok_or_else(|| device.failed(Error::other("the TPM's key is not on its curve")))?;
        Ok(Self {
            handle: made.handles[0],
            public: public.into_vec(),
        })
    }

    fn forget(&self, device: &mut Device) -> Result<(), CollectError> {
        let _: TpmFlushContextResponse = device.run(&TpmFlushContextCommand {
            flush_handle: self.handle,
            handles: [],
        })?;
        Ok(())
    }
}

/// A key on P-256 that cannot leave the TPM and signs with ECDSA what the TPM says.
fn template() -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA
            | TpmaObject::RESTRICTED
            | TpmaObject::SIGN_ENCRYPT,
        auth_policy: TpmBuffer::new(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric: TpmtSymDefObject::default(),
            scheme: TpmtEccScheme {
                scheme: TpmAlgId::Ecdsa,
                details: TpmuAsymScheme::Hash(TpmsSchemeHash {
                    hash_alg: TpmAlgId::Sha256,
                }),
            },
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint::default()),
    }
}

/// A quote, not verified.
pub(crate) struct Quoted {
    pub(crate) message: Vec<u8>,
    pub(crate) signature: TpmtSignature,
    pub(crate) pcrs: Vec<TpmDigest>,
}

/// Quotes all registers, under a key that is in the TPM. They are read before and after,
/// and again if they changed meanwhile.
pub(crate) fn quote(
    device: &mut Device,
    key: TpmHandle,
    qualifying_data: &[u8],
) -> Result<Quoted, CollectError> {
    let all: Vec<u8> = (0..REGISTERS).collect();
    let mut pcrs = read_registers(device)?;
    for _ in 0..ATTEMPTS {
        let command = TpmQuoteCommand {
            handles: [key],
            qualifying_data: TpmBuffer::try_from(qualifying_data)
                .map_err(|error| device.failed(protocol(&error)))?,
            in_scheme: TpmtSigScheme::default(),
            pcr_select: select(&all),
        };
        let quoted: TpmQuoteResponse = device.run_authorized(&command)?;
        let after = read_registers(device)?;
        if after == pcrs {
            return Ok(Quoted {
                message: bytes_of(device, &*quoted.quoted)?,
                signature: quoted.signature,
                pcrs,
            });
        }
        pcrs = after;
    }
    Err(device.failed(Error::other("its registers go on changing")))
}

fn read_registers(device: &mut Device) -> Result<Vec<TpmDigest>, CollectError> {
    let mut values = Vec::new();
    while values.len() < usize::from(REGISTERS) {
        let next = values.len() as u8;
        let wanted: Vec<u8> = (next..REGISTERS.min(next + AT_ONCE)).collect();
        let read: TpmPcrReadResponse = device.run(&TpmPcrReadCommand {
            handles: [],
            pcr_selection_in: select(&wanted),
        })?;
        let before = values.len();
        for value in read.pcr_values.iter() {
            let value: Result<[u8; 32], _> = value[..].try_into();
            values.push(value.map(TpmDigest::from).map_err(|_| {
                device.failed(Error::other("a register of another length came back"))
            })?);
        }
        if values.len() == before || values.len() > usize::from(REGISTERS) {
            return Err(device.failed(Error::other("it has no registers of SHA-256")));
        }
    }
    Ok(values)
}

/// Registers of the SHA-256 bank.
fn select(registers: &[u8]) -> TpmlPcrSelection {
    let mut bits = [0_u8; REGISTERS as usize / 8];
    for register in registers {
        bits[usize::from(register / 8)] |= 1 << (register % 8);
    }
    let mut selection = TpmList::new();
    let one = TpmsPcrSelection {
        hash: TpmAlgId::Sha256,
        pcr_select: TpmsPcrSelect::try_from(&bits[..]).expect("three bytes fit"),
    };
    selection.try_push(one).expect("one selection fits");
    selection
}

fn bytes_of(device: &Device, value: &impl TpmMarshal) -> Result<Vec<u8>, CollectError> {
    let mut buffer = [0; tpm2_protocol::constant::TPM_MAX_COMMAND_SIZE];
    let mut writer = TpmWriter::new(&mut buffer);
    value
        .marshal(&mut writer)
        .map_err(|error| device.failed(protocol(&error)))?;
    Ok(writer.as_bytes().to_vec())
}

/// The firmware's log, if this process may read it: evidence holds without one.
fn event_log(machine: &Machine) -> Option<Vec<u8>> {
    let log = std::fs::read(machine.path(EVENT_LOG)).ok()?;
    (!log.is_empty() && log.len() <= MAX_LOG_BYTES).then_some(log)
}
