//! TPM and Intel TXT: a TPM in software is asked for quotes, which are verified and judged;
//! recorded evidence holds, and nothing that was changed in it does.

mod support;
#[path = "support/swtpm.rs"]
mod swtpm;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_attest::tpm::registers_of_log;
use occlude_attest::{
    Attester, Binding, CertificateProblem, Claims, Collateral, CollectError, Evidence, Machine,
    Measurement, Platform, Policy, Protection, RecordedEvidence, Refusal, Register, TeeKind, Trust,
    UnixTime, Verifier, VerifyError,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, IsCa, KeyPair,
    PublicKeyData, SignatureAlgorithm,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{file, folder};
use swtpm::SoftwareTpm;

const AT: UnixTime = UnixTime(1_764_000_000);

fn machine(tpm: &SoftwareTpm, root: &Path) -> Machine {
    Machine::at(root).with_tpm(tpm.socket())
}

/// Evidence of a machine that has this TPM and nothing else.
fn collect(tpm: &SoftwareTpm, kind: TeeKind, binding: &Binding) -> Evidence {
    let root = tempfile::tempdir().unwrap();
    let attester = Attester::open_on(machine(tpm, root.path()), kind, [0; 32]).unwrap();
    attester.collect(binding).unwrap()
}

fn verify(evidence: &Evidence, binding: &Binding) -> Result<Claims, VerifyError> {
    Verifier::default().verify(evidence, binding, AT)
}

fn genuine(evidence: &Evidence) -> Result<Claims, VerifyError> {
    let genuine = Verifier::default().authenticate(evidence, AT)?;
    Ok(genuine.unbound_claims())
}

/// One field of what a TPM's claims say, as JSON has it.
fn said(claims: &Claims, field: &str) -> String {
    let platform = serde_json::to_value(claims.platform()).unwrap();
    let platform = platform.as_object().unwrap().values().next().unwrap();
    match &platform[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn register(claims: &Claims, register: &str) -> String {
    let (Platform::Tpm(platform) | Platform::Txt(platform)) = claims.platform() else {
        panic!("{claims:?}");
    };
    let register = register.to_owned().try_into().unwrap();
    platform.pcrs[&register].to_string()
}

/// A policy that somebody writes who knows that memory is open.
fn policy(kind: &str, section: &str) -> Policy {
    Policy::parse(&format!(
        "format = 1\n[evidence]\ntee = [\"{kind}\"]\ntrust = [\"listed-key\"]\n\
         protection = [\"measured-boot-only\"]\n[evidence.{kind}]\n{section}\n"
    ))
    .unwrap()
}

fn changed(evidence: &Evidence, change: impl FnOnce(&mut Value)) -> Evidence {
    let mut body = evidence.body().clone();
    change(&mut body);
    Evidence::new(evidence.tee(), body)
}

fn with_bytes(evidence: &Evidence, pointer: &str, change: impl FnOnce(&mut Vec<u8>)) -> Evidence {
    changed(evidence, |body| {
        let text = body.pointer_mut(pointer).unwrap();
        let mut bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
        change(&mut bytes);
        *text = STANDARD.encode(bytes).into();
    })
}

fn bad_signature<T>() -> Result<T, VerifyError> {
    Err(VerifyError::BadSignature {
        of: "the quote",
        by: "the attestation key",
    })
}

#[test]
fn a_quote_of_a_tpm_is_verified_with_the_binding_that_it_was_made_for() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    tpm.extend(4, &[4; 32]);
    let binding = Binding::from([0x5a; 64]);
    let evidence = collect(&tpm, TeeKind::Tpm, &binding);
    let claims = verify(&evidence, &binding).unwrap();
    assert_eq!(
        (claims.tee(), claims.trust(), claims.protection()),
        (TeeKind::Tpm, Trust::ListedKey, Protection::MeasuredBootOnly)
    );
    let expected = hex::encode(Sha256::digest([[0; 32], [4; 32]].concat()));
    assert_eq!(register(&claims, "pcr4"), expected);
    assert_eq!(register(&claims, "pcr5"), "00".repeat(32));
    // The key is the TPM's own and the same each time.
    let again = verify(&collect(&tpm, TeeKind::Tpm, &binding), &binding).unwrap();
    assert_eq!(
        said(&claims, "attestation-key"),
        said(&again, "attestation-key")
    );
    for other in [
        Binding::from([0x5b; 64]),
        Binding::from_report_data_48(&[0x5a; 48]),
    ] {
        assert_eq!(verify(&evidence, &other), Err(VerifyError::BindingMismatch));
    }
    let of_broker = Binding::from_report_data_48(&[0xa5; 48]);
    let evidence = collect(&tpm, TeeKind::Tpm, &of_broker);
    verify(&evidence, &of_broker).unwrap();
}

#[test]
fn no_default_policy_accepts_a_machine_whose_memory_is_open() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let binding = Binding::from([1; 64]);
    let claims = verify(&collect(&tpm, TeeKind::Tpm, &binding), &binding).unwrap();
    let judge = |evidence: &str| {
        let text = format!(
            "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n{evidence}",
            claims.measurement()
        );
        Policy::parse(&text).unwrap().judge_claims(&claims)
    };
    assert!(matches!(judge(""), Err(Refusal::Tee { .. })));
    assert!(matches!(
        judge("tee = [\"tpm\"]\n"),
        Err(Refusal::Trust { .. })
    ));
    assert!(matches!(
        judge("tee = [\"tpm\"]\ntrust = [\"listed-key\"]\n"),
        Err(Refusal::Protection { .. })
    ));
    let all = "tee = [\"tpm\"]\ntrust = [\"listed-key\"]\nprotection = [\"measured-boot-only\"]\n";
    let refused = judge(all).unwrap_err().to_string();
    assert!(refused.contains("which nobody certifies"), "{refused}");
    let key = said(&claims, "attestation-key");
    let listed = format!("{all}[evidence.tpm]\nattestation-keys = [\"{key}\"]\n");
    assert_eq!(judge(&listed), Ok(()));
}

#[test]
fn a_boot_that_changed_is_refused_by_a_policy_that_names_its_registers() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    tpm.extend(4, &[4; 32]);
    let binding = Binding::from([1; 64]);
    let judge = |policy: &Policy| {
        let claims = verify(&collect(&tpm, TeeKind::Tpm, &binding), &binding).unwrap();
        policy.judge_claims(&claims)
    };
    let claims = verify(&collect(&tpm, TeeKind::Tpm, &binding), &binding).unwrap();
    let key = said(&claims, "attestation-key");
    let pcr4 = register(&claims, "pcr4");
    let policy = policy(
        "tpm",
        &format!("attestation-keys = [\"{key}\"]\npcrs.pcr4 = [\"{pcr4}\"]"),
    );
    assert_eq!(judge(&policy), Ok(()));
    // What the policy does not name may change.
    tpm.extend(10, &[10; 32]);
    assert_eq!(judge(&policy), Ok(()));
    tpm.extend(4, &[5; 32]);
    let refused = judge(&policy).unwrap_err().to_string();
    let found = Sha256::digest([&hex::decode(&pcr4).unwrap()[..], &[5; 32]].concat());
    assert_eq!(
        refused,
        format!(
            "the evidence has pcr4 = {} for tpm.pcrs, the policy accepts {pcr4}",
            hex::encode(found)
        )
    );
}

#[test]
fn another_machines_tpm_is_refused_whatever_it_measured() {
    let (Some(one), Some(other)) = (SoftwareTpm::start(), SoftwareTpm::start()) else {
        return;
    };
    let binding = Binding::from([1; 64]);
    let claims = verify(&collect(&one, TeeKind::Tpm, &binding), &binding).unwrap();
    let key = said(&claims, "attestation-key");
    let policy = policy(
        "tpm",
        &format!(
            "attestation-keys = [\"{key}\"]\npcrs.pcr4 = [\"{}\"]",
            "00".repeat(32)
        ),
    );
    assert_eq!(policy.judge_claims(&claims), Ok(()));
    let evidence = collect(&other, TeeKind::Tpm, &binding);
    let claims = verify(&evidence, &binding).unwrap();
    let refused = policy.judge_claims(&claims).unwrap_err().to_string();
    assert!(
        refused.starts_with(&format!(
            "the evidence has {}, which nobody certifies, for tpm.attestation-keys",
            said(&claims, "attestation-key")
        )),
        "{refused}"
    );
    // Its quote under the listed key's name.
    let listed = collect(&one, TeeKind::Tpm, &binding);
    let named = changed(&evidence, |body| {
        body["ak_public"] = listed.body()["ak_public"].clone();
    });
    assert_eq!(verify(&named, &binding), bad_signature());
}

#[test]
fn registers_that_were_not_quoted_are_refused() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    tpm.extend(4, &[4; 32]);
    let evidence = collect(&tpm, TeeKind::Tpm, &Binding::from([1; 64]));
    let refused = |change: fn(&mut Vec<Value>)| {
        genuine(&changed(&evidence, |body| {
            change(body["tpm_quote"]["pcrs"].as_array_mut().unwrap());
        }))
        .unwrap_err()
        .to_string()
    };
    let other = "the registers that came along are not those of the quote";
    assert_eq!(refused(|pcrs| pcrs.swap(4, 5)), other);
    assert_eq!(refused(|pcrs| pcrs[4] = "00".repeat(32).into()), other);
    assert_eq!(
        refused(|pcrs| drop(pcrs.pop())),
        "the evidence is malformed: the quote: it is of 24 registers, 23 came along"
    );
    assert_eq!(
        refused(|pcrs| pcrs[4] = "AA".repeat(32).into()),
        format!(
            "the evidence is malformed: expected 64 lower-case hexadecimal digits, found {:?}",
            "AA".repeat(32)
        )
    );
}

#[test]
fn a_launch_is_told_by_registers_that_nothing_else_resets() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let binding = Binding::from([1; 64]);
    let without = collect(&tpm, TeeKind::Txt, &binding);
    let register_17 = Register::new(17).unwrap();
    assert_eq!(
        verify(&without, &binding),
        Err(VerifyError::NoLaunch {
            register: register_17
        })
    );
    tpm.launch(b"authenticated code", &[0x18; 32]);
    let claims = verify(&collect(&tpm, TeeKind::Txt, &binding), &binding).unwrap();
    assert_eq!(
        (claims.tee(), claims.protection()),
        (TeeKind::Txt, Protection::MeasuredBootOnly)
    );
    let code = Sha256::digest(b"authenticated code");
    let extended = |digest: &[u8]| Sha256::digest([&[0; 32], digest].concat());
    let (pcr17, pcr18) = (extended(&code), extended(&[0x18; 32]));
    assert_eq!(register(&claims, "pcr17"), hex::encode(pcr17));
    assert_eq!(register(&claims, "pcr18"), hex::encode(pcr18));
    let launch: [u8; 32] = Sha256::digest([pcr17, pcr18].concat()).into();
    assert_eq!(claims.measurement(), &Measurement::from(launch));

    let key = said(&claims, "attestation-key");
    let (pcr17, pcr18) = (hex::encode(pcr17), hex::encode(pcr18));
    let both = policy(
        "txt",
        &format!(
            "attestation-keys = [\"{key}\"]\npcrs.pcr17 = [\"{pcr17}\"]\npcrs.pcr18 = [\"{pcr18}\"]"
        ),
    );
    assert_eq!(both.judge_claims(&claims), Ok(()));
    // One of the two says nothing of the other.
    let one = policy(
        "txt",
        &format!("attestation-keys = [\"{key}\"]\npcrs.pcr17 = [\"{pcr17}\"]"),
    );
    assert!(matches!(
        one.judge_claims(&claims),
        Err(Refusal::Measurement { .. })
    ));
    tpm.launch(b"other code", &[0x18; 32]);
    let claims = verify(&collect(&tpm, TeeKind::Txt, &binding), &binding).unwrap();
    let refused = both.judge_claims(&claims).unwrap_err().to_string();
    assert!(refused.contains("pcr17 = "), "{refused}");
}

/// A log of a boot that measured these digests, one after the other, all into register 4.
fn log(digests: &[[u8; 32]]) -> Vec<u8> {
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    header.extend([1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
    log.extend([0; 20]);
    log.extend((header.len() as u32).to_le_bytes());
    log.extend(header);
    for digest in digests {
        log.extend([4, 0, 0, 0, 3 | 0x80, 0, 0, 0x80, 1, 0, 0, 0, 0x0b, 0]);
        log.extend(digest);
        log.extend(2_u32.to_le_bytes());
        log.extend(b"os");
    }
    log
}

#[test]
fn the_firmwares_log_comes_along_and_has_to_lead_to_the_registers() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let measured = [[4; 32], [5; 32]];
    for digest in &measured {
        tpm.extend(4, digest);
    }
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("sys/kernel/security/tpm0");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("binary_bios_measurements");
    let logged = |log: Vec<u8>| {
        std::fs::write(&file, log).unwrap();
        let attester = Attester::open_on(machine(&tpm, root.path()), TeeKind::Tpm, [0; 32]);
        genuine(&attester.unwrap().collect(&Binding::from([1; 64])).unwrap())
    };
    let claims = logged(log(&measured)).unwrap();
    assert_eq!(said(&claims, "event-log-entries"), "2");
    // The log of a machine like it tells what to expect.
    let key = said(&claims, "attestation-key").parse().unwrap();
    let expected = registers_of_log(&log(&measured)).unwrap();
    let expecting = Policy::of_boot(&expected, vec![key], Vec::new());
    assert_eq!(expecting.judge_claims(&claims), Ok(()));
    let other = registers_of_log(&log(&measured[..1])).unwrap();
    let expecting = Policy::of_boot(&other, vec![key], Vec::new());
    assert!(matches!(
        expecting.judge_claims(&claims),
        Err(Refusal::Platform {
            field: "tpm.pcrs",
            ..
        })
    ));
    let elsewhere = Err(VerifyError::EventLog {
        register: "pcr4".to_owned(),
    });
    assert_eq!(logged(log(&[[5; 32], [4; 32]])), elsewhere);
    assert_eq!(logged(log(&measured[..1])), elsewhere);
    assert!(matches!(
        logged(b"no log".to_vec()),
        Err(VerifyError::Malformed { .. })
    ));
    // A log that nobody can read is none, and a policy may want one.
    let claims = logged(Vec::new()).unwrap();
    assert_eq!(said(&claims, "event-log-entries"), "null");
    let key = said(&claims, "attestation-key");
    let policy = policy(
        "tpm",
        &format!("attestation-keys = [\"{key}\"]\nrequire-event-log = true"),
    );
    assert_eq!(
        policy.judge_claims(&claims).unwrap_err().to_string(),
        "the evidence has false for tpm.require-event-log, the policy accepts true"
    );
}

/// An attestation key, as a certificate holds it.
struct Subject(Vec<u8>);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        // A key on P-256 is what follows the algorithm and the bit string's head.
        &self.0[self.0.len() - 65..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

struct Maker(CertifiedIssuer<'static, KeyPair>);

impl Maker {
    fn new() -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "a maker of TPMs");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    fn certify(&self, evidence: &Evidence) -> Vec<u8> {
        let public = evidence.body()["ak_public"].as_str().unwrap();
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.not_after = rcgen::date_time_ymd(2026, 1, 1);
        let subject = Subject(STANDARD.decode(public).unwrap());
        let certificate = parameters.signed_by(&subject, &self.0).unwrap();
        certificate.der().to_vec()
    }

    fn root(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(self.root()))
    }
}

fn certified(evidence: &Evidence, certificates: &[&[u8]]) -> Evidence {
    changed(evidence, |body| {
        body["ak_certificates"] = certificates
            .iter()
            .map(|der| STANDARD.encode(der))
            .collect();
    })
}

#[test]
fn a_key_may_be_accepted_by_the_root_that_certifies_it() {
    let (Some(tpm), Some(other)) = (SoftwareTpm::start(), SoftwareTpm::start()) else {
        return;
    };
    let maker = Maker::new();
    let evidence = collect(&tpm, TeeKind::Tpm, &Binding::from([1; 64]));
    let leaf = maker.certify(&evidence);
    let sent = certified(&evidence, &[&leaf, &maker.root()]);
    let claims = genuine(&sent).unwrap();
    assert_eq!(said(&claims, "certified-by"), maker.fingerprint());
    let zero = "00".repeat(32);
    let by_root = |root: &str| {
        policy(
            "tpm",
            &format!("roots = [\"{root}\"]\npcrs.pcr4 = [\"{zero}\"]"),
        )
    };
    assert_eq!(by_root(&maker.fingerprint()).judge_claims(&claims), Ok(()));
    let stranger = Maker::new();
    let refused = by_root(&stranger.fingerprint()).judge_claims(&claims);
    assert_eq!(
        refused.unwrap_err().to_string(),
        format!(
            "the evidence has {}, certified by {}, for tpm.attestation-keys, the policy accepts 0 \
             keys and 1 roots that are not it",
            said(&claims, "attestation-key"),
            maker.fingerprint()
        )
    );
    // The verifier's own certificates serve as well.
    let mut collateral = Collateral::default();
    assert!(collateral.add(&leaf) && collateral.add(&maker.root()));
    let found = Verifier::new(collateral)
        .authenticate(&evidence, AT)
        .unwrap();
    assert_eq!(
        said(&found.unbound_claims(), "certified-by"),
        maker.fingerprint()
    );

    let problem = |problem| {
        Err(VerifyError::Certificate {
            what: "the attestation key",
            problem,
        })
    };
    // Certificates that do not hold are refused, not left out.
    assert_eq!(
        genuine(&certified(&evidence, &[&leaf])),
        problem(CertificateProblem::UnknownIssuer)
    );
    assert_eq!(
        genuine(&certified(&evidence, &[&leaf, &stranger.root()])),
        problem(CertificateProblem::BadSignature)
    );
    let of_other = maker.certify(&collect(&other, TeeKind::Tpm, &Binding::from([1; 64])));
    assert_eq!(
        genuine(&certified(&evidence, &[&of_other, &maker.root()])),
        Err(VerifyError::EndorsementMismatch {
            what: "another key"
        })
    );
    let late = Verifier::default().authenticate(&sent, UnixTime(1_780_000_000));
    assert_eq!(
        late.unwrap_err(),
        VerifyError::Certificate {
            what: "the attestation key",
            problem: CertificateProblem::Expired {
                not_after: UnixTime(1_767_225_600)
            },
        }
    );
    let many: Vec<&[u8]> = vec![&leaf; 17];
    assert_eq!(
        genuine(&certified(&evidence, &many)),
        Err(VerifyError::Malformed {
            reason: "17 certificates of the attestation key".to_owned()
        })
    );
}

#[test]
fn every_byte_of_a_quote_counts() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let evidence = collect(&tpm, TeeKind::Tpm, &Binding::from([1; 64]));
    every_byte_counts(&evidence);
}

fn every_byte_counts(evidence: &Evidence) {
    genuine(evidence).unwrap();
    for pointer in ["/ak_public", "/tpm_quote/message", "/tpm_quote/signature"] {
        let text = evidence.body().pointer(pointer).unwrap().as_str().unwrap();
        let length = STANDARD.decode(text).unwrap().len();
        for place in 0..length {
            for bit in [1, 0x80] {
                let flipped = with_bytes(evidence, pointer, |bytes| bytes[place] ^= bit);
                assert!(genuine(&flipped).is_err(), "{pointer} {place} {bit}");
            }
            let cut = with_bytes(evidence, pointer, |bytes| bytes.truncate(place));
            assert!(genuine(&cut).is_err(), "{pointer} up to {place}");
        }
        let longer = with_bytes(evidence, pointer, |bytes| bytes.push(0));
        assert!(genuine(&longer).is_err(), "{pointer} and a byte");
    }
    let unknown = changed(evidence, |body| body["more"] = json!(1));
    assert!(matches!(
        genuine(&unknown),
        Err(VerifyError::Malformed { .. })
    ));
}

fn recorded() -> Evidence {
    let file = file("tpm/tpm_evidence.json");
    RecordedEvidence::read(&file, Some(TeeKind::Tpm))
        .unwrap()
        .evidence
}

#[test]
fn recorded_evidence_of_a_key_of_rsa_holds_and_every_byte_of_it_counts() {
    if folder().is_none() {
        return;
    }
    let evidence = recorded();
    let claims = genuine(&evidence).unwrap();
    assert_eq!(register(&claims, "pcr17"), "ff".repeat(32));
    let public = STANDARD
        .decode(evidence.body()["ak_public"].as_str().unwrap())
        .unwrap();
    assert_eq!(
        said(&claims, "attestation-key"),
        hex::encode(Sha256::digest(public))
    );
    every_byte_counts(&evidence);
    // There was no dynamic launch.
    let as_launch = Evidence::new(TeeKind::Txt, evidence.body().clone());
    assert!(matches!(
        genuine(&as_launch),
        Err(VerifyError::NoLaunch { .. })
    ));
}

#[test]
fn a_tpm_that_is_not_there_or_answers_nonsense_is_told() {
    let root = tempfile::tempdir().unwrap();
    let absent = Attester::open_on(Machine::at(root.path()), TeeKind::Tpm, [0; 32]);
    assert_eq!(
        absent.unwrap_err().to_string(),
        format!(
            "this is no tpm: {} is not there",
            root.path().join("dev/tpmrm0").display()
        )
    );
    // A file that was named by mistake stays as it is.
    let notes = root.path().join("notes.txt");
    std::fs::write(&notes, "notes").unwrap();
    let machine = Machine::at(root.path()).with_tpm(notes.clone());
    let attester = Attester::open_on(machine, TeeKind::Tpm, [0; 32]).unwrap();
    let error = attester.collect(&Binding::from([1; 64])).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: neither a device nor a socket", notes.display())
    );
    assert_eq!(std::fs::read(&notes).unwrap(), b"notes");
    let answered = |answer: &'static [u8]| {
        let socket = root.path().join(format!("{}", answer.len()));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(answer).unwrap();
        });
        let machine = Machine::at(root.path()).with_tpm(socket.clone());
        let attester = Attester::open_on(machine, TeeKind::Tpm, [0; 32]).unwrap();
        let error = attester.collect(&Binding::from([1; 64])).unwrap_err();
        serving.join().unwrap();
        let CollectError::Io { path, source } = error else {
            panic!("{error}");
        };
        assert_eq!(path, socket);
        source.to_string()
    };
    assert_eq!(answered(&[0x80, 1, 0, 0]), "unexpected end of file");
    assert_eq!(
        answered(&[0x80, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]),
        "the TPM announces 4278190080 bytes"
    );
    let refused = answered(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x01]);
    assert!(
        refused.starts_with("the TPM refuses ") && refused.contains("CreatePrimary"),
        "{refused}"
    );
    let short = answered(&[0x80, 2, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0]);
    assert_eq!(short, "unexpected end");
}
