//! Exchanges with an ultravisor in software: synthetic all of it. What IBM publishes to test
//! its own tools with says that the formats are right.

#[path = "../../tests/support/ultravisor.rs"]
mod ultravisor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p521::SecretKey;
use ring::hmac;
use serde_json::Value;
use ultravisor::{Ultravisor, header, opened};

use super::collect::{Measured, answer};
use super::request::{Secrets, host_key_hash};
use super::verify::items;
use super::{ImageTags, SePlatform};
use crate::{
    Binding, Claims, Collateral, CollectError, Evidence, Platform, Policy, Protection, TeeKind,
    Trust, UnixTime, Verifier, VerifyError, support,
};

const AT: UnixTime = UnixTime(1_770_000_000);

fn binding() -> Binding {
    Binding::from([0x5a; 64])
}

impl Ultravisor {
    /// What a guest collects.
    fn evidence(&self, request: &str, binding: &Binding) -> Evidence {
        let body = self.answer(request, binding.as_bytes());
        let bytes = |field: &str| STANDARD.decode(body[field].as_str().unwrap()).unwrap();
        let evidence = answer(Some(request), binding, |_, user_data, sizes| {
            assert_eq!((user_data, sizes), (binding.as_bytes(), (64, 64)));
            Ok(Measured {
                measurement: bytes("measurement"),
                additional: bytes("additional_data"),
                cuid: bytes("cuid").try_into().unwrap(),
            })
        })
        .unwrap();
        assert_eq!(*evidence.body(), body);
        evidence
    }

    fn image(&self) -> ImageTags {
        ImageTags::of_header(&self.header).unwrap()
    }
}

/// A verifier that knows these files.
fn verifier(files: &[&[u8]]) -> Verifier {
    let mut collateral = Collateral::default();
    for file in files {
        assert!(collateral.add(file));
    }
    Verifier::new(collateral)
}

fn verify(verifier: &Verifier, evidence: &Evidence) -> Result<Claims, VerifyError> {
    verifier.verify(evidence, &binding(), AT)
}

fn platform(claims: &Claims) -> &SePlatform {
    let Platform::Se(platform) = claims.platform() else {
        panic!("{claims:?}");
    };
    platform
}

/// Evidence with one field of its body changed.
fn with(evidence: &Evidence, field: &str, change: impl Fn(&mut Vec<u8>)) -> Evidence {
    let mut body = evidence.body().clone();
    let mut bytes = STANDARD.decode(body[field].as_str().unwrap()).unwrap();
    change(&mut bytes);
    body[field] = STANDARD.encode(bytes).into();
    Evidence::new(TeeKind::Se, body)
}

#[test]
fn an_exchange_gives_the_claims_of_the_image_that_was_started() {
    let (ultravisor, other) = (Ultravisor::new(1, 2), Ultravisor::new(2, 1));
    // Two machines and two images: the request is for any of them.
    let verifier = verifier(&[
        &other.document,
        &ultravisor.document,
        &header(1),
        &header(2),
    ]);
    let request = verifier.request().unwrap();
    let claims = verify(&verifier, &ultravisor.evidence(&request, &binding())).unwrap();
    assert_eq!(
        (claims.tee(), claims.trust(), claims.protection()),
        (
            TeeKind::Se,
            Trust::ListedKey,
            Protection::ConfidentialMemory
        )
    );
    assert_eq!(*claims.measurement(), ultravisor.image().measurement());
    let key = ultravisor.host_key_hash();
    assert_eq!(key, host_key_hash(&ultravisor.host.public_key()));
    assert_eq!(platform(&claims).host_key, key.into());
    let claims = verify(&verifier, &other.evidence(&request, &binding())).unwrap();
    assert_eq!(*claims.measurement(), other.image().measurement());

    let judge = |keys: &[String], measurement: String| {
        let policy = format!(
            "format = 1\n[evidence]\ntrust = [\"listed-key\"]\nmeasurements = [\"{measurement}\"]\n\
             [evidence.se]\nhost-keys = {keys:?}\n"
        );
        let judged = Policy::parse(&policy).unwrap().judge_claims(&claims);
        judged.map_err(|refusal| refusal.to_string())
    };
    let key = platform(&claims).host_key.to_string();
    let measured = claims.measurement().to_string();
    assert_eq!(judge(std::slice::from_ref(&key), measured.clone()), Ok(()));
    assert_eq!(
        judge(&[], measured).unwrap_err(),
        format!("the evidence has {key} for se.host-keys, the policy accepts none")
    );
    let refused = judge(&[key], "00".repeat(32)).unwrap_err();
    assert!(refused.ends_with("is not in the policy"), "{refused}");
}

#[test]
fn an_image_that_another_host_key_opened_has_to_be_listed_too() {
    let mut ultravisor = Ultravisor::new(1, 1);
    ultravisor.image_host_key = Some([0x99; 32]);
    let verifier = verifier(&[&ultravisor.document, &header(1)]);
    let request = verifier.request().unwrap();
    let claims = verify(&verifier, &ultravisor.evidence(&request, &binding())).unwrap();
    let (host, image) = (platform(&claims).host_key, platform(&claims).image_host_key);
    let judge = |keys: &[String]| {
        let policy = format!(
            "format = 1\n[evidence]\ntrust = [\"listed-key\"]\nmeasurements = [\"{}\"]\n\
             [evidence.se]\nhost-keys = {keys:?}\n",
            claims.measurement(),
        );
        let judged = Policy::parse(&policy).unwrap().judge_claims(&claims);
        judged.map_err(|refusal| refusal.to_string())
    };
    let (host, image) = (host.to_string(), image.to_string());
    assert_eq!(judge(&[host.clone(), image.clone()]), Ok(()));
    for (listed, missing) in [(&host, &image), (&image, &host)] {
        assert_eq!(
            judge(std::slice::from_ref(listed)).unwrap_err(),
            format!("the evidence has {missing} for se.host-keys, the policy accepts {listed}")
        );
    }
}

#[test]
fn an_answer_is_bound_to_the_guests_bytes_and_to_the_request() {
    let ultravisor = Ultravisor::new(1, 1);
    let verifier = verifier(&[&ultravisor.document, &header(1)]);
    let request = verifier.request().unwrap();
    let elsewhere = ultravisor.evidence(&request, &Binding::from([1; 64]));
    assert_eq!(
        verify(&verifier, &elsewhere),
        Err(VerifyError::BindingMismatch)
    );
    // Another verifier's request, though it knows the same machine and image.
    let stranger = self::verifier(&[&ultravisor.document, &header(1)]);
    let foreign = ultravisor.evidence(&stranger.request().unwrap(), &binding());
    assert_eq!(
        verify(&verifier, &foreign),
        Err(VerifyError::EndorsementMismatch {
            what: "another request than this verifier's"
        })
    );
    // Secrets of one request and the measurement of another.
    let (one, two) = (
        ultravisor.evidence(&request, &binding()),
        ultravisor.evidence(&verifier.request().unwrap(), &binding()),
    );
    let mut mixed = one.body().clone();
    mixed["measurement"] = two.body()["measurement"].clone();
    assert_eq!(
        verify(&verifier, &Evidence::new(TeeKind::Se, mixed)),
        Err(BAD_ANSWER)
    );
}

const BAD_ANSWER: VerifyError = VerifyError::BadSignature {
    of: "the answer",
    by: "an ultravisor that started an image of the collateral",
};

#[test]
fn an_image_that_the_verifier_does_not_know_is_refused() {
    let ultravisor = Ultravisor::new(1, 3);
    let verifier = verifier(&[&ultravisor.document, &header(1)]);
    let answer = ultravisor.evidence(&verifier.request().unwrap(), &binding());
    assert_eq!(verify(&verifier, &answer), Err(BAD_ANSWER));
}

#[test]
fn every_flipped_byte_and_every_length_of_a_field_is_refused() {
    let ultravisor = Ultravisor::new(1, 1);
    let verifier = verifier(&[&ultravisor.document, &header(1)]);
    let evidence = ultravisor.evidence(&verifier.request().unwrap(), &binding());
    verify(&verifier, &evidence).unwrap();
    let fields: Vec<String> = evidence
        .body()
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(fields.len(), 7);
    for field in &fields {
        let bytes = with(&evidence, field, |_| ());
        assert_eq!(bytes, evidence);
        let text = evidence.body()[field].as_str().unwrap();
        for place in 0..STANDARD.decode(text).unwrap().len() {
            let flipped = with(&evidence, field, |bytes| bytes[place] ^= 1);
            assert!(verify(&verifier, &flipped).is_err(), "{field} {place}");
            let cut = with(&evidence, field, |bytes| bytes.truncate(place));
            assert!(verify(&verifier, &cut).is_err(), "{field} up to {place}");
        }
        let longer = with(&evidence, field, |bytes| bytes.push(0));
        assert!(verify(&verifier, &longer).is_err(), "{field} and a byte");
        let mut without = evidence.body().clone();
        without.as_object_mut().unwrap().remove(field);
        let without = Evidence::new(TeeKind::Se, without);
        assert!(verify(&verifier, &without).is_err(), "{field}");
    }
    let short = with(&evidence, "user_data", |bytes| bytes.truncate(48));
    assert_eq!(
        verify(&verifier, &short).unwrap_err().to_string(),
        "the evidence is malformed: user_data: 48 bytes"
    );
}

#[test]
fn a_verifier_without_a_host_key_or_an_image_asks_nothing() {
    let ultravisor = Ultravisor::new(1, 1);
    let missing = |files: &[&[u8]]| verifier(files).request().unwrap_err().to_string();
    assert_eq!(
        missing(&[&header(1)]),
        "the host key document of an IBM Z machine is missing: it came neither with the \
         evidence nor is it in the collateral"
    );
    assert_eq!(
        missing(&[&ultravisor.document]),
        "the header of an image for IBM Secure Execution is missing: it came neither with the \
         evidence nor is it in the collateral"
    );
}

#[test]
fn a_guest_that_is_asked_nothing_or_nonsense_answers_nothing() {
    let ask = |request: Option<&str>| {
        answer(request, &binding(), |_, _, _| {
            unreachable!("nothing is asked")
        })
    };
    assert!(matches!(ask(None), Err(CollectError::NoRequest)));
    for request in ["", "nonce", "{}", "{\"request_blob\":1}"] {
        assert!(matches!(
            ask(Some(request)),
            Err(CollectError::Request { .. })
        ));
    }
    let long = " ".repeat(64 * 1024 + 1);
    assert_eq!(
        ask(Some(&long)).unwrap_err().to_string(),
        "the verifier's request cannot be used: 65537 bytes"
    );
}

/// `measurement_all` of s390-tools' own tests (`pv`'s `uvattest/attest.rs`).
#[test]
fn the_measured_bytes_are_those_of_ibms_tools() {
    let tags = [vec![1; 64], vec![2; 64], vec![3; 64], vec![4; 16]].concat();
    let measured = items(&tags, &[5; 16], &[7; 256], &[8; 16], &[9; 128]);
    let key = hmac::Key::new(hmac::HMAC_SHA512, &[0x41; 64]);
    assert_eq!(
        hex::encode(hmac::sign(&key, &measured)),
        "88794c62cce7bcf26216deb3f48f13fea6374b6d7e35bcc5c2ce68121db6f45dfc8c171856463549408b\
         f8e7d1aca11efad0a878af97dc9e21a1fc2a32f3a675"
    );
}

/// A request that IBM's tools made, with secrets that their tests name.
#[test]
fn a_request_has_the_form_of_ibms_tools() {
    if support::folder().is_none() {
        return;
    }
    let recorded = support::file("ibm-se/arcb.bin");
    let protection = [0x17; 32];
    let (associated, encrypted) = recorded.split_at(recorded.len() - 0x50 - 16);
    let secrets = opened(&protection, [0x55; 12], associated, encrypted).unwrap();
    assert_eq!(secrets, [vec![0x77; 64], vec![0xab; 16]].concat());

    // The same secrets for another machine: what is in front of the keys is theirs to the byte.
    let (ultravisor, other) = (Ultravisor::new(1, 1), Ultravisor::new(2, 1));
    let secrets = Secrets {
        key: [0x77; 64].into(),
        nonce: [0xab; 16].into(),
    };
    let customer = SecretKey::from_slice(&[1; 66]).unwrap();
    let made = secrets.request(
        &[ultravisor.host.public_key()],
        &customer,
        &protection,
        [0x55; 12],
    );
    assert_eq!(made.len(), recorded.len());
    assert_eq!(made[..0x40], recorded[..0x40]);
    let expected = [vec![0x77; 64], vec![0xab; 16]].concat();
    assert_eq!(ultravisor.open(&made), Some(expected));
    assert_eq!(other.open(&made), None);
}

/// Their header, and what their tests read in it.
#[test]
fn an_images_header_is_read_as_ibms_tools_do() {
    if support::folder().is_none() {
        return;
    }
    let recorded = support::file("ibm-se/secure_guest.hdr");
    let tags = ImageTags::of_header(&recorded).unwrap();
    assert!(hex::encode(tags.as_bytes()).starts_with("be94b5eab3c1b118c757d7db7ea0f65d"));
    assert!(hex::encode(&tags.as_bytes()[64..]).starts_with("2858c3368b2a0af0c5ea0fde7905eb15"));
    assert_eq!(tags.as_bytes()[192..], recorded[recorded.len() - 16..]);
    for length in 0..recorded.len() {
        assert_eq!(ImageTags::of_header(&recorded[..length]), None);
    }
    let mut other = recorded.clone();
    other[0] ^= 1;
    assert_eq!(ImageTags::of_header(&other), None);
    other[0] ^= 1;
    other[10] ^= 1;
    assert_eq!(ImageTags::of_header(&other), None);
}

#[test]
fn a_request_travels_in_the_form_of_the_kbs_protocol() {
    let ultravisor = Ultravisor::new(1, 1);
    let request = verifier(&[&ultravisor.document, &header(1)])
        .request()
        .unwrap();
    let request: Value = serde_json::from_str(&request).unwrap();
    let mut names: Vec<&String> = request.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "additional_size",
            "encr_measurement_key",
            "encr_request_nonce",
            "image_hdr_tags",
            "measurement_size",
            "request_blob"
        ]
    );
}
