//! Reading and writing policies: one named case for each malformation.

use super::judge_tests::{owner, service};
use crate::{Policy, PolicyError, Refusal};

fn malformed(text: &str) -> (usize, String) {
    match Policy::parse(text).unwrap_err() {
        PolicyError::Malformed { line, reason } => (line, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_shortest_policy_is_the_default_one() {
    assert_eq!(Policy::parse("format = 1").unwrap(), Policy::default());
    assert!(!Policy::default().reviewed());
}

#[test]
fn an_unknown_field_is_refused_wherever_it_stands() {
    for (section, field, line) in [
        ("", "accept-everything", 2),
        ("[evidence]\n", "debug", 3),
        ("[evidence]\n", "minimum_tcb", 3),
        ("[service]\n", "owner", 3),
        ("[service.configuration]\n", "broker", 3),
    ] {
        let (found_line, reason) = malformed(&format!("format = 1\n{section}{field} = true\n"));
        assert_eq!(found_line, line);
        assert!(
            reason.starts_with(&format!("unknown field `{field}`, expected ")),
            "{reason}"
        );
    }
}

#[test]
fn an_unknown_field_of_a_model_is_refused() {
    let (_, reason) =
        malformed("format = 1\n[service]\nmodels = [{ id = \"digits\", version = 3 }]\n");
    assert_eq!(
        reason,
        "unknown field `version`, expected one of `id`, `owner`, `minimum-version`, `digests`, `guards`"
    );
}

/// A policy of these owners that lists one model, of one of them if given.
fn naming(owners: &[u8], of: Option<u8>) -> Result<Policy, PolicyError> {
    let owners: Vec<_> = owners.iter().map(|n| owner(*n).to_string()).collect();
    let of = of.map_or(String::new(), |n| format!(", owner = \"{}\"", owner(n)));
    Policy::parse(&format!(
        "format = 1\n[service]\nowners = {owners:?}\nmodels = [{{ id = \"digits\"{of} }}]\n"
    ))
}

#[test]
fn with_several_owners_a_model_that_names_none_is_refused() {
    let id = "digits".parse().unwrap();
    let refusal = naming(&[1, 2], None).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "model digits names no owner, which it must where `owners` has more than one"
    );
    assert_eq!(refusal, PolicyError::ModelWithoutOwner { id });
    for (owners, of) in [
        (&[1, 2][..], Some(1)),
        (&[1, 2], Some(2)),
        (&[1], Some(1)),
        (&[1], None),
        (&[1, 1], None),
        (&[], None),
    ] {
        let policy = naming(owners, of).unwrap();
        assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    }
}

#[test]
fn a_model_of_an_owner_that_the_policy_does_not_accept_is_refused() {
    for owners in [&[1, 2][..], &[1], &[]] {
        assert_eq!(
            naming(owners, Some(3)),
            Err(PolicyError::ModelOfForeignOwner {
                id: "digits".parse().unwrap(),
                owner: Box::new(owner(3))
            })
        );
    }
}

#[test]
fn an_unknown_section_is_refused() {
    let (line, reason) = malformed("format = 1\n\n[evidences]\n");
    assert_eq!(line, 3);
    assert_eq!(
        reason,
        "unknown field `evidences`, expected one of `format`, `reviewed`, `evidence`, `service`"
    );
}

#[test]
fn a_policy_without_a_format_or_of_another_one_is_refused() {
    assert_eq!(malformed("reviewed = true").1, "missing field `format`");
    assert_eq!(
        Policy::parse("format = 2\n[something-new]\n"),
        Err(PolicyError::ForeignFormat { found: 2 })
    );
}

#[test]
fn unknown_kinds_trusts_and_protections_are_refused() {
    for (field, value) in [
        ("tee", "sample"),
        ("trust", "everyone"),
        ("protection", "none"),
    ] {
        let (line, reason) = malformed(&format!("format = 1\n[evidence]\n{field} = [\"{value}\"]"));
        assert_eq!(line, 3);
        assert!(
            reason.starts_with(&format!("unknown variant `{value}`, expected ")),
            "{reason}"
        );
    }
}

#[test]
fn digests_of_another_length_or_spelling_are_refused() {
    for digest in ["a5".repeat(31), "A5".repeat(32), "a5".repeat(33)] {
        let line = format!("format = 1\n[evidence]\nmeasurements = [\"{digest}\"]");
        assert_eq!(
            malformed(&line),
            (
                3,
                format!("expected 64, 96 or 128 lower-case hexadecimal digits, found \"{digest}\"")
            )
        );
        let line = format!("format = 1\n[evidence]\nconfigurations = [\"{digest}\"]");
        assert_eq!(
            malformed(&line),
            (
                3,
                format!("expected 64 lower-case hexadecimal digits, found \"{digest}\"")
            )
        );
    }
}

#[test]
fn a_field_given_twice_is_refused() {
    let (line, reason) = malformed("format = 1\n[evidence]\ntee = []\ntee = [\"snp\"]\n");
    assert_eq!((line, reason.as_str()), (4, "duplicate key"));
}

#[test]
fn a_negative_security_version_is_refused() {
    let (line, reason) = malformed("format = 1\n[evidence]\nsimulated.minimum-tcb = -1\n");
    assert_eq!(line, 3);
    assert_eq!(reason, "invalid value: integer `-1`, expected u32");
}

#[test]
fn a_policy_beyond_the_limit_is_refused() {
    let text = format!("format = 1\n#{}", "x".repeat(Policy::MAX_BYTES as usize));
    assert_eq!(
        Policy::parse(&text),
        Err(PolicyError::TooLarge {
            limit: Policy::MAX_BYTES,
            found: text.len() as u64
        })
    );
}

#[test]
fn nesting_without_end_is_refused() {
    let text = format!("format = 1\nreviewed = {}", "[".repeat(100_000));
    assert_eq!(malformed(&text).0, 2);
}

#[test]
fn the_simulated_tee_takes_both_names_and_the_build_that_has_it() {
    for text in ["tee = [\"simulated\"]", "trust = [\"simulated\"]"] {
        let policy = Policy::parse(&format!("format = 1\n[evidence]\n{text}")).unwrap();
        assert!(policy.names_simulated());
        let expected = if cfg!(feature = "simulated") {
            Ok(())
        } else {
            Err(Refusal::SimulatedDisabled)
        };
        assert_eq!(policy.check_enforceable(), expected);
    }
    assert!(!Policy::default().names_simulated());
    assert_eq!(Policy::default().check_enforceable(), Ok(()));
}

#[cfg(not(feature = "simulated"))]
#[test]
fn a_policy_that_names_the_simulated_tee_accepts_nothing_in_this_build() {
    let mut policy = Policy::pin(&service());
    assert_eq!(policy.judge_service(&service()), Ok(()));
    policy.evidence.tee.push(crate::TeeKind::Simulated);
    assert_eq!(
        policy.judge_service(&service()),
        Err(Refusal::SimulatedDisabled)
    );
    assert_eq!(
        policy.judge_claims(service().claims()),
        Err(Refusal::SimulatedDisabled)
    );
}

/// The guide's example.
fn guide_example() -> String {
    let guide = include_str!("../../../../docs/policy.md");
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    example.to_owned()
}

#[test]
fn the_guides_example_is_a_policy_that_names_every_field() {
    let policy = Policy::parse(&guide_example()).unwrap();
    assert!(policy.reviewed());
    assert_eq!(policy.owners(), [owner(1)]);
    assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    let fields = |text: &str| -> std::collections::BTreeSet<String> {
        let names = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "));
        names.map(|(name, _)| name.trim().to_owned()).collect()
    };
    let mut full = Policy::pin(&service()).to_toml();
    // What pinning a service on SNP never writes.
    for field in [
        "digests",
        "collateral-grace-hours",
        "chip-ids",
        "id-key-digests",
        "minimum-tcb",
        "tcb-statuses",
        "minimum-evaluation-number",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "modules",
        "memory",
        "signer",
        "product-id",
        "minimum-svn",
        "implementations",
        "components",
        "rem0",
        "rem1",
        "rem2",
        "rem3",
        "clients",
        "paravisors",
        "require-secure-boot",
        "require-sept-ve-disable",
        "allow-console",
        "attestation-keys",
        "roots",
        "require-event-log",
        "pcr4",
        "pcr17",
        "pcr18",
        "pcr8",
        "additional",
        "host-keys",
        "require-reference",
        "minimum-devices",
        "driver-versions",
        "vbios-versions",
        "modes",
        "2",
    ] {
        full.push_str(&format!("{field} = []\n"));
    }
    assert_eq!(
        fields(&policy.to_toml()),
        fields(&full),
        "the example and what the code writes name the same fields"
    );
}
