//! Collecting inside the guest: the paravisor's report from its TPM's storage, a quote of
//! that TPM, and what the host alone can fetch from the machine's metadata service: AMD's
//! certificate of the chip's key, or Intel's quote.

use std::io::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::data::TpmuSignature;

use super::hcl::{HardwareKind, HclReport};
use super::verify::{SnpBody, TdxBody};
use crate::binding::BindingForm;
use crate::machine::Machine;
use crate::tpm::device::Device;
use crate::tpm::{QuoteBody, Quoted, quote};
use crate::{Binding, CollectError, Evidence, TeeKind};

/// Where the paravisor's report is in its TPM.
const REPORT_INDEX: u32 = 0x0140_0001;

/// What the next report says as the guest's own data: 64 bytes. Trustee compares them.
const USER_DATA_INDEX: u32 = 0x0140_0002;
const USER_DATA_BYTES: usize = 64;

/// The key that the paravisor's report vouches for.
const ATTESTATION_KEY: u32 = 0x8100_0003;

/// Bytes of TDX's report, which the hardware made for the machine itself.
const TD_REPORT_BYTES: usize = 1024;

/// How long the metadata service may take, and how much it may answer.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: u64 = 256 * 1024;

/// Below the metadata service's address.
const CERTIFICATES: &str = "/metadata/THIM/amd/certification";
const QUOTE: &str = "/acc/tdquote";

/// The paravisor's report depends on what was written for it: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn check_present_snp(machine: &Machine) -> Result<(), CollectError> {
    check_present(machine, HardwareKind::Snp)
}

pub(crate) fn check_present_tdx(machine: &Machine) -> Result<(), CollectError> {
    check_present(machine, HardwareKind::Tdx)
}

/// Whether this machine's TPM is a paravisor's over that hardware.
fn check_present(machine: &Machine, kind: HardwareKind) -> Result<(), CollectError> {
    let path = machine.tpm();
    let missing = |missing: String| CollectError::NotPresent {
        tee: kind.tee(),
        missing,
    };
    if !path.exists() {
        return Err(missing(format!("{} is not there", path.display())));
    }
    let report = Device::open(machine)?.read_index(REPORT_INDEX);
    let report =
        report.map_err(|_| missing(format!("{} has no report of a paravisor", path.display())))?;
    of_kind(&report, kind).map(|_| ())
}

/// A paravisor's report, if it is over that hardware.
fn of_kind(report: &[u8], kind: HardwareKind) -> Result<HclReport<'_>, CollectError> {
    match HclReport::parse(report) {
        Ok(report) if report.kind == kind => Ok(report),
        Ok(report) => Err(CollectError::NotPresent {
            tee: kind.tee(),
            missing: format!("the paravisor runs on {:?}", report.kind),
        }),
        Err(source) => Err(CollectError::Unusable { source }),
    }
}

pub(crate) fn collect_snp(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    let guest = collect(machine, binding)?;
    of_kind(&guest.report, HardwareKind::Snp)?;
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Certificates {
        vcek_cert: String,
    }
    let answer: Certificates = ask(machine, CERTIFICATES, None::<()>)?;
    let vcek = CertificateDer::from_pem_slice(answer.vcek_cert.as_bytes())
        .map_err(|_| unusable(machine, CERTIFICATES, "no certificate in PEM"))?;
    Ok(evidence(
        TeeKind::AzSnpVtpm,
        &SnpBody {
            hcl_report: URL_SAFE.encode(guest.report),
            tpm_quote: guest.quote,
            vcek: Some(URL_SAFE.encode(vcek)),
            version: 2,
        },
    ))
}

pub(crate) fn collect_tdx(machine: &Machine, binding: &Binding) -> Result<Evidence, CollectError> {
    let guest = collect(machine, binding)?;
    #[derive(Serialize)]
    struct Question {
        report: String,
    }
    #[derive(Deserialize)]
    struct Answer {
        quote: String,
    }
    let hardware = of_kind(&guest.report, HardwareKind::Tdx)?.hardware;
    let report = URL_SAFE_NO_PAD.encode(&hardware[..TD_REPORT_BYTES]);
    let answer: Answer = ask(machine, QUOTE, Some(Question { report }))?;
    let quote = URL_SAFE_NO_PAD
        .decode(answer.quote.trim_end_matches('='))
        .map_err(|_| unusable(machine, QUOTE, "no quote in base64"))?;
    Ok(evidence(
        TeeKind::AzTdxVtpm,
        &TdxBody {
            collateral: None,
            hcl_report: URL_SAFE.encode(&guest.report),
            td_quote: URL_SAFE.encode(quote),
            tpm_quote: guest.quote,
            version: 2,
        },
    ))
}

/// What the guest's TPM gives.
struct Collected {
    report: Vec<u8>,
    quote: QuoteBody,
}

fn collect(machine: &Machine, binding: &Binding) -> Result<Collected, CollectError> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut device = Device::open(machine)?;
    let bound = binding.in_form(BindingForm::AzureQuote);
    let mut user_data = bound.clone();
    user_data.resize(USER_DATA_BYTES, 0);
    device.write_index(USER_DATA_INDEX, &user_data)?;
    let report = device.read_index(REPORT_INDEX)?;
    let Quoted {
        message,
        signature,
        pcrs,
    } = quote(&mut device, TpmHandle::new(ATTESTATION_KEY), &bound)?;
    let TpmuSignature::Rsassa(signature) = &signature.signature else {
        return Err(device.failed(Error::other("the paravisor's key is not of RSASSA")));
    };
    Ok(Collected {
        report,
        quote: QuoteBody {
            message: hex::encode(message),
            pcrs,
            signature: hex::encode(&signature.sig[..]),
        },
    })
}

/// Asks the machine's metadata service, with a question in JSON if there is one.
fn ask<T: DeserializeOwned>(
    machine: &Machine,
    path: &str,
    question: Option<impl Serialize>,
) -> Result<T, CollectError> {
    let url = format!("{}{path}", machine.metadata_service());
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        // What is asked here is on this machine: no proxy stands between.
        .proxy(None)
        .build()
        .into();
    let answer = match question {
        Some(question) => agent.post(&url).send_json(question),
        None => agent.get(&url).header("Metadata", "true").call(),
    };
    answer
        .and_then(|mut answer| {
            let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES);
            body.read_json()
        })
        .map_err(|error| unusable(machine, path, &error))
}

fn unusable(machine: &Machine, path: &str, why: impl std::fmt::Display) -> CollectError {
    CollectError::Io {
        path: format!("{}{path}", machine.metadata_service()).into(),
        source: Error::other(why.to_string()),
    }
}

fn evidence(tee: TeeKind, body: &impl Serialize) -> Evidence {
    let body = serde_json::to_value(body);
    Evidence::new(tee, body.expect("evidence has a JSON form"))
}

impl HardwareKind {
    pub(super) fn tee(self) -> TeeKind {
        match self {
            Self::Snp => TeeKind::AzSnpVtpm,
            Self::Tdx => TeeKind::AzTdxVtpm,
        }
    }
}

#[cfg(test)]
#[path = "../../tests/support/swtpm.rs"]
mod swtpm;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use tpm2_protocol::basic::{TpmBuffer, TpmList};
    use tpm2_protocol::data::{
        Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmaObject, TpmsRsaParms, TpmsSchemeHash,
        TpmsSensitiveCreate, TpmtPublic, TpmtRsaScheme, TpmtSymDefObject, TpmuAsymScheme,
        TpmuPublicId, TpmuPublicParms,
    };
    use tpm2_protocol::frame::{
        TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmEvictControlCommand,
        TpmEvictControlResponse,
    };

    use super::super::hcl::tests::report;
    use super::swtpm::SoftwareTpm;
    use super::*;
    use crate::tpm::{AttestationKey, Quote, Signature};

    const OWNER: u32 = 0x4000_0001;

    /// A TPM as a paravisor plays it: with its key, and a report of its in storage.
    fn paravisor(tpm: &SoftwareTpm, report: &[u8]) -> (Machine, AttestationKey) {
        let root = std::env::temp_dir().join("no-such-machine");
        let machine = Machine::at(root).with_tpm(tpm.socket());
        let mut device = Device::open(&machine).unwrap();
        let made: TpmCreatePrimaryResponse = device
            .run_authorized(&TpmCreatePrimaryCommand {
                handles: [TpmHandle::new(OWNER)],
                in_sensitive: Tpm2bSensitiveCreate::from(TpmsSensitiveCreate::default()),
                in_public: Tpm2bPublic::from(TpmtPublic {
                    object_type: TpmAlgId::Rsa,
                    name_alg: TpmAlgId::Sha256,
                    object_attributes: TpmaObject::FIXED_TPM
                        | TpmaObject::FIXED_PARENT
                        | TpmaObject::SENSITIVE_DATA_ORIGIN
                        | TpmaObject::USER_WITH_AUTH
                        | TpmaObject::RESTRICTED
                        | TpmaObject::SIGN_ENCRYPT,
                    auth_policy: TpmBuffer::new(),
                    parameters: TpmuPublicParms::Rsa(TpmsRsaParms {
                        symmetric: TpmtSymDefObject::default(),
                        scheme: TpmtRsaScheme {
                            scheme: TpmAlgId::Rsassa,
                            details: TpmuAsymScheme::Hash(TpmsSchemeHash {
                                hash_alg: TpmAlgId::Sha256,
                            }),
                        },
                        key_bits: 2048.into(),
                        exponent: 0.into(),
                    }),
                    unique: TpmuPublicId::Rsa(TpmBuffer::new()),
                }),
                outside_info: TpmBuffer::new(),
                creation_pcr: TpmList::new(),
            })
            .unwrap();
        let TpmuPublicId::Rsa(modulus) = &made.out_public.unique else {
            panic!("another kind of key");
        };
        let number = rsa::BoxedUint::from_be_slice_vartime;
        let key = rsa::PublicKey::new(number(modulus), number(&[1, 0, 1])).unwrap();
        let _: TpmEvictControlResponse = device
            .run_authorized(&TpmEvictControlCommand {
                handles: [TpmHandle::new(OWNER), made.handles[0]],
                persistent_handle: TpmHandle::new(ATTESTATION_KEY),
            })
            .unwrap();
        device.write_index(REPORT_INDEX, report).unwrap();
        (machine, AttestationKey::from_rsa(key).unwrap())
    }

    /// A metadata service that gives one answer, and tells what it was asked.
    fn metadata_service(answer: String) -> (String, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, length)| length.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let length = answer.len();
            write!(
                reader.get_mut(),
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n{answer}"
            )
            .unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        (url, asked)
    }

    fn check_quote(quote: &QuoteBody, key: &AttestationKey, bound: &[u8]) {
        let signature = hex::decode(&quote.signature).unwrap();
        let verified = Quote::verify(
            &hex::decode(&quote.message).unwrap(),
            &Signature::from_rsa(&signature).unwrap(),
            key,
            &quote.pcrs,
        );
        assert_eq!(verified.unwrap().qualifying_data, bound);
    }

    #[test]
    fn a_guest_on_snp_gives_the_paravisors_report_a_quote_and_the_chips_certificate() {
        let Some(tpm) = SoftwareTpm::start() else {
            return;
        };
        // More than a TPM gives at once; the real one has 2,600 bytes, this TPM at most 2,048.
        let mut written = report("{\"keys\":[]}");
        written.resize(2048, 0);
        let (machine, key) = paravisor(&tpm, &written);
        check_present_snp(&machine).unwrap();
        assert_eq!(
            check_present_tdx(&machine).unwrap_err().to_string(),
            "this is no az-tdx-vtpm: the paravisor runs on Snp"
        );
        let certified = rcgen::generate_simple_self_signed(Vec::new()).unwrap();
        let der = base64::engine::general_purpose::STANDARD.encode(certified.cert.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
        let answer = serde_json::json!({"vcekCert": pem, "tcbm": "0"});
        let (url, asked) = metadata_service(answer.to_string());
        let machine = machine.with_metadata_service(url);
        let binding = Binding::from_report_data_48(&[0xa5; 48]);
        let evidence = collect_snp(&machine, &binding).unwrap();
        assert_eq!(evidence.tee(), TeeKind::AzSnpVtpm);
        let body: SnpBody = serde_json::from_value(evidence.body().clone()).unwrap();
        assert_eq!(body.hcl_report, URL_SAFE.encode(&written));
        assert_eq!(body.vcek, Some(URL_SAFE.encode(certified.cert.der())));
        assert_eq!(body.version, 2);
        check_quote(&body.tpm_quote, &key, &[0xa5; 48]);
        let user_data = Device::open(&machine).unwrap().read_index(USER_DATA_INDEX);
        assert_eq!(user_data.unwrap(), [&[0xa5; 48][..], &[0; 16]].concat());
        let asked = asked.join().unwrap();
        assert!(
            asked.starts_with("GET /metadata/THIM/amd/certification HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(asked.to_lowercase().contains("metadata: true\r\n"));
    }

    #[test]
    fn a_guest_on_tdx_has_its_report_quoted() {
        let Some(tpm) = SoftwareTpm::start() else {
            return;
        };
        let mut written = report("{}");
        written[1224] = 4;
        written[32..32 + TD_REPORT_BYTES].fill(0x7d);
        let (machine, key) = paravisor(&tpm, &written);
        let answer = serde_json::json!({"quote": URL_SAFE_NO_PAD.encode(b"a quote")});
        let (url, asked) = metadata_service(answer.to_string());
        let machine = machine.with_metadata_service(url);
        let binding = Binding::from([0x5a; 64]);
        let evidence = collect_tdx(&machine, &binding).unwrap();
        let body: TdxBody = serde_json::from_value(evidence.body().clone()).unwrap();
        assert_eq!(body.td_quote, URL_SAFE.encode(b"a quote"));
        check_quote(
            &body.tpm_quote,
            &key,
            &binding.in_form(BindingForm::AzureQuote),
        );
        let asked = asked.join().unwrap();
        let report = URL_SAFE_NO_PAD.encode([0x7d; TD_REPORT_BYTES]);
        let (head, question) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /acc/tdquote HTTP/1.1\r\n"), "{head}");
        let question: serde_json::Value = serde_json::from_str(question).unwrap();
        assert_eq!(question, serde_json::json!({"report": report}));
    }

    #[test]
    fn a_machine_or_a_service_that_is_none_is_told() {
        let Some(tpm) = SoftwareTpm::start() else {
            return;
        };
        let machine = Machine::at("/no-such-machine").with_tpm(tpm.socket());
        let path = tpm.socket().display().to_string();
        assert_eq!(
            check_present_snp(&machine).unwrap_err().to_string(),
            format!("this is no az-snp-vtpm: {path} has no report of a paravisor")
        );
        let absent = Machine::at("/no-such-machine");
        assert_eq!(
            check_present_snp(&absent).unwrap_err().to_string(),
            "this is no az-snp-vtpm: /no-such-machine/dev/tpmrm0 is not there"
        );
        let (machine, _) = paravisor(&tpm, &report("{}"));
        for (answer, said) in [
            ("{\"vcekCert\": \"\"}", "no certificate in PEM"),
            ("no JSON", "json: expected ident at line 1 column 2"),
        ] {
            let (url, asked) = metadata_service(answer.to_owned());
            let machine = machine.clone().with_metadata_service(&url);
            let error = collect_snp(&machine, &Binding::from([1; 64])).unwrap_err();
            assert_eq!(error.to_string(), format!("{url}{CERTIFICATES}: {said}"));
            asked.join().unwrap();
        }
    }
}
