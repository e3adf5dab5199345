//! Azure's confidential virtual machines: recorded evidence holds for the binding that it
//! was made for, and nothing that was changed in any of its three parts does.

mod support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use occlude_attest::azure::AzureProcessor;
use occlude_attest::snp::SnpProduct;
use occlude_attest::{
    Binding, Claims, Evidence, Measurement, Platform, Policy, Protection, RecordedEvidence,
    Refusal, TeeKind, Trust, UnixTime, Verifier, VerifyError,
};
use serde_json::{Value, json};
use support::{file, folder};

const AT: UnixTime = UnixTime(1_764_000_000);

/// What was asked for when the evidence was recorded: its 48 bytes are in the quote, and
/// in what the guest wrote for the paravisor.
const ASKED: &str = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9a\
                     a398f647caa2338748cd0fd9f5f819ef";

fn binding() -> Binding {
    let asked: [u8; 48] = hex::decode(ASKED).unwrap().try_into().unwrap();
    Binding::from_report_data_48(&asked)
}

fn recorded() -> Evidence {
    let file = file("az-snp-vtpm/evidence-v2.json");
    RecordedEvidence::read(&file, Some(TeeKind::AzSnpVtpm))
        .unwrap()
        .evidence
}

fn genuine(evidence: &Evidence) -> Result<Claims, VerifyError> {
    let genuine = Verifier::default().authenticate(evidence, AT)?;
    Ok(genuine.unbound_claims())
}

fn changed(evidence: &Evidence, change: impl FnOnce(&mut Value)) -> Evidence {
    let mut body = evidence.body().clone();
    change(&mut body);
    Evidence::new(evidence.tee(), body)
}

/// The bytes of a field, in whichever encoding it has.
fn bytes(evidence: &Evidence, pointer: &str) -> Vec<u8> {
    let text = evidence.body().pointer(pointer).unwrap().as_str().unwrap();
    hex::decode(text).unwrap_or_else(|_| URL_SAFE.decode(text).unwrap())
}

fn with_bytes(evidence: &Evidence, pointer: &str, change: impl FnOnce(&mut Vec<u8>)) -> Evidence {
    let mut bytes = bytes(evidence, pointer);
    change(&mut bytes);
    let text = if pointer.starts_with("/tpm_quote") {
        hex::encode(bytes)
    } else {
        URL_SAFE.encode(bytes)
    };
    changed(evidence, |body| {
        *body.pointer_mut(pointer).unwrap() = text.into();
    })
}

#[test]
fn recorded_evidence_holds_for_the_binding_that_it_was_made_for() {
    if folder().is_none() {
        return;
    }
    let claims = Verifier::default()
        .verify(&recorded(), &binding(), AT)
        .unwrap();
    assert_eq!(
        (claims.tee(), claims.trust(), claims.protection()),
        (
            TeeKind::AzSnpVtpm,
            Trust::Hardware,
            Protection::ConfidentialMemory
        )
    );
    assert!(!claims.debug());
    let Platform::Azure(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    // As they are written in the recorded files.
    assert_eq!(platform.vm_id, "7DF7B373-B947-4AAA-96E5-C358F2A03D20");
    assert!(platform.secure_boot && platform.console);
    let pcr0 = platform.pcrs.values().next().unwrap().to_string();
    assert_eq!(
        pcr0,
        "84275b2f4312cd4fc6cbe6b152ad3c3683e513d9f1e23c34fca160c8cca7a6a7"
    );
    let AzureProcessor::Snp(processor) = &platform.processor else {
        panic!("{platform:?}");
    };
    assert_eq!((processor.product, processor.vmpl), (SnpProduct::Milan, 0));
    for other in [
        Binding::from([0; 64]),
        Binding::from_report_data_48(&[1; 48]),
    ] {
        assert_eq!(
            Verifier::default().verify(&recorded(), &other, AT),
            Err(VerifyError::BindingMismatch)
        );
    }
}

#[test]
fn a_policy_names_the_paravisor_and_what_was_started() {
    if folder().is_none() {
        return;
    }
    let claims = genuine(&recorded()).unwrap();
    let Platform::Azure(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    let paravisor = &platform.paravisor;
    let pcr4 = platform.pcrs.values().nth(4).unwrap();
    let judge = |evidence: &str, section: &str| {
        let text =
            format!("format = 1\n[evidence]\n{evidence}\n[evidence.az-snp-vtpm]\n{section}\n");
        Policy::parse(&text).unwrap().judge_claims(&claims)
    };
    let listed = format!("paravisors = [\"{paravisor}\"]");
    let started = format!("pcrs.pcr4 = [\"{pcr4}\"]");
    assert_eq!(judge("", &format!("{listed}\n{started}")), Ok(()));
    let measured = format!("measurements = [\"{}\"]", claims.measurement());
    assert_eq!(judge(&measured, &listed), Ok(()));
    // Any guest can be started under a genuine paravisor, and any paravisor say of a
    // guest what it likes.
    assert!(matches!(
        judge("", &listed),
        Err(Refusal::Measurement { .. })
    ));
    let by_hardware = format!("measurements = [\"{paravisor}\"]");
    assert!(matches!(
        judge(&by_hardware, &listed),
        Err(Refusal::Measurement { .. })
    ));
    assert_eq!(
        judge(&measured, &started),
        Err(Refusal::Platform {
            field: "az-snp-vtpm.paravisors",
            found: paravisor.to_string(),
            accepted: "none".to_owned()
        })
    );
    let other = Measurement::from([1; 32]);
    assert_eq!(
        judge("", &format!("{listed}\npcrs.pcr4 = [\"{other}\"]")),
        Err(Refusal::Platform {
            field: "az-snp-vtpm.pcrs",
            found: format!("pcr4 = {pcr4}"),
            accepted: other.to_string()
        })
    );
    assert_eq!(
        judge("", &format!("{listed}\n{started}\nallow-console = false")),
        Err(Refusal::Platform {
            field: "az-snp-vtpm.allow-console",
            found: "true".to_owned(),
            accepted: "false".to_owned()
        })
    );
    // The processor is judged by its own section.
    assert_eq!(
        judge(
            "snp.products = [\"turin\"]",
            &format!("{listed}\n{started}")
        ),
        Err(Refusal::Platform {
            field: "snp.products",
            found: "milan".to_owned(),
            accepted: "turin".to_owned()
        })
    );
}

/// Another machine's: its report, quote and certificate, in their first form.
fn other_machine() -> Evidence {
    let quote = file("az-snp-vtpm/quote.bin");
    let (signature, rest) = prefixed(&quote);
    let (message, rest) = prefixed(rest);
    // The values of 24 registers follow, behind their number.
    let pcrs: Vec<String> = rest[rest.len() - 24 * 32..]
        .chunks(32)
        .map(hex::encode)
        .collect();
    let vcek = file("az-snp-vtpm/vcek.pem");
    let vcek = String::from_utf8(vcek).unwrap();
    let vcek: String = vcek
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with("-----"))
        .collect();
    let vcek = base64::engine::general_purpose::STANDARD
        .decode(vcek)
        .unwrap();
    Evidence::new(
        TeeKind::AzSnpVtpm,
        json!({
            "version": 1,
            "tpm_quote": {
                "message": hex::encode(message),
                "signature": hex::encode(signature),
                "pcrs": pcrs,
            },
            "hcl_report": URL_SAFE.encode(file("az-snp-vtpm/hcl-report.bin")),
            "vcek": URL_SAFE.encode(vcek),
        }),
    )
}

/// Bytes behind their number, of 8 bytes.
fn prefixed(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_at(8);
    rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize)
}

#[test]
fn parts_of_two_machines_do_not_hold_together() {
    if folder().is_none() {
        return;
    }
    let (one, other) = (recorded(), other_machine());
    genuine(&one).unwrap();
    genuine(&other).unwrap();
    let mixed = |field: &str| {
        genuine(&changed(&one, |body| {
            body[field] = other.body()[field].clone();
        }))
    };
    assert_eq!(
        mixed("tpm_quote"),
        Err(VerifyError::BadSignature {
            of: "the quote",
            by: "the attestation key"
        })
    );
    assert!(matches!(
        mixed("vcek"),
        Err(VerifyError::EndorsementMismatch { .. })
    ));
    assert!(matches!(
        mixed("hcl_report"),
        Err(VerifyError::EndorsementMismatch { .. })
    ));
    // The hardware's report of the one, the paravisor's data of the other.
    let swapped = with_bytes(&one, "/hcl_report", |report| {
        let other = bytes(&other, "/hcl_report");
        report[1216..].copy_from_slice(&other[1216..]);
    });
    assert_eq!(
        genuine(&swapped),
        Err(VerifyError::EndorsementMismatch {
            what: "other data of the paravisor than came along"
        })
    );
}

#[test]
fn evidence_of_one_kind_is_not_evidence_of_another() {
    if folder().is_none() {
        return;
    }
    let evidence = recorded();
    let hcl_of_tdx = URL_SAFE.encode(file("az-tdx-vtpm/hcl-report.bin"));
    let of_tdx = changed(&evidence, |body| body["hcl_report"] = hcl_of_tdx.into());
    assert_eq!(
        genuine(&of_tdx),
        Err(VerifyError::Unsupported {
            what: "a paravisor's report over Tdx as evidence of Snp".to_owned()
        })
    );
    let capitals = changed(&evidence, |body| {
        let message = body["tpm_quote"]["message"]
            .as_str()
            .unwrap()
            .to_uppercase();
        body["tpm_quote"]["message"] = message.into();
    });
    assert_eq!(
        genuine(&capitals),
        Err(VerifyError::Malformed {
            reason: "message: capital hexadecimal digits".to_owned()
        })
    );
    let version = changed(&evidence, |body| body["version"] = 3.into());
    assert_eq!(
        genuine(&version),
        Err(VerifyError::Unsupported {
            what: "evidence of Azure in version 3: 1 and 2 are known".to_owned()
        })
    );
    let body = json!({
        "version": 2,
        "tpm_quote": evidence.body()["tpm_quote"],
        "hcl_report": evidence.body()["hcl_report"],
        "td_quote": URL_SAFE.encode(file("az-tdx-vtpm/td-quote.bin")),
    });
    assert_eq!(
        genuine(&Evidence::new(TeeKind::AzTdxVtpm, body)),
        Err(VerifyError::Unsupported {
            what: "a paravisor's report over Snp as evidence of Tdx".to_owned()
        })
    );
}

/// Intel's collateral of that machine was not recorded, so that its quote cannot be
/// verified here; the whole is, beside the code, with a processor of the test's own.
#[test]
fn a_quote_of_tdx_needs_intels_collateral() {
    if folder().is_none() {
        return;
    }
    let quote = file("az-tdx-vtpm/quote.bin");
    let (signature, rest) = prefixed(&quote);
    let (message, _) = prefixed(rest);
    let body = json!({
        "version": 2,
        "tpm_quote": {
            "message": hex::encode(message), "signature": hex::encode(signature), "pcrs": []
        },
        "hcl_report": URL_SAFE.encode(file("az-tdx-vtpm/hcl-report.bin")),
        "td_quote": URL_SAFE.encode(file("az-tdx-vtpm/td-quote.bin")),
    });
    let refused = genuine(&Evidence::new(TeeKind::AzTdxVtpm, body));
    assert!(
        matches!(&refused, Err(VerifyError::CollateralMissing { what }) if what.contains("TDX")),
        "{refused:?}"
    );
}

#[test]
fn every_byte_of_the_three_parts_counts() {
    if folder().is_none() {
        return;
    }
    let evidence = recorded();
    for pointer in [
        "/hcl_report",
        "/vcek",
        "/tpm_quote/message",
        "/tpm_quote/signature",
    ] {
        let length = bytes(&evidence, pointer).len();
        for place in 0..length {
            let flipped = with_bytes(&evidence, pointer, |bytes| bytes[place] ^= 1);
            assert!(genuine(&flipped).is_err(), "{pointer} {place}");
        }
        for length in 0..length {
            // The zeros that fill the report's place in the TPM end anywhere.
            if pointer == "/hcl_report" && length >= 2346 {
                continue;
            }
            let cut = with_bytes(&evidence, pointer, |bytes| bytes.truncate(length));
            assert!(genuine(&cut).is_err(), "{pointer} up to {length}");
        }
    }
    for place in 0..24 {
        let other = changed(&evidence, |body| {
            body["tpm_quote"]["pcrs"][place] = "11".repeat(32).into();
        });
        assert!(genuine(&other).is_err(), "register {place}");
    }
}
