//! The paravisor's report, as its TPM gives it: the hardware's report, and data of the
//! paravisor's whose digest is in that one's report data ("Azure confidential VM guest
//! attestation design", Microsoft; the layout is that of the open `cvm-guest-attestation`
//! tools).
//!
//! Every byte that the hardware's report does not cover has the one value that is known.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::VerifyError;
use crate::tpm::AttestationKey;

/// Bytes before the hardware's report.
const HEAD_BYTES: usize = 32;

/// Bytes of the hardware's report; one of TDX is shorter, and zeros follow.
const HARDWARE_BYTES: usize = 1184;

/// Bytes before the paravisor's data: their length, a version, whose report it is, which
/// hash, and the length again, of the data alone.
const DATA_HEAD_BYTES: usize = 20;

/// The longest report that is read; the TPM's index has 2,600 bytes.
pub(super) const MAX_BYTES: usize = 16 * 1024;

/// The key among the paravisor's that signs quotes.
const ATTESTATION_KEY: &str = "HCLAkPub";

/// A report, not verified.
#[derive(Debug)]
pub(super) struct HclReport<'a> {
    pub(super) hardware: &'a [u8],
    pub(super) kind: HardwareKind,
    hash: u32,
    data: &'a [u8],
}

/// Whose hardware's report is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HardwareKind {
    Snp,
    Tdx,
}

/// What the paravisor says. It is covered by the hardware's report and may grow.
#[derive(Deserialize)]
pub(super) struct RuntimeData {
    keys: Vec<Key>,
    #[serde(rename = "vm-configuration")]
    pub(super) machine: MachineConfiguration,
}

#[derive(Deserialize)]
struct Key {
    kid: String,
    kty: String,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct MachineConfiguration {
    pub(super) console_enabled: bool,
    pub(super) secure_boot: bool,
    #[serde(rename = "vmUniqueId")]
    pub(super) vm_unique_id: String,
}

impl<'a> HclReport<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_BYTES {
            return Err(malformed(&format_args!(
                "{} bytes, it has at most {MAX_BYTES}",
                bytes.len()
            )));
        }
        let fixed = HEAD_BYTES + HARDWARE_BYTES + DATA_HEAD_BYTES;
        let Some((fixed, rest)) = bytes.split_at_checked(fixed) else {
            return Err(malformed(&format_args!(
                "{} bytes, it has at least {fixed}",
                bytes.len()
            )));
        };
        let (head, fixed) = fixed.split_at(HEAD_BYTES);
        let (hardware, data_head) = fixed.split_at(HARDWARE_BYTES);
        let [signature, version, length, request, status, zeros @ ..] = numbers::<8>(head);
        let [data_length, data_version, kind, hash, data_alone] = numbers::<5>(data_head);
        let data = rest.split_at_checked(data_alone as usize);
        let (data, rest) = data.ok_or_else(|| malformed(&"its data are cut"))?;
        let known = signature == u32::from_le_bytes(*b"HCLA")
            && matches!(version, 1 | 2)
            && length as usize == bytes.len() - rest.len()
            && request == 2
            && status == 0
            && zeros == [0; 3]
            && data_length as usize == DATA_HEAD_BYTES + data.len()
            && data_version == 1
            && rest.iter().all(|byte| *byte == 0);
        if !known {
            return Err(malformed(&"its head is not one that is known"));
        }
        let kind = match kind {
            2 => HardwareKind::Snp,
            4 => HardwareKind::Tdx,
            other => {
                return Err(VerifyError::Unsupported {
                    what: format!("a paravisor's report over hardware of kind {other}"),
                });
            }
        };
        Ok(Self {
            hardware,
            kind,
            hash,
            data,
        })
    }

    /// Reads the paravisor's data, if the hardware's report carries their digest and
    /// nothing else.
    pub(super) fn vouched(&self, report_data: &[u8]) -> Result<RuntimeData, VerifyError> {
        let mut digest = match self.hash {
            1 => Sha256::digest(self.data).to_vec(),
            2 => Sha384::digest(self.data).to_vec(),
            3 => Sha512::digest(self.data).to_vec(),
            other => {
                return Err(VerifyError::Unsupported {
                    what: format!("a paravisor's report with hash {other}"),
                });
            }
        };
        digest.resize(64, 0);
        if digest != report_data {
            return Err(VerifyError::EndorsementMismatch {
                what: "other data of the paravisor than came along",
            });
        }
        serde_json::from_slice(self.data).map_err(|error| malformed(&error))
    }
}

impl RuntimeData {
    /// The key of the paravisor's TPM.
    pub(super) fn attestation_key(&self) -> Result<AttestationKey, VerifyError> {
        let mut found = self.keys.iter().filter(|key| key.kid == ATTESTATION_KEY);
        let (Some(key), None) = (found.next(), found.next()) else {
            return Err(malformed(&format_args!(
                "it has not exactly one {ATTESTATION_KEY}"
            )));
        };
        let number = |text: &Option<String>| {
            let bytes = URL_SAFE_NO_PAD.decode(text.as_deref()?).ok()?;
            Some(rsa::BoxedUint::from_be_slice_vartime(&bytes))
        };
        let numbers = number(&key.n).zip(number(&key.e));
        let key = numbers
            .filter(|_| key.kty == "RSA")
            .and_then(|(n, e)| rsa::PublicKey::new(n, e).ok())
            .ok_or_else(|| malformed(&format_args!("{ATTESTATION_KEY} is no key of RSA")))?;
        AttestationKey::from_rsa(key)
    }
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(4)) {
        *number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    numbers
}

fn malformed(why: &dyn std::fmt::Display) -> VerifyError {
    VerifyError::malformed("the paravisor's report", why)
}

#[cfg(test)]
pub(super) mod tests {
    use dcap_qvl::quote::Quote as TdxQuote;

    use super::*;
    use crate::support::{file, folder};
    use crate::tpm::{Quote, Signature};

    /// A report with these data, over nothing.
    pub(crate) fn report(data: &str) -> Vec<u8> {
        let mut report = b"HCLA".to_vec();
        let length = (HEAD_BYTES + HARDWARE_BYTES + DATA_HEAD_BYTES + data.len()) as u32;
        for number in [2, length, 2, 0, 0, 0, 0] {
            report.extend(number.to_le_bytes());
        }
        report.extend([0; HARDWARE_BYTES]);
        let data_length = data.len() as u32;
        for number in [data_length + DATA_HEAD_BYTES as u32, 1, 2, 1, data_length] {
            report.extend(number.to_le_bytes());
        }
        report.extend(data.as_bytes());
        report
    }

    #[test]
    fn each_part_of_a_recorded_machine_of_tdx_leads_to_the_next() {
        if folder().is_none() {
            return;
        }
        let quote = TdxQuote::parse(&file("az-tdx-vtpm/td-quote.bin")).unwrap();
        let hardware = quote.report.as_td10().unwrap();
        let bytes = file("az-tdx-vtpm/hcl-report.bin");
        let report = HclReport::parse(&bytes).unwrap();
        assert_eq!(report.kind, HardwareKind::Tdx);
        let data = report.vouched(&hardware.report_data).unwrap();
        assert_eq!(
            data.machine.vm_unique_id,
            "6332533D-5649-4D02-8AA7-8F64B7C3EE21"
        );
        // Its quote: two byte strings behind their lengths, then the registers.
        let recorded = file("az-tdx-vtpm/quote.bin");
        let (signature, rest) = recorded[8..].split_at(256);
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let message = &rest[8..8 + length];
        let pcrs: Vec<_> = recorded[recorded.len() - 24 * 32..]
            .chunks(32)
            .map(|value| <[u8; 32]>::try_from(value).unwrap().into())
            .collect();
        let signature = Signature::from_rsa(signature).unwrap();
        let key = data.attestation_key().unwrap();
        let quote = Quote::verify(message, &signature, &key, &pcrs).unwrap();
        assert_eq!(quote.qualifying_data, b"challenge");
    }

    #[test]
    fn data_that_the_hardware_does_not_vouch_for_are_refused() {
        let bytes = report("{}");
        let parsed = HclReport::parse(&bytes).unwrap();
        let mut carried = Sha256::digest("{}").to_vec();
        carried.resize(64, 0);
        assert!(matches!(
            parsed.vouched(&carried),
            Err(VerifyError::Malformed { reason }) if reason.contains("missing field `keys`")
        ));
        for place in [0, 31, 32, 63] {
            let mut other = carried.clone();
            other[place] ^= 1;
            assert_eq!(
                parsed.vouched(&other).err(),
                Some(VerifyError::EndorsementMismatch {
                    what: "other data of the paravisor than came along"
                })
            );
        }
        assert!(parsed.vouched(&carried[..32]).is_err());
    }

    #[test]
    fn each_malformation_of_a_report_is_told() {
        let good = report("{}");
        HclReport::parse(&good).unwrap();
        HclReport::parse(&[&good[..], &[0; 100]].concat()).unwrap();
        let refused = |bytes: &[u8]| HclReport::parse(bytes).unwrap_err();
        let said = |reason: &str| VerifyError::Malformed {
            reason: format!("the paravisor's report: {reason}"),
        };
        let head = said("its head is not one that is known");
        // Signature, version, length, request, status, zeros; both lengths of the data, a
        // version, and what follows the end.
        let places = [0, 4, 8, 12, 16, 20, 31, 1216, 1220];
        for place in places {
            let mut other = good.clone();
            other[place] ^= 0x10;
            assert_eq!(refused(&other), head, "{place}");
        }
        assert_eq!(refused(&[&good[..], &[1]].concat()), head);
        let mut hardware = good.clone();
        hardware[1224] = 3;
        assert_eq!(
            refused(&hardware),
            VerifyError::Unsupported {
                what: "a paravisor's report over hardware of kind 3".to_owned()
            }
        );
        let mut hash = good.clone();
        hash[1228] = 4;
        let parsed = HclReport::parse(&hash).unwrap();
        assert_eq!(
            parsed.vouched(&[0; 64]).err(),
            Some(VerifyError::Unsupported {
                what: "a paravisor's report with hash 4".to_owned()
            })
        );
        let mut long = good.clone();
        long[1232] = 3;
        assert_eq!(refused(&long), said("its data are cut"));
        assert_eq!(
            refused(&good[..1235]),
            said("1235 bytes, it has at least 1236")
        );
        assert_eq!(
            refused(&vec![0; MAX_BYTES + 1]),
            said("16385 bytes, it has at most 16384")
        );
    }

    #[test]
    fn a_paravisor_names_one_key_of_rsa() {
        let key = |keys: &str| {
            let text = format!(
                "{{\"keys\":[{keys}],\"vm-configuration\":{{\"console-enabled\":true,\
                 \"secure-boot\":true,\"tpm-enabled\":true,\"vmUniqueId\":\"1\"}}}}"
            );
            let data: RuntimeData = serde_json::from_str(&text).unwrap();
            data.attestation_key().err().unwrap().to_string()
        };
        let one = "{\"kid\":\"HCLAkPub\",\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}";
        let exactly = "the evidence is malformed: the paravisor's report: it has not exactly one \
                       HCLAkPub";
        assert_eq!(key(""), exactly);
        assert_eq!(key(&format!("{one},{one}")), exactly);
        let no_key = "the evidence is malformed: the paravisor's report: HCLAkPub is no key of RSA";
        assert_eq!(key(&one.replace("RSA", "EC")), no_key);
        assert_eq!(key(&one.replace("\"n\"", "\"m\"")), no_key);
        assert_eq!(key(&one.replace("AQAB", "A+AB")), no_key);
        let short = format!("-{}8", "_".repeat(169));
        assert_eq!(
            key(&one.replacen("AQAB", &short, 1)),
            "the evidence cannot be verified by this version: an attestation key of RSA with 1024 \
             bits"
        );
    }
}
