//! Each refusal, by its exact value, from a policy and a service that differ in
//! one thing. The claims are of hardware, so that they are judged alike with and
//! without the simulated TEE.

use occlude_keys::{HeaderDigest, OwnerKey, OwnerPublic};

use crate::snp::{SnpEndorsement, SnpPlatform, SnpProduct, SnpTcb};
use crate::{
    Claims, ConfigurationDigest, Measurement, PROTOCOL_VERSION, Platform, Policy, Protection,
    Refusal, SecurityConfiguration, ServedModel, ServiceStatement, TeeKind, Trust, UnixTime,
    VerifiedService,
};

pub(super) fn owner(number: u8) -> OwnerPublic {
    OwnerKey::from_secret(&[number; 64]).public()
}

pub(super) fn configuration() -> SecurityConfiguration {
    SecurityConfiguration {
        broker: Some("https://broker.example".to_owned()),
        kem: "x-wing".to_owned(),
        padding: "buckets".to_owned(),
        client_authentication: "token".to_owned(),
        maximum_request_bytes: 1 << 20,
    }
}

pub(super) fn statement() -> ServiceStatement {
    ServiceStatement {
        protocol: PROTOCOL_VERSION,
        tee: TeeKind::Snp,
        channel_keys: vec![1, 2, 3],
        owners: vec![owner(1)],
        models: vec![ServedModel {
            id: "digits".parse().unwrap(),
            version: 3,
            header_digest: HeaderDigest::from([0xd1; 32]),
            owner: owner(1),
            guard: "shaping".to_owned(),
        }],
        configuration: configuration(),
    }
}

pub(super) fn claims() -> Claims {
    Claims {
        tee: TeeKind::Snp,
        trust: Trust::Hardware,
        protection: Protection::ConfidentialMemory,
        measurement: Measurement::from([0xa5; 48]),
        configuration: None,
        debug: false,
        platform: Platform::Snp(Box::new(platform())),
        verified_at: UnixTime(1_800_000_000),
        collateral_until: None,
        additional: Vec::new(),
    }
}

/// What a policy without a section for SNP accepts.
pub(super) fn platform() -> SnpPlatform {
    SnpPlatform {
        product: SnpProduct::Genoa,
        tcb: SnpTcb {
            fmc: None,
            bootloader: 9,
            tee: 0,
            snp: 23,
            microcode: 72,
        },
        endorsement: SnpEndorsement::Vcek,
        chip_id: Some([0xcc; 64].into()),
        vmpl: 0,
        guest_svn: 2,
        family_id: [0; 16].into(),
        image_id: [0; 16].into(),
        host_data: [0; 32].into(),
        id_key_digest: [0x1d; 48].into(),
        author_key_digest: [0; 48].into(),
        migration: false,
        smt: true,
        ciphertext_hiding: false,
        alias_check: false,
        report_version: 3,
    }
}

pub(super) fn service() -> VerifiedService {
    VerifiedService::for_test(claims(), statement())
}

/// A policy for [`service`] with more lines in its two sections.
pub(super) fn policy(evidence: &str, service: &str) -> Policy {
    let measurement = Measurement::from([0xa5; 48]);
    let owner = owner(1);
    let text = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{measurement}\"]\n{evidence}\n\
         [service]\nowners = [\"{owner}\"]\n{service}\n"
    );
    Policy::parse(&text).unwrap()
}

fn plain() -> Policy {
    policy("", "")
}

fn refusal_of_claims(change: impl FnOnce(&mut Claims)) -> Refusal {
    let mut claims = claims();
    change(&mut claims);
    let alone = plain().judge_claims(&claims).unwrap_err();
    let service = VerifiedService::for_test(claims, statement());
    // Both legs judge evidence alike.
    assert_eq!(plain().judge_service(&service), Err(alone.clone()));
    alone
}

fn refusal_of_statement(policy: &Policy, change: impl FnOnce(&mut ServiceStatement)) -> Refusal {
    let mut statement = statement();
    change(&mut statement);
    let service = VerifiedService::for_test(claims(), statement);
    policy.judge_service(&service).unwrap_err()
}

#[test]
fn what_the_policy_names_is_accepted() {
    assert_eq!(plain().judge_claims(&claims()), Ok(()));
    assert_eq!(plain().judge_service(&service()), Ok(()));
}

#[test]
fn the_default_policy_accepts_no_measurement() {
    assert_eq!(
        Policy::default().judge_claims(&claims()),
        Err(Refusal::Measurement {
            found: Measurement::from([0xa5; 48])
        })
    );
}

#[test]
fn the_default_policy_refuses_simulated_evidence_even_when_compiled_in() {
    let mut simulated = claims();
    simulated.tee = TeeKind::Simulated;
    simulated.trust = Trust::Simulated;
    assert_eq!(
        Policy::default().judge_claims(&simulated),
        Err(Refusal::Tee {
            found: TeeKind::Simulated,
            accepted: TeeKind::DEFAULT.to_vec()
        })
    );
}

#[test]
fn debuggable_evidence_is_refused() {
    assert_eq!(
        refusal_of_claims(|claims| claims.debug = true),
        Refusal::Debug
    );
}

#[test]
fn another_measurement_is_refused() {
    let found = Measurement::from([0xa6; 48]);
    assert_eq!(
        refusal_of_claims(|claims| claims.measurement = found.clone()),
        Refusal::Measurement { found }
    );
}

#[test]
fn a_measurement_cut_to_its_first_half_is_another_one() {
    let found = Measurement::from([0xa5; 32]);
    assert_eq!(
        refusal_of_claims(|claims| claims.measurement = found.clone()),
        Refusal::Measurement { found }
    );
}

#[test]
fn a_vendors_test_root_is_refused_unless_named() {
    assert_eq!(
        refusal_of_claims(|claims| claims.trust = Trust::VendorTestRoot),
        Refusal::Trust {
            found: Trust::VendorTestRoot,
            accepted: vec![Trust::Hardware]
        }
    );
}

#[test]
fn measured_boot_alone_is_refused_unless_named() {
    assert_eq!(
        refusal_of_claims(|claims| claims.protection = Protection::MeasuredBootOnly),
        Refusal::Protection {
            found: Protection::MeasuredBootOnly,
            accepted: vec![Protection::ConfidentialMemory]
        }
    );
}

#[test]
fn a_kind_that_is_not_named_is_refused() {
    assert_eq!(
        policy("tee = [\"tdx\"]", "").judge_claims(&claims()),
        Err(Refusal::Tee {
            found: TeeKind::Snp,
            accepted: vec![TeeKind::Tdx]
        })
    );
}

#[test]
fn stale_collateral_is_refused_unless_a_grace_is_granted() {
    let stale = |seconds: u64| {
        let claims = claims();
        let until = UnixTime(claims.verified_at.0 - seconds);
        Claims {
            collateral_until: Some(until),
            additional: Vec::new(),
            ..claims
        }
    };
    assert_eq!(plain().judge_claims(&stale(0)), Ok(()));
    let error = plain().judge_claims(&stale(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the vendor's collateral was to be replaced at 2027-01-15T07:59:59Z: fetch it anew (the \
         policy grants 0 hours)"
    );
    let grace = policy("collateral-grace-hours = 2", "");
    assert_eq!(grace.judge_claims(&stale(7200)), Ok(()));
    assert!(matches!(
        grace.judge_claims(&stale(7201)),
        Err(Refusal::StaleCollateral { grace_hours: 2, .. })
    ));
}

#[test]
fn a_configuration_that_is_not_listed_is_refused_on_both_legs() {
    let listed = policy(
        &format!("configurations = [\"{}\"]", configuration().digest()),
        "",
    );
    let mut measured = claims();
    measured.configuration = Some(configuration().digest());
    assert_eq!(listed.judge_claims(&measured), Ok(()));
    assert_eq!(listed.judge_service(&service()), Ok(()));

    let found = ConfigurationDigest::from([9; 32]);
    measured.configuration = Some(found);
    assert_eq!(
        listed.judge_claims(&measured),
        Err(Refusal::Configuration { found })
    );

    let mut other = configuration();
    other.padding = "none".to_owned();
    let found = other.digest();
    assert_eq!(
        refusal_of_statement(&listed, |statement| statement.configuration = other),
        Refusal::Configuration { found }
    );
}

#[test]
fn evidence_without_a_configuration_is_refused_on_the_brokers_leg_if_one_is_wanted() {
    let listed = policy(
        &format!("configurations = [\"{}\"]", configuration().digest()),
        "",
    );
    assert_eq!(
        listed.judge_claims(&claims()),
        Err(Refusal::ConfigurationNotMeasured)
    );
}

#[test]
fn a_statement_of_another_kind_than_its_evidence_is_refused() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| statement.tee = TeeKind::Tdx),
        Refusal::StatementTee {
            statement: TeeKind::Tdx,
            evidence: TeeKind::Snp
        }
    );
}

#[test]
fn a_statement_of_another_configuration_than_measured_is_refused() {
    let mut measured = claims();
    let evidence = ConfigurationDigest::from([9; 32]);
    measured.configuration = Some(evidence);
    assert_eq!(
        plain().judge_service(&VerifiedService::for_test(measured, statement())),
        Err(Refusal::StatementConfiguration {
            statement: configuration().digest(),
            evidence
        })
    );
}

#[test]
fn a_genuine_server_of_another_owner_is_refused() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| statement.owners = vec![owner(2)]),
        Refusal::Owner {
            found: Box::new(owner(2)),
            accepted: vec![owner(1)]
        }
    );
}

#[test]
fn a_server_that_adds_the_operators_owner_key_is_refused() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| statement.owners.push(owner(2))),
        Refusal::Owner {
            found: Box::new(owner(2)),
            accepted: vec![owner(1)]
        }
    );
}

#[test]
fn a_service_without_an_owner_is_refused() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| {
            statement.owners.clear();
            statement.models.clear();
        }),
        Refusal::NoOwner {
            accepted: vec![owner(1)]
        }
    );
}

#[test]
fn a_policy_without_owners_accepts_no_service() {
    let text = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n",
        Measurement::from([0xa5; 48])
    );
    let policy = Policy::parse(&text).unwrap();
    assert_eq!(policy.judge_claims(&claims()), Ok(()));
    assert_eq!(
        policy.judge_service(&service()),
        Err(Refusal::Owner {
            found: Box::new(owner(1)),
            accepted: vec![]
        })
    );
}

#[test]
fn a_model_rolled_back_to_an_older_version_is_refused() {
    let wanted = policy("", "models = [{ id = \"digits\", minimum-version = 3 }]");
    assert_eq!(wanted.judge_service(&service()), Ok(()));
    assert_eq!(
        refusal_of_statement(&wanted, |statement| statement.models[0].version = 2),
        Refusal::ModelVersion {
            id: "digits".parse().unwrap(),
            found: 2,
            minimum: 3
        }
    );
}

#[test]
fn every_served_version_of_a_named_model_must_satisfy_the_policy() {
    let wanted = policy("", "models = [{ id = \"digits\", minimum-version = 3 }]");
    assert_eq!(
        refusal_of_statement(&wanted, |statement| {
            let mut older = statement.models[0].clone();
            older.version = 1;
            statement.models.push(older);
        }),
        Refusal::ModelVersion {
            id: "digits".parse().unwrap(),
            found: 1,
            minimum: 3
        }
    );
}

#[test]
fn another_container_of_a_named_model_is_refused() {
    let digest = HeaderDigest::from([0xd1; 32]);
    let wanted = policy(
        "",
        &format!("models = [{{ id = \"digits\", digests = [\"{digest}\"] }}]"),
    );
    assert_eq!(wanted.judge_service(&service()), Ok(()));
    let found = HeaderDigest::from([0xd2; 32]);
    assert_eq!(
        refusal_of_statement(&wanted, |statement| statement.models[0].header_digest =
            found),
        Refusal::ModelDigest {
            id: "digits".parse().unwrap(),
            found
        }
    );
}

/// A policy of owners 1 and 2 that lists `digits` of owner 1.
fn of_two_owners() -> Policy {
    let text = format!(
        "format = 1\n[evidence]\nmeasurements = [\"{}\"]\n[service]\n\
         owners = [\"{}\", \"{}\"]\n\
         models = [{{ id = \"digits\", owner = \"{}\", minimum-version = 3 }}]\n",
        Measurement::from([0xa5; 48]),
        owner(1),
        owner(2),
        owner(1)
    );
    Policy::parse(&text).unwrap()
}

#[test]
fn a_namesake_of_another_accepted_owner_is_refused() {
    assert_eq!(of_two_owners().judge_service(&service()), Ok(()));
    assert_eq!(
        refusal_of_statement(&of_two_owners(), |statement| {
            statement.owners = vec![owner(2)];
            statement.models[0].owner = owner(2);
            statement.models[0].version = i64::MAX as u64;
        }),
        Refusal::ModelOwner {
            id: "digits".parse().unwrap(),
            found: Box::new(owner(2)),
            expected: Box::new(owner(1))
        }
    );
}

#[test]
fn a_pinned_policy_refuses_a_namesake_of_the_other_owner_that_it_saw() {
    let mut both = statement();
    let mut letters = both.models[0].clone();
    letters.id = "letters".parse().unwrap();
    letters.owner = owner(2);
    both.owners.push(owner(2));
    both.models.push(letters);
    let pinned = Policy::pin(&VerifiedService::for_test(claims(), both.clone()));
    assert_eq!(Policy::parse(&pinned.to_toml()).as_ref(), Ok(&pinned));
    assert_eq!(
        refusal_of_statement(&pinned, |statement| {
            *statement = both;
            statement.models[0].owner = owner(2);
        }),
        Refusal::ModelOwner {
            id: "digits".parse().unwrap(),
            found: Box::new(owner(2)),
            expected: Box::new(owner(1))
        }
    );
}

#[test]
fn a_model_is_used_only_if_it_is_served_and_if_a_list_names_it() {
    let digits = "digits".parse().unwrap();
    let other = "other".parse().unwrap();
    assert_eq!(plain().judge_model(&service(), &digits), Ok(()));
    assert_eq!(
        plain().judge_model(&service(), &other),
        Err(Refusal::ModelNotServed { id: other.clone() })
    );
    let listed = policy("", "models = [{ id = \"other\" }]");
    assert_eq!(listed.judge_service(&service()), Ok(()));
    assert_eq!(
        listed.judge_model(&service(), &digits),
        Err(Refusal::ModelNotNamed { id: digits })
    );
    assert_eq!(
        listed.judge_model(&service(), &other),
        Err(Refusal::ModelNotServed { id: other })
    );
}

#[test]
fn a_weaker_key_encapsulation_is_refused_by_a_policy_that_names_only_the_owner() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| {
            statement.configuration.kem = "x25519".to_owned();
        }),
        Refusal::Setting {
            setting: "kem",
            found: "x25519".to_owned(),
            accepted: "[\"x-wing\"]".to_owned()
        }
    );
}

#[test]
fn no_padding_is_refused_by_a_policy_that_names_only_the_owner() {
    assert_eq!(
        refusal_of_statement(&plain(), |statement| {
            statement.configuration.padding = "none".to_owned();
        }),
        Refusal::Setting {
            setting: "padding",
            found: "none".to_owned(),
            accepted: "any but \"none\"".to_owned()
        }
    );
}

#[test]
fn a_model_with_another_guard_than_the_policy_names_is_refused() {
    let policy = |guards: &str| {
        policy(
            "",
            &format!("models = [{{ id = \"digits\", guards = {guards} }}]"),
        )
    };
    let accepting = policy("[\"none\", \"shaping\"]");
    assert_eq!(accepting.judge_service(&service()), Ok(()));
    for found in ["misinformation", "misinformation+shaping", ""] {
        assert_eq!(
            refusal_of_statement(&accepting, |statement| {
                statement.models[0].guard = found.to_owned();
            }),
            Refusal::ModelGuard {
                id: "digits".parse().unwrap(),
                found: found.to_owned(),
                accepted: "[\"none\", \"shaping\"]".to_owned(),
            }
        );
    }
    assert!(policy("[]").judge_service(&service()).is_err());
}

#[test]
fn each_other_setting_that_the_policy_names_is_refused_when_it_differs() {
    type Change = fn(&mut SecurityConfiguration);
    let cases: [(&str, &str, &str, Change); 5] = [
        ("kem", "x25519", "x-wing", |_| {}),
        ("padding", "buckets", "none", |found| {
            found.padding = "none".to_owned();
        }),
        ("client-authentication", "token", "none", |found| {
            found.client_authentication = "none".to_owned();
        }),
        (
            "brokers",
            "https://broker.example",
            "https://operator.example",
            |found| {
                found.broker = Some("https://operator.example".to_owned());
            },
        ),
        ("brokers", "https://broker.example", "none", |found| {
            found.broker = None;
        }),
    ];
    for (setting, wanted, found, change) in cases {
        let policy = policy(
            "",
            &format!("[service.configuration]\n{setting} = [\"{wanted}\"]"),
        );
        assert_eq!(
            refusal_of_statement(&policy, |statement| change(&mut statement.configuration)),
            Refusal::Setting {
                setting,
                found: found.to_owned(),
                accepted: format!("[\"{wanted}\"]")
            }
        );
    }
}

#[test]
fn a_pinned_policy_accepts_what_it_saw_and_says_that_nobody_reviewed_it() {
    let pinned = Policy::pin(&service());
    assert!(!pinned.reviewed());
    assert_eq!(pinned.judge_service(&service()), Ok(()));
    let text = pinned.to_toml();
    assert!(
        text.starts_with("# Nobody has reviewed this policy."),
        "{text}"
    );
    assert!(text.contains("reviewed = false"), "{text}");
    assert_eq!(Policy::parse(&text).unwrap(), pinned);
}

#[test]
fn a_pinned_policy_accepts_later_versions_and_refuses_earlier_ones() {
    let pinned = Policy::pin(&service());
    let mut later = statement();
    later.models[0].version = 4;
    later.models[0].header_digest = HeaderDigest::from([0xd4; 32]);
    let later = VerifiedService::for_test(claims(), later);
    assert_eq!(pinned.judge_service(&later), Ok(()));
    assert_eq!(
        refusal_of_statement(&pinned, |statement| statement.models[0].version = 2),
        Refusal::ModelVersion {
            id: "digits".parse().unwrap(),
            found: 2,
            minimum: 3
        }
    );
}

#[test]
fn a_pinned_policy_refuses_any_other_configuration() {
    let mut other = configuration();
    other.maximum_request_bytes += 1;
    let found = other.digest();
    assert_eq!(
        refusal_of_statement(&Policy::pin(&service()), |statement| {
            statement.configuration = other;
        }),
        Refusal::Configuration { found }
    );
}
