//! What a broker keeps, and what it is told: the operator alters both.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_weakening::Weakening;

use super::site::{MODEL, Middle, Site, judge, refused, run, start, tidy};
use super::{Attacker, Check, Seen};
use crate::owner::SEALED;
use crate::processes::{DeploymentError, Service, failed};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "altered-log",
        attacker: Attacker::Operator,
        tried: "change entries of the broker's log in its database",
        weakening: Weakening::AnyLog,
        carry_out: altered_log,
    },
    Check {
        name: "altered-policy",
        attacker: Attacker::Operator,
        tried: "put a policy that the owner has replaced back into the broker's database; and change \
                bits of the one there",
        weakening: Weakening::AnyPolicy,
        carry_out: altered_policy,
    },
    Check {
        name: "rolled-back-database",
        attacker: Attacker::Operator,
        tried: "put the broker's whole database back to before the owner withdrew a version, where the \
                owner has kept the log's signed head",
        weakening: Weakening::AnyLog,
        carry_out: rolled_back_database,
    },
    Check {
        name: "altered-order",
        attacker: Attacker::Network,
        tried: "change an order of the owner's on its way to the broker",
        weakening: Weakening::AnyOrder,
        carry_out: altered_order,
    },
];

fn altered_log(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "altering the broker's database";
    end(site, &site.owner.broker)?;
    let again = site.owner.broker_again()?;
    end(site, &again)?;
    // Entries' times, in the log and nowhere else, copies in unused pages included.
    let (mut changed, time) = (0, b"\"time\":1");
    for path in site.owner.database() {
        let mut bytes = std::fs::read(&path).map_err(failed(DOING))?;
        for place in 0..bytes.len().saturating_sub(time.len()) {
            if bytes[place..].starts_with(time) {
                // The second digit of the seconds since 1970.
                bytes[place + time.len()] = b'5';
                changed += 1;
            }
        }
        std::fs::write(&path, bytes).map_err(failed(DOING))?;
    }
    if changed == 0 {
        return Err(failed(DOING)("no entry was found"));
    }
    let broker = match site.owner.broker_again() {
        Ok(broker) => broker,
        Err(error) => return Ok(Seen::Held(error.to_string())),
    };
    // It may listen before it has read its log.
    Ok(judge([match broker.ends_within(Duration::from_secs(3)) {
        Some(said) => refused(&said, 1, "the audit log is refused"),
        None => Err("the broker starts on it and says nothing".to_owned()),
    }]))
}

fn altered_policy(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "altering a policy";
    end(site, &site.owner.broker)?;
    let earlier = sealed_policy(site)?;
    // As long as the first, but of another program.
    let measurement = site.owner.claims.measurement().to_string();
    let first = if measurement.starts_with('0') {
        "1"
    } else {
        "0"
    };
    let another = [first, &measurement[1..]].concat();
    let policy = site.owner.broker_policy().replace(&measurement, &another);
    std::fs::write(site.owner.at("other.toml"), policy).map_err(failed(DOING))?;
    let broker = site.owner.broker_again()?;
    let order = ["set-policy", &site.owner.text("other.toml")];
    let said = site.owner.order_to(&broker.url(), &order)?;
    if said.code != 0 {
        return Err(failed(DOING)(said.reason()));
    }
    let serve = |broker: &Service| {
        let binary = &site.owner.grounds.binary;
        let broker = broker.url();
        site.owner.try_serve(binary, SEALED, &["--broker", &broker])
    };
    if serve(&broker)?.is_ok() {
        return Err(failed(DOING)(
            "a server serves that the policy does not accept",
        ));
    }
    end(site, &broker)?;
    let current = sealed_policy(site)?;
    let attempt = |policy: &[u8]| -> Result<Result<String, String>, DeploymentError> {
        replace(site, &current, policy)?;
        let broker = site.owner.broker_again()?;
        let started = serve(&broker)?;
        end(site, &broker)?;
        replace(site, policy, &current)?;
        Ok(start(&started, 3, "policies"))
    };
    let mut flipped = current.clone();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    Ok(judge([attempt(&earlier)?, attempt(&flipped)?]))
}

/// The policy in the broker's database, sealed: what follows its owner and no model.
fn sealed_policy(site: &Site) -> Result<Vec<u8>, DeploymentError> {
    const DOING: &str = "looking for a policy";
    /// Longer than sealed keys with what stands before them.
    const LENGTH: usize = 500;
    let owner = site.owner.public.fingerprint().to_string();
    for path in site.owner.database() {
        let bytes = std::fs::read(path).map_err(failed(DOING))?;
        let rows = bytes
            .windows(owner.len())
            .enumerate()
            .filter(|(_, found)| *found == owner.as_bytes());
        for (place, _) in rows {
            let row = &bytes[place + owner.len()..];
            let in_base64 = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
            let length = row.iter().take_while(in_base64).count();
            if length > LENGTH {
                return Ok(row[..length].to_vec());
            }
        }
    }
    Err(failed(DOING)("there is none"))
}

/// Puts other bytes of the same number in the place of some.
fn replace(site: &Site, before: &[u8], after: &[u8]) -> Result<(), DeploymentError> {
    const DOING: &str = "writing into the broker's database";
    if before.len() != after.len() {
        return Err(failed(DOING)("the two are not of one length"));
    }
    let mut replaced = false;
    for path in site.owner.database() {
        let mut bytes = std::fs::read(&path).map_err(failed(DOING))?;
        for place in 0..bytes.len().saturating_sub(before.len() - 1) {
            if bytes[place..].starts_with(before) {
                bytes[place..place + after.len()].copy_from_slice(after);
                replaced = true;
            }
        }
        std::fs::write(&path, bytes).map_err(failed(DOING))?;
    }
    if replaced {
        return Ok(());
    }
    Err(failed(DOING)("it is not there"))
}

fn rolled_back_database(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "rolling the broker's database back";
    end(site, &site.owner.broker)?;
    let read = |path: &PathBuf| std::fs::read(path).map(|bytes| (path.clone(), bytes));
    let earlier: Vec<(PathBuf, Vec<u8>)> = (site.owner.database().iter())
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(failed(DOING))?;
    let head = site.owner.text("head.json");
    let broker = site.owner.broker_again()?;
    for order in [
        &["withdraw", "--model", MODEL, "--below-version", "2"][..],
        &["audit", "--export-head", &head],
    ] {
        let said = site.owner.order_to(&broker.url(), order)?;
        if said.code != 0 {
            return Err(failed(DOING)(said.reason()));
        }
    }
    end(site, &broker)?;
    for path in site.owner.database() {
        std::fs::remove_file(path).map_err(failed(DOING))?;
    }
    for (path, bytes) in earlier {
        std::fs::write(path, bytes).map_err(failed(DOING))?;
    }
    let broker = site.owner.broker_again()?;
    let since = ["audit", "--since", &head];
    let said = site.owner.order_to(&broker.url(), &since)?;
    Ok(judge([refused(
        &said,
        3,
        "comparing with the earlier head",
    )]))
}

/// Ends a process as an operator does, so that it leaves its files in order.
fn end(site: &Site, service: &Service) -> Result<(), DeploymentError> {
    const DOING: &str = "ending the broker";
    let kill = format!("kill -TERM {}", service.process.id());
    run(DOING, &mut site.shell(&kill))?;
    let ended = service.ends_within(Duration::from_secs(60));
    ended.map(drop).ok_or_else(|| failed(DOING)("it goes on"))
}

fn altered_order(site: &Site) -> Result<Seen, DeploymentError> {
    let middle = Middle::new(
        site.owner.broker.address,
        |seen| {
            // One version more than the owner said, in what the owner signed.
            let Ok(mut envelope) = serde_json::from_slice::<serde_json::Value>(&seen.body) else {
                return;
            };
            let request = envelope["request"]
                .as_str()
                .and_then(|text| STANDARD.decode(text).ok());
            let Some(request) = request.and_then(|bytes| String::from_utf8(bytes).ok()) else {
                return;
            };
            let more = request.replace("\"below-version\":2", "\"below-version\":9");
            envelope["request"] = STANDARD.encode(more).into();
            seen.body = envelope.to_string().into_bytes();
        },
        |_, _| (),
    )?;
    let withdraw = ["withdraw", "--model", MODEL, "--below-version", "2"];
    let said = site.owner.order_to(&middle.url(), &withdraw)?;
    let attempt = match said.code {
        0 => Err("the broker followed it".to_owned()),
        _ => Ok(tidy(&said)),
    };
    Ok(judge([attempt]))
}
