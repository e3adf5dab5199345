//! Evidence of a TEE and of what else its machine has, as one object: each part is bound to
//! the same nonce and statement, the TEE vouches for what came along, and the policy says
//! what has to. The TEE is the simulated one, the TPM runs in software.
#![cfg(feature = "simulated")]

mod support;
#[path = "support/swtpm.rs"]
mod swtpm;

use occlude_attest::nvidia::evidence_of_devices;
use occlude_attest::{
    AdditionalEvidence, Attester, Binding, Claims, CollectError, Evidence, Machine, Platform,
    Policy, Refusal, TeeKind, Trust, UnixTime, Verifier, VerifyError,
};
use support::{file, folder};
use swtpm::SoftwareTpm;

const AT: UnixTime = UnixTime(1_764_000_000);

fn binding() -> Binding {
    Binding::from([0x5a; 64])
}

/// The simulated TEE on a machine that has this TPM, and a command for its GPUs.
fn attester(tpm: &SoftwareTpm, additional: &[TeeKind]) -> Attester {
    let machine = Machine::at("/no-such-machine")
        .with_tpm(tpm.socket())
        .with_gpu_evidence_command(vec!["false".to_owned()]);
    let attester = Attester::open_on(machine, TeeKind::Simulated, [3; 32]).unwrap();
    attester.with_additional(additional).unwrap()
}

fn verify(evidence: &Evidence, binding: &Binding) -> Result<Claims, VerifyError> {
    Verifier::default().verify(evidence, binding, AT)
}

/// A policy of these kinds beside the simulated TEE, which accepts this TPM.
fn policy(additional: &str, claims: &Claims) -> Policy {
    let tpm = claims
        .additional()
        .iter()
        .find_map(|part| match part.platform() {
            Platform::Tpm(platform) => Some(platform.attestation_key),
            _ => None,
        });
    let key = tpm.map_or(String::new(), |key| format!("\"{key}\""));
    Policy::parse(&format!(
        "format = 1\n[evidence]\ntee = [\"simulated\"]\ntrust = [\"simulated\"]\n\
         measurements = [\"{}\"]\nadditional = [{additional}]\n[evidence.tpm]\n\
         attestation-keys = [{key}]\npcrs.pcr4 = [\"{}\"]\n",
        claims.measurement(),
        "00".repeat(32)
    ))
    .unwrap()
}

#[test]
fn a_tee_with_a_tpm_is_verified_and_judged_as_one() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let evidence = attester(&tpm, &[TeeKind::Tpm]).collect(&binding()).unwrap();
    assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence.clone()));
    let claims = verify(&evidence, &binding()).unwrap();
    assert_eq!(
        (claims.tee(), claims.trust()),
        (TeeKind::Simulated, Trust::Simulated)
    );
    let [part] = claims.additional() else {
        panic!("{claims:?}");
    };
    assert_eq!((part.tee(), part.trust()), (TeeKind::Tpm, Trust::ListedKey));
    assert_eq!(policy("\"tpm\"", &claims).judge_claims(&claims), Ok(()));
    // Nobody judged a part that the policy does not name.
    assert_eq!(
        policy("", &claims).judge_claims(&claims),
        Err(Refusal::Additional {
            found: TeeKind::Tpm,
            accepted: Vec::new()
        })
    );
    assert_eq!(
        policy("\"tpm\", \"nvidia\"", &claims).judge_claims(&claims),
        Err(Refusal::AdditionalMissing {
            missing: TeeKind::Nvidia
        })
    );
    // What it measured is judged as if it were alone.
    tpm.extend(4, &[4; 32]);
    let changed = attester(&tpm, &[TeeKind::Tpm]).collect(&binding()).unwrap();
    let changed = verify(&changed, &binding()).unwrap();
    let refused = policy("\"tpm\"", &changed).judge_claims(&changed);
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("for tpm.pcrs"), "{said}");
}

#[test]
fn a_part_that_is_missing_exchanged_or_added_is_refused() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let both = attester(&tpm, &[TeeKind::Tpm]);
    let evidence = both.collect(&binding()).unwrap();
    let mismatch = Err(VerifyError::BindingMismatch);
    // Left out.
    let left_out = evidence.clone().with_additional(AdditionalEvidence::new());
    assert_eq!(verify(&left_out, &binding()), mismatch);
    // As fresh and as genuine, and not what the TEE collected: the operator asked for it.
    let other = both.collect_additional(&binding()).unwrap();
    assert_ne!(evidence.additional(), &other);
    let exchanged = evidence.clone().with_additional(other.clone());
    assert_eq!(verify(&exchanged, &binding()), mismatch);
    // Beside a TEE that collected nothing.
    let alone = attester(&tpm, &[]).collect(&binding()).unwrap();
    verify(&alone, &binding()).unwrap();
    let added = alone.with_additional(other.clone());
    assert_eq!(verify(&added, &binding()), mismatch);
    // Of another nonce, though the TEE vouches for it.
    let elsewhere = both.collect_additional(&Binding::from([1; 64])).unwrap();
    let primary = both
        .collect_primary(&binding().covering(&elsewhere), None)
        .unwrap();
    assert_eq!(
        verify(&primary.with_additional(elsewhere), &binding()),
        Err(VerifyError::Additional {
            tee: TeeKind::Tpm,
            source: Box::new(VerifyError::BindingMismatch)
        })
    );
    // The same evidence for another nonce.
    assert_eq!(verify(&evidence, &Binding::from([1; 64])), mismatch);
}

#[test]
fn a_part_that_does_not_hold_is_refused_though_the_tee_vouches_for_it() {
    let Some(tpm) = SoftwareTpm::start() else {
        return;
    };
    let both = attester(&tpm, &[TeeKind::Tpm]);
    let with = |additional: AdditionalEvidence| {
        let primary = both
            .collect_primary(&binding().covering(&additional), None)
            .unwrap();
        verify(&primary.with_additional(additional), &binding()).unwrap_err()
    };
    let mut forged = both.collect_additional(&binding()).unwrap();
    let quote = &mut forged.get_mut(&TeeKind::Tpm).unwrap()["tpm_quote"];
    quote["pcrs"][4] = "07".repeat(32).into();
    let said = with(forged).to_string();
    assert!(
        said.starts_with("evidence of tpm that came along: "),
        "{said}"
    );
    // A second TEE beside the first is no part of its machine.
    let snp = AdditionalEvidence::from([(TeeKind::Snp, serde_json::json!({}))]);
    assert_eq!(
        with(snp).to_string(),
        "evidence of snp that came along: the evidence cannot be verified by this version: snp \
         beside another TEE"
    );
    if folder().is_none() {
        return;
    }
    // A genuine GPU's report of another session.
    let gpu = evidence_of_devices(&file("nvidia/hopper_evidence.json")).unwrap();
    let gpu = AdditionalEvidence::from([(TeeKind::Nvidia, gpu.body().clone())]);
    assert_eq!(
        with(gpu),
        VerifyError::Additional {
            tee: TeeKind::Nvidia,
            source: Box::new(VerifyError::BindingMismatch)
        }
    );
}

#[test]
fn only_what_comes_along_can_be_asked_to() {
    let open = |kind: TeeKind| {
        let machine = Machine::at("/no-such-machine");
        let attester = Attester::open_on(machine, TeeKind::Simulated, [3; 32]).unwrap();
        attester.with_additional(&[kind]).unwrap_err()
    };
    assert_eq!(
        open(TeeKind::Snp).to_string(),
        "evidence of snp does not come along beside another: expected tpm or nvidia"
    );
    assert_eq!(
        open(TeeKind::Nvidia).to_string(),
        "no command fetches a GPU's evidence: give one with --gpu-evidence-command"
    );
    assert!(matches!(
        open(TeeKind::Tpm),
        CollectError::NotPresent {
            tee: TeeKind::Tpm,
            ..
        }
    ));
}

#[test]
fn a_gpu_is_asked_with_a_hash_of_the_binding() {
    if folder().is_none() {
        return;
    }
    // A command that prints what a GPU of another session said, and its last argument.
    let asked = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "printf %s \"$1\" > {}; cat {}",
        asked.path().display(),
        folder()
            .unwrap()
            .join("nvidia/hopper_evidence.json")
            .display()
    );
    let command = ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    let machine = Machine::at("/no-such-machine").with_gpu_evidence_command(command);
    let attester = Attester::open_on(machine, TeeKind::Simulated, [3; 32]).unwrap();
    let attester = attester.with_additional(&[TeeKind::Nvidia]).unwrap();
    let evidence = attester.collect(&binding()).unwrap();
    assert!(evidence.additional().contains_key(&TeeKind::Nvidia));
    use sha2::Digest;
    let hash = sha2::Sha256::digest([0x5a; 64]);
    let asked = std::fs::read_to_string(asked.path()).unwrap();
    assert_eq!(asked, hex::encode(hash));
}
