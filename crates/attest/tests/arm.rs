//! Arm CCA and `TrustZone`: recorded tokens and the RFC's own example hold under the keys that
//! the verifier has, and nothing that was changed in them does. Tokens with other claims are
//! made here, under keys of the test's own.

mod support;

use coset::cbor::Value as Cbor;
use coset::{CborSerializable, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable, iana};
use occlude_attest::arm::Lifecycle;
use occlude_attest::cca::evidence_of_token as cca_evidence;
use occlude_attest::trustzone::evidence_of_token as psa_evidence;
use occlude_attest::{
    Attester, Binding, Claims, Collateral, Evidence, Machine, Measurement, Platform, Policy,
    Protection, RecordedEvidence, Refusal, TeeKind, Trust, UnixTime, Verifier, VerifyError,
};
use p256::ecdsa::signature::Signer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{file, folder};

const AT: UnixTime = UnixTime(1_764_000_000);

fn verifier(keys: &[u8]) -> Verifier {
    let mut collateral = Collateral::default();
    assert!(collateral.add(keys));
    Verifier::new(collateral)
}

fn genuine(verifier: &Verifier, evidence: &Evidence) -> Result<Claims, VerifyError> {
    let genuine = verifier.authenticate(evidence, AT)?;
    Ok(genuine.unbound_claims())
}

/// Recorded tokens, the keys that they are signed with, and what they carry.
const RECORDED: [(&str, &str, Trust); 3] = [
    (
        "cca/cca-token-01.cbor",
        "cca/ta-tfa.json",
        Trust::VendorTestRoot,
    ),
    (
        "cca/cca-token-draft-ffm-00.cbor",
        "cca/ta-tfa.json",
        Trust::VendorTestRoot,
    ),
    (
        "cca/cca-token-02.cbor",
        "cca/ta-02-ok.json",
        Trust::ListedKey,
    ),
];

#[test]
fn recorded_tokens_of_cca_hold_and_say_whose_word_they_are() {
    if folder().is_none() {
        return;
    }
    for (token, keys, trust) in RECORDED {
        let recorded = RecordedEvidence::read(&file(token), Some(TeeKind::Cca)).unwrap();
        let claims = genuine(&verifier(&file(keys)), &recorded.evidence).unwrap();
        assert_eq!(
            (claims.tee(), claims.trust(), claims.protection()),
            (TeeKind::Cca, trust, Protection::ConfidentialMemory)
        );
        assert!(!claims.debug());
    }
    // As another CBOR reader shows it.
    let keys = verifier(&file("cca/ta-tfa.json"));
    let token = cca_evidence(&file("cca/cca-token-draft-ffm-00.cbor"));
    let claims = genuine(&keys, &token).unwrap();
    assert_eq!(
        claims.measurement().to_string(),
        "311314ab73620350cf758834ae5c65d9e8c2dc7febe6e7d9654bbe864e300d49"
    );
    let Platform::Cca(found) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(found.platform.lifecycle, Lifecycle::Secured);
    let names: Vec<_> = found.platform.components.iter().collect();
    assert_eq!(names.len(), 13);
    assert_eq!(names[8].name.as_deref(), Some("RMM"));
    assert!(found.rem[3].to_string().starts_with("32c6afc627e55585"));
}

#[test]
fn a_token_of_cca_holds_for_the_challenge_that_is_in_it_and_for_no_other() {
    if folder().is_none() {
        return;
    }
    let keys = verifier(&file("cca/ta-tfa.json"));
    let evidence = cca_evidence(&file("cca/cca-token-01.cbor"));
    let verify = |byte| keys.verify(&evidence, &Binding::from([byte; 64]), AT);
    assert!(verify(0xab).is_ok());
    assert_eq!(verify(0xac), Err(VerifyError::BindingMismatch));
}

#[test]
fn a_token_needs_the_key_of_its_device() {
    if folder().is_none() {
        return;
    }
    let evidence = cca_evidence(&file("cca/cca-token-01.cbor"));
    let missing = VerifyError::CollateralMissing {
        what: "the key of device \
               0107060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918 of \
               implementation 7f454c4602010100000000000000000003003e00010000005058000000000000"
            .to_owned(),
    };
    for keys in ["cca/ta.json", "cca/ta-02-ok.json"] {
        assert_eq!(
            genuine(&verifier(&file(keys)), &evidence),
            Err(missing.clone())
        );
    }
    // The device's name beside another key.
    let mut keys: Value = serde_json::from_slice(&file("cca/ta-tfa.json")).unwrap();
    let other: Value = serde_json::from_slice(&file("cca/ta.json")).unwrap();
    keys[0]["pkey"] = other[0]["pkey"].clone();
    assert_eq!(
        genuine(&verifier(keys.to_string().as_bytes()), &evidence),
        Err(VerifyError::BadSignature {
            of: "the platform's token",
            by: "the device's key"
        })
    );
}

#[test]
fn another_realms_part_is_not_taken_for_this_platforms() {
    if folder().is_none() {
        return;
    }
    let parts = |name: &str| -> (Cbor, Cbor) {
        let token: Cbor = coset::cbor::from_reader(&file(name)[..]).unwrap();
        let Cbor::Tag(399, parts) = token else {
            panic!("no token");
        };
        let mut parts = parts.into_map().unwrap();
        let realm = parts.pop().unwrap().1;
        (parts.pop().unwrap().1, realm)
    };
    let (platform, _) = parts("cca/cca-token-01.cbor");
    let (_, realm) = parts("cca/cca-token-02.cbor");
    let mixed = token(platform, realm);
    assert_eq!(
        genuine(&verifier(&file("cca/ta-tfa.json")), &cca_evidence(&mixed)),
        Err(VerifyError::EndorsementMismatch {
            what: "another realm's key"
        })
    );
}

#[test]
fn every_byte_of_a_recorded_token_counts() {
    if folder().is_none() {
        return;
    }
    for (name, keys, _) in RECORDED {
        let (token, keys) = (file(name), verifier(&file(keys)));
        for place in 0..token.len() {
            for bit in [1, 0x20] {
                let mut flipped = token.clone();
                flipped[place] ^= bit;
                assert!(
                    genuine(&keys, &cca_evidence(&flipped)).is_err(),
                    "{name} {place} {bit}"
                );
            }
            assert!(
                genuine(&keys, &cca_evidence(&token[..place])).is_err(),
                "{name} up to {place}"
            );
        }
        let longer = [&token[..], &[0]].concat();
        assert!(genuine(&keys, &cca_evidence(&longer)).is_err());
    }
}

fn token(platform: Cbor, realm: Cbor) -> Vec<u8> {
    let parts = Cbor::Map(vec![(44234.into(), platform), (44241.into(), realm)]);
    let mut token = Vec::new();
    coset::cbor::into_writer(&Cbor::Tag(399, Box::new(parts)), &mut token).unwrap();
    token
}

/// A device of the test's own, on P-256, and a realm on it, on P-384.
struct Device {
    key: p256::ecdsa::SigningKey,
    realm: p384::ecdsa::SigningKey,
}

type ClaimsOf = Vec<(i64, Cbor)>;

impl Device {
    fn new() -> Self {
        Self {
            key: p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap(),
            realm: p384::ecdsa::SigningKey::from_slice(&[8; 48]).unwrap(),
        }
    }

    /// Its key, as its maker gives it out.
    fn keys(&self) -> Vec<u8> {
        use base64::Engine;
        let point = self.key.verifying_key().to_sec1_point(false);
        let number = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = point.as_bytes()[1..].split_at(32);
        json!([{
            "instance-id": format!("01{}", "1d".repeat(32)),
            "implementation-id": "1e".repeat(32),
            "pkey": {"kty": "EC", "crv": "P-256", "x": number(x), "y": number(y)},
        }])
        .to_string()
        .into_bytes()
    }

    fn claims(&self) -> ClaimsOf {
        let component = Cbor::Map(vec![
            (1.into(), "monitor".into()),
            (2.into(), Cbor::Bytes(vec![0xc2; 32])),
            (5.into(), Cbor::Bytes(vec![0xc5; 32])),
        ]);
        vec![
            (256, Cbor::Bytes([&[1][..], &[0x1d; 32]].concat())),
            (2396, Cbor::Bytes(vec![0x1e; 32])),
            (2395, 0x3001.into()),
            (2399, Cbor::Array(vec![component])),
        ]
    }

    /// Claims that the device signs.
    fn sign(&self, claims: ClaimsOf) -> Vec<u8> {
        signed(claims, iana::Algorithm::ES256, |bytes| {
            let signature: p256::ecdsa::Signature = self.key.sign(bytes);
            signature.to_bytes().to_vec()
        })
    }

    fn realm_point(&self) -> Vec<u8> {
        let point = self.realm.verifying_key().to_sec1_point(false);
        point.as_bytes().to_vec()
    }

    /// A token of a realm, with some claims of either part changed.
    fn cca(&self, platform: &[(i64, Cbor)], realm: &[(i64, Cbor)]) -> Evidence {
        let digest = |bytes: &[u8]| Cbor::Bytes(Sha256::digest(bytes).to_vec());
        let mut of_platform = self.claims();
        of_platform.push((265, "tag:arm.com,2023:cca_platform#1.0.0".into()));
        of_platform.push((10, digest(&self.realm_point())));
        let register = || Cbor::Bytes(vec![0x4e; 32]);
        let of_realm = vec![
            (265, "tag:arm.com,2023:realm#1.0.0".into()),
            (10, Cbor::Bytes(vec![0x5a; 64])),
            (44235, Cbor::Bytes([[0xc0; 32], [0; 32]].concat())),
            (44237, Cbor::Bytes(self.realm_point())),
            (44238, Cbor::Bytes(vec![0x41; 32])),
            (44239, Cbor::Array(vec![register(); 4])),
            (44240, "sha-256".into()),
        ];
        let realm = signed(changed(of_realm, realm), iana::Algorithm::ES384, |bytes| {
            let signature: p384::ecdsa::Signature = self.realm.sign(bytes);
            signature.to_bytes().to_vec()
        });
        let platform = self.sign(changed(of_platform, platform));
        cca_evidence(&token(Cbor::Bytes(platform), Cbor::Bytes(realm)))
    }

    /// A token of the secure world, with some claims changed.
    fn psa(&self, claims: &[(i64, Cbor)]) -> Evidence {
        let mut all = self.claims();
        all.push((265, "tag:psacertified.org,2023:psa#tfm".into()));
        all.push((10, Cbor::Bytes(vec![0x5a; 64])));
        all.push((2394, 3.into()));
        psa_evidence(&self.sign(changed(all, claims)))
    }
}

fn changed(mut claims: ClaimsOf, changes: &[(i64, Cbor)]) -> ClaimsOf {
    for (number, value) in changes {
        claims.retain(|(claim, _)| claim != number);
        // Nothing in place of a claim takes it out.
        if *value != Cbor::Null {
            claims.push((*number, value.clone()));
        }
    }
    claims
}

fn signed(
    claims: ClaimsOf,
    algorithm: iana::Algorithm,
    sign: impl Fn(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let claims = claims
        .into_iter()
        .map(|(number, value)| (number.into(), value));
    let mut payload = Vec::new();
    coset::cbor::into_writer(&Cbor::Map(claims.collect()), &mut payload).unwrap();
    CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(algorithm).build())
        .payload(payload)
        .create_signature(&[], sign)
        .build()
        .to_tagged_vec()
        .unwrap()
}

#[test]
fn a_realms_claims_are_told_with_what_the_launch_set() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    let claims = keys
        .verify(&device.cca(&[], &[]), &Binding::from([0x5a; 64]), AT)
        .unwrap();
    assert_eq!(claims.measurement(), &Measurement::from([0x41; 32]));
    assert_eq!(claims.configuration().unwrap().as_bytes(), &[0xc0; 32]);
    assert_eq!(claims.trust(), Trust::ListedKey);
    let Platform::Cca(found) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(found.rem, [[0x4e; 32]; 4].map(Measurement::from));
    // Anything else that the launch set is no configuration of ours.
    for chosen in [vec![0; 64], vec![0xc0; 64]] {
        let evidence = device.cca(&[], &[(44235, Cbor::Bytes(chosen))]);
        let claims = genuine(&keys, &evidence).unwrap();
        assert_eq!(claims.configuration(), None);
    }
}

#[test]
fn a_device_that_can_be_debugged_is_refused_by_every_policy() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    for lifecycle in [0, 0x1000, 0x2000, 0x4000, 0x50ff, 0x6000] {
        let change = [(2395, Cbor::from(lifecycle))];
        for evidence in [device.cca(&change, &[]), device.psa(&change)] {
            let claims = genuine(&keys, &evidence).unwrap();
            assert!(claims.debug(), "{lifecycle:#x}");
            let policy = Policy::parse("format = 1\n").unwrap();
            assert_eq!(policy.judge_claims(&claims), Err(Refusal::Debug));
        }
    }
    for evidence in [device.cca(&[], &[]), device.psa(&[])] {
        assert!(!genuine(&keys, &evidence).unwrap().debug());
    }
}

#[test]
fn each_malformation_of_a_token_is_told() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    let malformed = |what: &str, reason: &str| {
        Err(VerifyError::Malformed {
            reason: format!("{what}: {reason}"),
        })
    };
    let bytes = |length| Cbor::Bytes(vec![1; length]);
    for (claim, value, reason) in [
        (256, bytes(32), "claim 256 is not 33 bytes"),
        (2396, bytes(33), "claim 2396 is not 32 bytes"),
        (2395, "secured".into(), "claim 2395 is not a number"),
        (2395, 0x7000.into(), "lifecycle 28672"),
        (2399, Cbor::Null, "claim 2399 is not a list"),
        (2399, Cbor::Array(Vec::new()), "0 components"),
        (
            2399,
            Cbor::Array(vec![Cbor::Map(Vec::new()); 65]),
            "65 components",
        ),
        (
            2399,
            Cbor::Array(vec![Cbor::Map(Vec::new())]),
            "claim 2 is not bytes",
        ),
        (
            2399,
            Cbor::Array(vec![1.into()]),
            "its claims are not a map",
        ),
    ] {
        let change = [(claim, value)];
        assert_eq!(
            genuine(&keys, &device.cca(&change, &[])),
            malformed("the platform's token", reason)
        );
        assert_eq!(
            genuine(&keys, &device.psa(&change)),
            malformed("the token", reason)
        );
    }
    for (claim, value, reason) in [
        (10, bytes(63), "claim 10 is not 64 bytes"),
        (44235, bytes(65), "claim 44235 is not 64 bytes"),
        (44238, bytes(20), "claim 44238 is not 32, 48 or 64 bytes"),
        (
            44239,
            Cbor::Array(vec![bytes(32); 3]),
            "its extensible measurements are not four digests",
        ),
        (44240, 1.into(), "claim 44240 is not a text"),
    ] {
        assert_eq!(
            genuine(&keys, &device.cca(&[], &[(claim, value)])),
            malformed("the realm's token", reason)
        );
    }
    let no_key = Cbor::Bytes(vec![4; 97]);
    let digest = Cbor::Bytes(Sha256::digest([4; 97]).to_vec());
    assert_eq!(
        genuine(&keys, &device.cca(&[(10, digest)], &[(44237, no_key)])),
        malformed("the realm's token", "its key cannot be read")
    );
    assert_eq!(
        genuine(&keys, &device.psa(&[(2394, (1_i64 << 40).into())])),
        malformed("the token", "client 1099511627776")
    );
    assert_eq!(
        genuine(&keys, &cca_evidence(&vec![0; 16 * 1024 + 1])),
        malformed("the token", "16385 bytes, it has at most 16384")
    );
    assert_eq!(
        genuine(&keys, &psa_evidence(&vec![0; 16 * 1024 + 1])),
        malformed("the token", "16385 bytes, it has at most 16384")
    );
    assert_eq!(
        genuine(&keys, &cca_evidence(&[0xa0])),
        malformed("the token", "it is not a platform's and a realm's part")
    );
    // A number in more bytes than it needs.
    assert_eq!(
        genuine(&keys, &cca_evidence(&[0x18, 1])),
        malformed("the token", "it is not in the one encoding that it has")
    );
}

#[test]
fn claims_that_are_twice_there_or_have_no_number_are_refused() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    let sign = |entries: Vec<(Cbor, Cbor)>| {
        let mut payload = Vec::new();
        coset::cbor::into_writer(&Cbor::Map(entries), &mut payload).unwrap();
        let header = HeaderBuilder::new().algorithm(iana::Algorithm::ES256);
        CoseSign1Builder::new()
            .protected(header.build())
            .payload(payload)
            .create_signature(&[], |bytes| {
                let signature: p256::ecdsa::Signature = device.key.sign(bytes);
                signature.to_bytes().to_vec()
            })
            .build()
    };
    let refused = |entries| {
        let token = sign(entries).to_vec().unwrap();
        genuine(&keys, &psa_evidence(&token))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(vec![(1.into(), 1.into()), (1.into(), 2.into())]),
        "the evidence is malformed: the token: claim 1 twice"
    );
    assert_eq!(
        refused(vec![("nonce".into(), 1.into())]),
        "the evidence is malformed: the token: a claim that is not named by a number"
    );
    // A key that the message names would be taken for the device's by somebody.
    let mut message = sign(vec![(1.into(), 1.into())]);
    message.protected.header.key_id = vec![1];
    message.protected.original_data = None;
    assert_eq!(
        genuine(&keys, &psa_evidence(&message.clone().to_vec().unwrap()))
            .unwrap_err()
            .to_string(),
        "the evidence is malformed: the token: its headers have more than the algorithm of its \
         signature"
    );
    message.protected.header.alg = None;
    message.protected.header.key_id.clear();
    assert_eq!(
        genuine(&keys, &psa_evidence(&message.clone().to_vec().unwrap()))
            .unwrap_err()
            .to_string(),
        "the evidence is malformed: the token: its headers name no algorithm"
    );
    let mut message = sign(vec![(1.into(), 1.into())]);
    message.payload.as_mut().unwrap().push(0);
    assert_eq!(
        genuine(&keys, &psa_evidence(&message.clone().to_vec().unwrap()))
            .unwrap_err()
            .to_string(),
        "the evidence is malformed: the token: bytes after its claims"
    );
}

#[test]
fn other_profiles_hashes_and_algorithms_are_refused() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    let unsupported = |what: &str| {
        Err(VerifyError::Unsupported {
            what: what.to_owned(),
        })
    };
    let profile = |text: &str| [(265, Cbor::from(text))];
    assert_eq!(
        genuine(&keys, &device.cca(&profile("a"), &[])),
        unsupported("the platform's token of profile \"a\"")
    );
    assert_eq!(
        genuine(&keys, &device.cca(&[], &profile("b"))),
        unsupported("the realm's token of profile \"b\"")
    );
    assert_eq!(
        genuine(&keys, &device.psa(&[(265, Cbor::Null)])),
        unsupported("the token of profile \"none\"")
    );
    assert_eq!(
        genuine(&keys, &device.cca(&[], &[(44240, "md5".into())])),
        unsupported("a realm's key under hash \"md5\"")
    );
    let claims = [
        device.claims(),
        vec![(265, "tag:psacertified.org,2023:psa#tfm".into())],
    ]
    .concat();
    let other = signed(claims, iana::Algorithm::ES384, |bytes| {
        let signature: p256::ecdsa::Signature = device.key.sign(bytes);
        signature.to_bytes().to_vec()
    });
    assert_eq!(
        genuine(&keys, &psa_evidence(&other)),
        Err(VerifyError::BadSignature {
            of: "the token",
            by: "the device's key"
        })
    );
}

/// The example of RFC 9783, appendix A.1, and the key that it is signed with.
const EXAMPLE: &str = "\
    d28443a10126a0590100a819010058210102020202020202020202020202020202020202\
    0202020202020202020202020219095c5820000000000000000000000000000000000000\
    00000000000000000000000000000a582001010101010101010101010101010101010101\
    0101010101010101010101010119095a1a7fffffff19095b19300019010978217461673a\
    7073616365727469666965642e6f72672c323032333a7073612374666d19010c48000000\
    000000000019095f81a30558200404040404040404040404040404040404040404040404\
    040404040404040404025820030303030303030303030303030303030303030303030303\
    0303030303030303016450526f545840786e937a4c42667af3847399319ca95c7e7dbabd\
    c9b50fdb8de3f6bff4ab82ff80c42140e2a488000219e3e10663193da69c75f52b798ea1\
    0b2f7041a90e8e5a";

fn example_keys() -> Vec<u8> {
    json!([{
        "instance-id": format!("01{}", "02".repeat(32)),
        "implementation-id": "00".repeat(32),
        "pkey": {
            "kty": "EC",
            "crv": "P-256",
            "x": "Tl4iCZ47zrRbRG0TVf0dw7VFlHtv18HInYhnmMNybo8",
            "y": "gNcLhAslaqw0pi7eEEM2TwRAlfADR0uR4Bggkq-xPy4",
        },
    }])
    .to_string()
    .into_bytes()
}

#[test]
fn the_rfcs_example_holds_and_every_byte_of_it_counts() {
    let keys = verifier(&example_keys());
    let token = hex::decode(EXAMPLE).unwrap();
    let recorded = RecordedEvidence::read(EXAMPLE.as_bytes(), Some(TeeKind::TrustZone)).unwrap();
    assert_eq!(recorded.evidence, psa_evidence(&token));
    let claims = genuine(&keys, &recorded.evidence).unwrap();
    assert_eq!(
        (claims.tee(), claims.protection()),
        (TeeKind::TrustZone, Protection::MeasuredBootOnly)
    );
    let Platform::TrustZone(found) = claims.platform() else {
        panic!("{claims:?}");
    };
    assert_eq!(found.client_id, i32::MAX);
    assert_eq!(found.platform.components[0].name.as_deref(), Some("PRoT"));
    // Its nonce has 32 bytes: it is bound to nothing that we ask for.
    for binding in [
        Binding::from([1; 64]),
        Binding::from_report_data_48(&[1; 48]),
    ] {
        assert_eq!(
            keys.verify(&recorded.evidence, &binding, AT),
            Err(VerifyError::BindingMismatch)
        );
    }
    for place in 0..token.len() {
        for bit in [1, 0x20] {
            let mut flipped = token.clone();
            flipped[place] ^= bit;
            assert!(
                genuine(&keys, &psa_evidence(&flipped)).is_err(),
                "{place} {bit}"
            );
        }
        assert!(genuine(&keys, &psa_evidence(&token[..place])).is_err());
    }
}

fn policy(kind: &str, protection: &str, section: &str) -> Policy {
    Policy::parse(&format!(
        "format = 1\n[evidence]\ntee = [\"{kind}\"]\ntrust = [\"listed-key\"]\n\
         protection = [\"{protection}\"]\nmeasurements = [\"{}\", \"{}\"]\n\
         [evidence.{kind}]\n{section}\n",
        hex::encode([0x41; 32]),
        hex::encode(Sha256::digest([0xc2; 32])),
    ))
    .unwrap()
}

#[test]
fn a_policy_lists_the_device_and_what_runs_on_it() {
    let device = Device::new();
    let keys = verifier(&device.keys());
    let refused = |field: &'static str, found: &str, accepted: &str| {
        Err(Refusal::Platform {
            field,
            found: found.to_owned(),
            accepted: accepted.to_owned(),
        })
    };
    let claims = genuine(&keys, &device.cca(&[], &[])).unwrap();
    let Platform::Cca(found) = claims.platform() else {
        panic!("{claims:?}");
    };
    let key = found.platform.attestation_key.to_string();
    let listed = format!("attestation-keys = [\"{key}\"]\n");
    let judge = |section: &str| policy("cca", "confidential-memory", section).judge_claims(&claims);
    assert_eq!(judge(&listed), Ok(()));
    assert_eq!(judge(""), refused("cca.attestation-keys", &key, "none"));
    let other = "11".repeat(32);
    for (line, field, found) in [
        ("implementations", "cca.implementations", "1e".repeat(32)),
        ("rem0", "cca.rem0", "4e".repeat(32)),
        ("rem1", "cca.rem1", "4e".repeat(32)),
        ("rem2", "cca.rem2", "4e".repeat(32)),
        ("rem3", "cca.rem3", "4e".repeat(32)),
    ] {
        assert_eq!(judge(&format!("{listed}{line} = [\"{found}\"]")), Ok(()));
        assert_eq!(
            judge(&format!("{listed}{line} = [\"{other}\"]")),
            refused(field, &found, &other)
        );
    }
    let component = "c2".repeat(32);
    let foreign = format!("monitor = {component}");
    assert_eq!(
        judge(&format!("{listed}components = [\"{component}\"]")),
        Ok(())
    );
    assert_eq!(
        judge(&format!("{listed}components = [\"{other}\"]")),
        refused("cca.components", &foreign, "1 that are not it")
    );

    let claims = genuine(&keys, &device.psa(&[])).unwrap();
    let judge =
        |section: &str| policy("trustzone", "measured-boot-only", section).judge_claims(&claims);
    assert_eq!(judge(&format!("{listed}clients = [3]")), Ok(()));
    assert_eq!(
        judge(""),
        refused("trustzone.attestation-keys", &key, "none")
    );
    assert_eq!(
        judge(&format!("{listed}clients = [4]")),
        refused("trustzone.clients", "3", "4")
    );
    assert_eq!(
        judge(&format!("{listed}implementations = [\"{other}\"]")),
        refused("trustzone.implementations", &"1e".repeat(32), &other)
    );
    assert_eq!(
        judge(&format!("{listed}components = [\"{other}\"]")),
        refused("trustzone.components", &foreign, "1 that are not it")
    );
}

#[test]
fn a_token_is_fetched_by_the_operators_command() {
    let device = Device::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let Value::String(token) = device.psa(&[]).body()["token"].clone() else {
        panic!("no token");
    };
    std::fs::write(&file, token).unwrap();
    let script = format!("base64 -d {}", file.display());
    let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let machine = Machine::at(folder.path()).with_evidence_command(command);
    let attester = Attester::open_on(machine, TeeKind::TrustZone, [0; 32]).unwrap();
    let binding = Binding::from([0x5a; 64]);
    let evidence = attester.collect(&binding).unwrap();
    let keys = verifier(&device.keys());
    assert!(keys.verify(&evidence, &binding, AT).is_ok());
    let without = Attester::open_on(Machine::at(folder.path()), TeeKind::TrustZone, [0; 32]);
    assert_eq!(
        without.unwrap_err().to_string(),
        "no command fetches this evidence: give one with --evidence-command"
    );
}
