//! The operator alters or exchanges containers.

use std::time::Duration;

use occlude_container::{Container, HEADER_LENGTH};
use occlude_weakening::Weakening;

use super::site::{MODEL, Site, judge, refused, right_or_none, start};
use super::{Attacker, Check, Seen, model};
use crate::owner::SEALED;
use crate::processes::{DeploymentError, failed};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "altered-header",
        attacker: Attacker::Operator,
        tried: "serve a container with one bit of its header or its signature changed",
        weakening: Weakening::AnySignature,
        carry_out: altered_header,
    },
    Check {
        name: "altered-chunk",
        attacker: Attacker::Operator,
        tried: "serve a container with bits of its weights changed",
        weakening: Weakening::AnyChunk,
        carry_out: altered_chunk,
    },
    Check {
        name: "exchanged-container",
        attacker: Attacker::Operator,
        tried: "serve another genuine container of the owner's in the place of the one that users name; \
                and one put together from the two",
        weakening: Weakening::AnyDigest,
        carry_out: exchanged_container,
    },
    Check {
        name: "older-version",
        attacker: Attacker::Operator,
        tried: "serve an older version, genuine and signed, to users who want the newer; and one \
                that the owner has withdrawn",
        weakening: Weakening::AnyVersion,
        carry_out: older_version,
    },
];

fn altered(
    site: &Site,
    name: &str,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<(), DeploymentError> {
    const DOING: &str = "altering a container";
    let mut bytes = std::fs::read(site.owner.at(SEALED)).map_err(failed(DOING))?;
    change(&mut bytes);
    std::fs::write(site.owner.at(name), bytes).map_err(failed(DOING))
}

fn altered_header(site: &Site) -> Result<Seen, DeploymentError> {
    let sealed = std::fs::read(site.owner.at(SEALED)).map_err(failed("reading a container"))?;
    // All that is not zero, in steps, and the end of it, which is the signature's.
    let end = sealed[..HEADER_LENGTH]
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap_or(0);
    let places: Vec<usize> = (0..end).step_by(end / 6).chain([end - 32, end]).collect();
    let mut attempts = Vec::new();
    for place in &places {
        altered(site, "altered.occ", |bytes| bytes[*place] ^= 1)?;
        let binary = &site.owner.grounds.binary;
        let started = site.owner.try_serve(binary, "altered.occ", &[])?;
        attempts.push(start(&started, 3, "altered.occ"));
    }
    Ok(match judge(attempts) {
        Seen::Held(_) => Seen::Held(format!("refused at each of {} places", places.len())),
        broke @ Seen::Broke(_) => broke,
    })
}

fn altered_chunk(site: &Site) -> Result<Seen, DeploymentError> {
    let input = model::secret_input(10);
    let mut attempts = Vec::new();
    for (name, from_end) in [("last.occ", 40_000), ("middle.occ", 300_000)] {
        altered(site, name, |bytes| {
            let place = bytes.len() - from_end;
            bytes[place] ^= 1;
        })?;
        let binary = &site.owner.grounds.binary;
        let started = site.owner.try_serve(binary, name, &[])?;
        attempts.push(match &started {
            Err(said) => refused(said, 3, "is not authentic"),
            // It may listen and find out later, but may give no wrong answer.
            Ok(server) => {
                let said = site.infer(&server.url(), &input)?;
                match server.ends_within(Duration::from_secs(5)) {
                    Some(ended) if said.code != 0 => refused(&ended, 3, "is not authentic"),
                    _ => right_or_none(site, &said, &input),
                }
            }
        });
    }
    Ok(judge(attempts))
}

fn exchanged_container(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "exchanging containers";
    let input = model::secret_input(14);
    // The same model, id and version, sealed once more.
    for (name, id) in [("twin.occ", MODEL), ("other.occ", "another-model")] {
        site.seal(name, id, 1)?;
        site.owner
            .must_order(&["add-model", &site.owner.text(name)])?;
    }
    let sealed = Container::read(&site.owner.at(SEALED)).map_err(failed(DOING))?;
    let digest = format!(
        "digests = [\"{}\"], minimum-version",
        sealed.header().digest()
    );
    let policy = site.owner.user_policy(1, "");
    let policy = policy.replace("minimum-version", &digest);
    std::fs::write(site.owner.at("digest.toml"), policy).map_err(failed(DOING))?;
    let asked = |name: &str| {
        let server = site.owner.serve(name, &[])?;
        site.infer_under("digest.toml", &server.url(), &input)
    };
    let named = asked(SEALED)?;
    if named.code != 0 {
        return Err(failed(DOING)(named.reason()));
    }
    let mut attempts = vec![
        refused(&asked("twin.occ")?, 3, "which is not in the policy"),
        refused(&asked("other.occ")?, 3, MODEL),
    ];
    // The content of one behind the header of the other, and from its middle on.
    let twin = std::fs::read(site.owner.at("twin.occ")).map_err(failed(DOING))?;
    for from in [HEADER_LENGTH, twin.len() / 2] {
        altered(site, "spliced.occ", |bytes| {
            bytes[from..].copy_from_slice(&twin[from..]);
        })?;
        let binary = &site.owner.grounds.binary;
        let started = site.owner.try_serve(binary, "spliced.occ", &[])?;
        attempts.push(start(&started, 3, "spliced.occ"));
    }
    Ok(judge(attempts))
}

fn older_version(site: &Site) -> Result<Seen, DeploymentError> {
    site.seal("newer.occ", MODEL, 2)?;
    let newer = site.owner.text("newer.occ");
    site.owner.must_order(&["add-model", &newer])?;
    let policy = site.policy("newer.toml", 2, "")?;
    let input = model::secret_input(12);
    let rolled_back = site.serve()?;
    let asked = site.infer_under(policy, &rolled_back.url(), &input)?;
    let current = site.owner.serve("newer.occ", &[])?;
    let said = site.infer_under(policy, &current.url(), &input)?;
    if said.code != 0 {
        return Err(failed("asking for the newer version")(said.reason()));
    }
    let withdraw = ["withdraw", "--model", MODEL, "--below-version", "2"];
    site.owner.must_order(&withdraw)?;
    let started = site
        .owner
        .try_serve(&site.owner.grounds.binary, SEALED, &[])?;
    Ok(judge([
        refused(&asked, 3, "version"),
        start(&started, 3, "withdrawn"),
    ]))
}
