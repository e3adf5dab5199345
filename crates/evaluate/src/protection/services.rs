//! The operator, or whoever is on the way, pretends to be the owner's service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use occlude_attest::{AttestationResponse, ServiceStatement};
use occlude_channel::{Gateway, Kem, Limits};
use occlude_weakening::Weakening;

use super::site::{ATTESTATION, Site, is_of_a_model, judge, refused, start};
use super::wire::{Given, Seen as Request, get, man_in_the_middle, recording_relay};
use super::{Attacker, Check, Seen, model};
use crate::owner::SEALED;
use crate::processes::{Binary, DeploymentError, failed};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "another-program",
        attacker: Attacker::Operator,
        tried: "run a build that differs in one byte, and ask the broker for the key",
        weakening: Weakening::AnyMeasurement,
        carry_out: another_program,
    },
    Check {
        name: "look-alike",
        attacker: Attacker::Operator,
        tried: "answer with a genuine build that serves the operator's own model, from the operator's \
                own broker",
        weakening: Weakening::AnyOwner,
        carry_out: look_alike,
    },
    Check {
        name: "model-of-another-owner",
        attacker: Attacker::Operator,
        tried: "be a customer of the owner's broker too, with a model of the same name",
        weakening: Weakening::AnyOwner,
        carry_out: model_of_another_owner,
    },
    Check {
        name: "another-broker",
        attacker: Attacker::Operator,
        tried: "put a broker of the operator's before the owner's, where users name the owner's; and \
                in its place",
        weakening: Weakening::AnyConfiguration,
        carry_out: another_broker,
    },
    Check {
        name: "weaker-channel",
        attacker: Attacker::Operator,
        tried: "start the owner's service with a key exchange that a quantum computer breaks",
        weakening: Weakening::AnyConfiguration,
        carry_out: weaker_channel,
    },
    Check {
        name: "recorded-evidence",
        attacker: Attacker::Network,
        tried: "answer with genuine evidence that was recorded earlier, as it was, and with a channel \
                key of one's own",
        weakening: Weakening::UnboundEvidence,
        carry_out: recorded_evidence,
    },
    Check {
        name: "own-channel-key",
        attacker: Attacker::Network,
        tried: "put a channel key of one's own, or this server's statement, under fresh genuine \
                evidence: of this server, of another of the owner's, of the operator's",
        weakening: Weakening::UnboundEvidence,
        carry_out: own_channel_key,
    },
];

fn another_program(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "changing the program";
    let (binary, changed) = (site.binary()?, site.owner.at("occlude-changed"));
    // A child writes it: were it open for writing here, another child could inherit it and
    // keep it from being run.
    let copy = format!(
        "cp '{}' '{}' && printf '\\0' >> '{}'",
        binary.display(),
        changed.display(),
        changed.display()
    );
    let said = super::site::run(DOING, &mut site.shell(&copy))?;
    if said.code != 0 {
        return Err(failed(DOING)(said.reason()));
    }
    for beside in binary
        .parent()
        .into_iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten()
    {
        let name = beside.file_name();
        if name.to_string_lossy().starts_with("libonnxruntime") {
            let link = site.owner.folder().join(name);
            std::os::unix::fs::symlink(beside.path(), link).map_err(failed(DOING))?;
        }
    }
    let changed = Binary {
        path: changed,
        ..site.owner.grounds.binary.clone()
    };
    let started = site.owner.try_serve(&changed, SEALED, &[])?;
    let audit = site.owner.must_order(&["audit", "--json"])?;
    let recorded = if audit.contains("the policy refuses") || audit.contains("measurement") {
        Ok("the broker's log has it".to_owned())
    } else {
        Err("the broker's log says nothing of it".to_owned())
    };
    Ok(judge([start(&started, 3, "measurement"), recorded]))
}

fn look_alike(site: &Site) -> Result<Seen, DeploymentError> {
    let operator = site.operator()?;
    let server = operator.serve()?;
    let said = site.infer(&server.url(), &model::secret_input(20))?;
    Ok(judge([refused(&said, 3, "serves owner")]))
}

fn model_of_another_owner(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "giving the broker another owner's model";
    let operator = site.operator()?;
    let broker = site.owner.broker.url();
    for order in [
        ["add-model", &operator.owner.text(SEALED)],
        ["set-policy", &operator.owner.text("broker-policy.toml")],
    ] {
        let said = operator.owner.order_to(&broker, &order)?;
        if said.code != 0 {
            return Err(failed(DOING)(said.reason()));
        }
    }
    let theirs = site.owner.at("theirs.occ");
    std::fs::copy(operator.owner.at(SEALED), theirs).map_err(failed(DOING))?;
    let server = site.owner.serve("theirs.occ", &[])?;
    let said = site.infer(&server.url(), &model::secret_input(21))?;
    Ok(judge([refused(&said, 3, "serves owner")]))
}

fn another_broker(site: &Site) -> Result<Seen, DeploymentError> {
    let relay = recording_relay(site.owner.broker.address);
    let (relay, _) = relay.map_err(failed("putting a broker before another"))?;
    let policy = site.policy(
        "broker-named.toml",
        1,
        &format!(
            "[service.configuration]\nbrokers = [\"{}/\"]\n",
            site.owner.broker.url()
        ),
    )?;
    let relayed = site
        .owner
        .serve(SEALED, &["--broker", &format!("http://{relay}")])?;
    let input = model::secret_input(22);
    let said = site.infer_under(policy, &relayed.url(), &input)?;
    let stranger = site.operator()?;
    let binary = &site.owner.grounds.binary;
    let without = ["--broker", &stranger.owner.broker.url()];
    let without = site.owner.try_serve(binary, SEALED, &without)?;
    let genuine = site.serve()?;
    let control = site.infer_under(policy, &genuine.url(), &input)?;
    if control.code != 0 {
        return Err(failed("asking the genuine one")(control.reason()));
    }
    Ok(judge([
        refused(&said, 3, "brokers"),
        start(&without, 3, "the broker has no such key"),
    ]))
}

fn weaker_channel(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.owner.serve(SEALED, &["--kem", "x25519"])?;
    let said = site.infer(&server.url(), &model::secret_input(23))?;
    Ok(judge([refused(&said, 3, "kem")]))
}

/// Answers for evidence as it likes, and counts what is sent to it in the belief that it is
/// the server. Held, if the user refuses before anything is sent.
fn impostor(
    site: &Site,
    attestation: impl Fn(&Request) -> Option<Given> + Send + Sync + 'static,
) -> Result<Result<String, String>, DeploymentError> {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let nothing = || Given::new(500, "text/plain", Vec::new());
    let address = man_in_the_middle(move |seen| {
        if seen.path_and_query.starts_with(ATTESTATION) {
            return attestation(&seen).unwrap_or_else(nothing);
        }
        counter.fetch_add(usize::from(is_of_a_model(&seen)), Ordering::SeqCst);
        nothing()
    });
    let address = address.map_err(failed("standing in the middle"))?;
    let said = site.infer(&format!("http://{address}"), &model::secret_input(24))?;
    Ok(if sent.load(Ordering::SeqCst) > 0 {
        Err("the user sent a request to it".to_owned())
    } else {
        refused(&said, 3, "made for another nonce or another statement")
    })
}

fn recorded_evidence(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "recording evidence";
    let server = site.serve()?;
    let nonce = format!("{ATTESTATION}?nonce={}", "5a".repeat(32));
    let recorded = get(server.address, &nonce).map_err(failed(DOING))?;
    let with_own_key = with_own_channel_key(&recorded)
        .ok_or_else(|| failed(DOING)("the server's answer cannot be read"))?;
    let mut attempts = Vec::new();
    for given in [recorded, with_own_key] {
        attempts.push(impostor(site, move |_| Some(given.clone()))?);
    }
    Ok(judge(attempts))
}

fn own_channel_key(site: &Site) -> Result<Seen, DeploymentError> {
    let operator = site.operator()?;
    let (server, other, look_alike) = (site.serve()?, site.serve()?, operator.serve()?);
    let honest = server.address;
    let mut attempts = Vec::new();
    for evidence in [server.address, other.address, look_alike.address] {
        for own_key in [true, false] {
            if evidence == honest && !own_key {
                continue;
            }
            attempts.push(impostor(site, move |seen| {
                let stated = get(honest, &seen.path_and_query).ok()?;
                let stated = if own_key {
                    with_own_channel_key(&stated)?
                } else {
                    stated
                };
                let fresh = get(evidence, &seen.path_and_query).ok()?;
                let forged = AttestationResponse::new(
                    response(&stated)?.statement().to_vec(),
                    response(&fresh)?.evidence().clone(),
                );
                Some(Given {
                    body: forged.encode(),
                    ..stated
                })
            })?);
        }
    }
    Ok(judge(attempts))
}

fn response(given: &Given) -> Option<AttestationResponse> {
    AttestationResponse::decode(&given.body).ok()
}

/// The answer with the channel key of somebody else in its statement.
fn with_own_channel_key(given: &Given) -> Option<Given> {
    let genuine = response(given)?;
    let mut statement = ServiceStatement::decode(genuine.statement()).ok()?;
    let own = Gateway::new(Kem::XWing, Limits::default()).ok()?;
    statement.channel_keys = own.key_configurations();
    let forged = AttestationResponse::new(statement.encode(), genuine.evidence().clone());
    Some(Given {
        body: forged.encode(),
        ..given.clone()
    })
}
