//! Properties of everything that is read from somebody else: what was written
//! reads back, and whatever is read was written in exactly that form.

use occlude_attest::{
    AttestationResponse, Evidence, Measurement, Nonce, PROTOCOL_VERSION, Policy, PolicyFile,
    SecurityConfiguration, ServedModel, ServiceStatement, TeeKind, sign_policy,
};
use occlude_keys::{HeaderDigest, ModelId, OwnerKey, OwnerPublic};
use proptest::prelude::*;
use serde_json::Value;

fn owner(number: u8) -> OwnerPublic {
    OwnerKey::from_secret(&[number; 64]).public()
}

fn tee() -> impl Strategy<Value = TeeKind> {
    prop::sample::select(TeeKind::ALL.to_vec())
}

fn configuration() -> impl Strategy<Value = SecurityConfiguration> {
    let text = || "\\PC{0,20}";
    let broker = prop::option::of(text());
    (broker, text(), text(), text(), any::<u64>()).prop_map(
        |(broker, kem, padding, client_authentication, maximum_request_bytes)| {
            SecurityConfiguration {
                broker,
                kem,
                padding,
                client_authentication,
                maximum_request_bytes,
            }
        },
    )
}

fn model() -> impl Strategy<Value = ServedModel> {
    let id = "[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}";
    (id, 1..=i64::MAX as u64, any::<[u8; 32]>()).prop_map(|(id, version, digest)| ServedModel {
        // One owner for one id: a statement never has two.
        owner: owner(id.len() as u8 % 3),
        id: id.parse::<ModelId>().unwrap(),
        version,
        header_digest: HeaderDigest::from(digest),
        guard: "none".to_owned(),
    })
}

fn statement() -> impl Strategy<Value = ServiceStatement> {
    let keys = prop::collection::vec(any::<u8>(), 0..100);
    let models = prop::collection::vec(model(), 0..4);
    (tee(), keys, models, configuration()).prop_map(
        |(tee, channel_keys, mut models, configuration)| {
            models.dedup_by(|a, b| (&a.id, a.version) == (&b.id, b.version));
            ServiceStatement {
                protocol: PROTOCOL_VERSION,
                tee,
                channel_keys,
                owners: vec![owner(0), owner(1), owner(2)],
                models,
                configuration,
            }
        },
    )
}

/// JSON without floating-point numbers, which no evidence has.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

fn policy_text() -> impl Strategy<Value = String> {
    let quoted = |items: Vec<String>| format!("{items:?}");
    let tees = prop::collection::vec(tee(), 0..4)
        .prop_map(|kinds| kinds.into_iter().map(|kind| kind.to_string()).collect());
    let measurements = prop::collection::vec(any::<[u8; 32]>(), 0..3).prop_map(|digests| {
        let digests = digests.into_iter().map(Measurement::from);
        digests.map(|digest| digest.to_string()).collect()
    });
    let owners = prop::collection::vec(0_u8..3, 0..3)
        .prop_map(|numbers| numbers.into_iter().map(owner).collect::<Vec<_>>());
    let guards = prop::collection::vec("[a-z]{0,8}", 0..3);
    (
        any::<bool>(),
        tees.prop_map(quoted),
        measurements.prop_map(quoted),
        any::<u8>(),
        owners,
        model(),
        guards.prop_map(quoted),
    )
        .prop_map(
            |(reviewed, tees, measurements, tcb, mut owners, model, guards)| {
                owners.push(model.owner);
                let owners: Vec<_> = owners.iter().map(ToString::to_string).collect();
                format!(
                    "format = 1\nreviewed = {reviewed}\n[evidence]\ntee = {tees}\n\
                 measurements = {measurements}\n[evidence.snp.minimum-tcb.milan]\nsnp = {tcb}\n[service]\n\
                 owners = {owners:?}\nmodels = [{{ id = \"{}\", owner = \"{}\", minimum-version = {}, \
                 digests = [\"{}\"], guards = {guards} }}]\n",
                    model.id, model.owner, model.version, model.header_digest
                )
            },
        )
}

/// Changes, cuts and doubles of a valid text: closer to valid than random bytes.
fn damaged(text: Vec<u8>, index: prop::sample::Index, byte: u8, cut: bool) -> Vec<u8> {
    let mut text = text;
    if text.is_empty() {
        return text;
    }
    let at = index.index(text.len());
    if cut {
        text.truncate(at);
    } else {
        text[at] = byte;
    }
    text
}

proptest! {
    #[test]
    fn a_statement_reads_back_as_it_was_written(statement in statement()) {
        prop_assert_eq!(ServiceStatement::decode(&statement.encode()), Ok(statement));
    }

    #[test]
    fn evidence_reads_back_as_it_was_written(tee in tee(), body in json()) {
        let evidence = Evidence::new(tee, body);
        prop_assert_eq!(Evidence::decode(&evidence.encode()), Ok(evidence));
    }

    #[test]
    fn an_answer_reads_back_as_it_was_written(statement in statement(), body in json()) {
        let response = AttestationResponse::new(
            statement.encode(),
            Evidence::new(statement.tee, body),
        );
        prop_assert_eq!(AttestationResponse::decode(&response.encode()), Ok(response));
    }

    #[test]
    fn a_policy_reads_back_as_it_was_written(text in policy_text()) {
        let policy = Policy::parse(&text).unwrap();
        prop_assert_eq!(Policy::parse(&policy.to_toml()), Ok(policy));
    }

    #[test]
    fn a_signed_policy_reads_back_as_it_was_written(text in policy_text()) {
        let key = OwnerKey::from_secret(&[1; 64]);
        let text = text.replace("reviewed = false", "reviewed = true");
        let signed = sign_policy(&text, &key).unwrap();
        let file = PolicyFile::parse(&signed, Some(&key.public())).unwrap();
        prop_assert_eq!(file.policy(), &Policy::parse(&text).unwrap());
    }

    #[test]
    fn whatever_is_read_was_written_in_that_very_form(bytes: Vec<u8>) {
        if let Ok(evidence) = Evidence::decode(&bytes) {
            prop_assert_eq!(evidence.encode(), bytes.clone());
        }
        if let Ok(statement) = ServiceStatement::decode(&bytes) {
            prop_assert_eq!(statement.encode(), bytes.clone());
        }
        if let Ok(response) = AttestationResponse::decode(&bytes) {
            prop_assert_eq!(response.encode(), bytes);
        }
    }

    #[test]
    fn a_damaged_statement_is_refused_or_says_something_else(
        statement in statement(),
        index: prop::sample::Index,
        byte: u8,
        cut: bool,
    ) {
        let encoded = statement.encode();
        let changed = damaged(encoded.clone(), index, byte, cut);
        if let Ok(read) = ServiceStatement::decode(&changed) {
            prop_assert_eq!(read.encode(), changed.clone());
            prop_assert_eq!(read == statement, changed == encoded);
        }
    }

    #[test]
    fn damaged_and_random_policies_never_panic(
        text in policy_text(),
        random in ".{0,200}",
        index: prop::sample::Index,
        byte in 0_u8..128,
        cut: bool,
    ) {
        let changed = damaged(text.into_bytes(), index, byte, cut);
        let changed = String::from_utf8(changed).unwrap();
        for text in [changed, random] {
            if let Ok(policy) = Policy::parse(&text) {
                prop_assert_eq!(Policy::parse(&policy.to_toml()), Ok(policy));
            }
            let _ = PolicyFile::parse(&text, None);
        }
    }

    #[test]
    fn random_text_is_no_nonce_unless_it_prints_back(text in "\\PC{0,80}") {
        if let Ok(nonce) = text.parse::<Nonce>() {
            prop_assert_eq!(nonce.to_string(), text);
        }
    }
}
