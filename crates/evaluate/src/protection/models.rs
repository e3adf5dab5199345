//! The operator alters what is stored: containers, streamed weights, the broker's records.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_weakening::Weakening;

use super::site::{MODEL, Middle, Site, judge, refused, run, start, tidy};
use super::{Attacker, Check, Seen, model};
use crate::owner::SEALED;
use crate::processes::{DeploymentError, Said, Service, failed};

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
        name: "altered-streamed-weights",
        attacker: Attacker::Operator,
        tried: "write over weights that a running server has put outside of protected memory",
        weakening: Weakening::AnyPanel,
        carry_out: altered_streamed_weights,
    },
    Check {
        name: "older-version",
        attacker: Attacker::Operator,
        tried: "serve an older version, genuine and signed, to users who want the newer; and one \
                that the owner has withdrawn",
        weakening: Weakening::AnyVersion,
        carry_out: older_version,
    },
    Check {
        name: "altered-log",
        attacker: Attacker::Operator,
        tried: "change an entry of the broker's log in its database",
        weakening: Weakening::AnyLog,
        carry_out: altered_log,
    },
    Check {
        name: "altered-order",
        attacker: Attacker::Network,
        tried: "change an order of the owner's on its way to the broker",
        weakening: Weakening::AnyOrder,
        carry_out: altered_order,
    },
];

/// Where the header's fields lie that are not checked by themselves before the signature
/// is: the model's id, a digest, the signature's first and last byte (docs/container-format.md).
const HEADER: usize = 4096;

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
    let end = sealed[..HEADER]
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
            // It may serve and find out later, but may give no wrong answer.
            Ok(server) => right_or_none(site, &site.infer(&server.url(), &input)?, &input),
        });
    }
    Ok(judge(attempts))
}

fn right_or_none(site: &Site, said: &Said, input: &[f32]) -> Result<String, String> {
    match said.code {
        0 if site.is_right(said, input) => Ok("the right answer".to_owned()),
        0 => Err("a wrong answer was given".to_owned()),
        _ => Ok(tidy(said)),
    }
}

fn altered_streamed_weights(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "streaming weights";
    // Far more weights than a process has besides.
    let large = Site::of(&site.owner.grounds, model::classifier_of(8, 240_000))?;
    let binary = &large.owner.grounds.binary;
    let spill = format!("direct:{}", large.owner.folder().display());
    let serve = |memory: &str| {
        let more = ["--protected-memory", memory, "--spill", &spill];
        large.owner.try_serve(binary, SEALED, &more)
    };
    let smallest = match serve("1MiB")? {
        Ok(_) => return Err(failed(DOING)("1 MiB of protected memory was enough")),
        Err(said) => smallest(said.reason()).ok_or_else(|| failed(DOING)(said.reason()))?,
    };
    let server = serve(&smallest)?.map_err(|said| failed(DOING)(said.reason()))?;
    let input = model::secret_input(11);
    large.must_infer(&server.url(), &input)?;
    let spilled = spilled(server.process.id(), large.owner.folder())
        .ok_or_else(|| failed(DOING)("there is no file of streamed weights"))?;
    let file = OpenOptions::new().write(true).open(spilled);
    let file = file.map_err(failed(DOING))?;
    let length = file.metadata().map_err(failed(DOING))?.len();
    for place in (0..length).step_by(64 << 10) {
        file.write_all_at(b"altered", place)
            .map_err(failed(DOING))?;
    }
    file.sync_all().map_err(failed(DOING))?;
    let said = large.infer(&server.url(), &input)?;
    Ok(match said.code {
        0 if large.is_right(&said, &input) => {
            return Err(failed(DOING)("what was altered was not read"));
        }
        _ => judge([right_or_none(&large, &said, &input)]),
    })
}

/// The number in "the model needs N, of which".
fn smallest(reason: &str) -> Option<String> {
    let (_, rest) = reason.split_once("the model needs ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// The unnamed file in `folder` that a process has open.
fn spilled(process: u32, folder: &Path) -> Option<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    open.flatten().map(|file| file.path()).find(|file| {
        let to = std::fs::read_link(file).unwrap_or_default();
        to.starts_with(folder) && to.to_string_lossy().ends_with("(deleted)")
    })
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

fn altered_log(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "altering the broker's database";
    end(site, &site.owner.broker)?;
    let again = site.owner.broker_again()?;
    end(site, &again)?;
    // The first entry's time, in the log and nowhere else.
    let (mut changed, time) = (0, b"\"time\":1");
    for path in site.owner.database() {
        let mut bytes = std::fs::read(&path).map_err(failed(DOING))?;
        let place = bytes.windows(time.len()).position(|found| found == time);
        if let Some(place) = place {
            // The second digit of the seconds since 1970.
            bytes[place + time.len()] = b'5';
            changed += 1;
            std::fs::write(&path, bytes).map_err(failed(DOING))?;
        }
    }
    if changed == 0 {
        return Err(failed(DOING)("no entry was found"));
    }
    Ok(match site.owner.broker_again() {
        Err(error) => Seen::Held(error.to_string()),
        Ok(_) => Seen::Broke("the broker starts on it and says nothing".to_owned()),
    })
}

/// Ends a process as an operator does, so that it leaves its files in order.
fn end(site: &Site, service: &Service) -> Result<(), DeploymentError> {
    const DOING: &str = "ending the broker";
    let kill = format!("kill -TERM {}", service.process.id());
    run(DOING, &mut site.shell(&kill))?;
    let begun = Instant::now();
    while service.process.ended().is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(failed(DOING)("it goes on"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
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
