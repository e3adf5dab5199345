//! The operator alters what is stored: containers, streamed weights, the broker's records.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use occlude_container::HEADER_LENGTH;
use occlude_weakening::Weakening;

use super::network::request;
use super::search::Secrets;
use super::site::{MODEL, Middle, Site, judge, refused, run, start, tidy};
use super::wire::{ask, get};
use super::{Attacker, Check, Seen, model};
use crate::owner::{POLICY, SEALED};
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
        name: "streamed-weights",
        attacker: Attacker::Operator,
        tried: "search what a running server has put outside of protected memory",
        weakening: Weakening::ClearPanels,
        carry_out: streamed_weights,
    },
    Check {
        name: "storage-reads",
        attacker: Attacker::Operator,
        tried: "tell inputs apart by how many bytes the server reads to answer them, from files and \
                disks",
        weakening: Weakening::InputReads,
        carry_out: storage_reads,
    },
    Check {
        name: "corruption-under-load",
        attacker: Attacker::Operator,
        tried: "alter a container, and write over all streamed weights again and again while users \
                ask, where a second place holds both",
        weakening: Weakening::NoMirror,
        carry_out: corruption_under_load,
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
        tried: "change entries of the broker's log in its database",
        weakening: Weakening::AnyLog,
        carry_out: altered_log,
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

fn right_or_none(site: &Site, said: &Said, input: &[f32]) -> Result<String, String> {
    match said.code {
        0 if site.is_right(said, input) => Ok("the right answer".to_owned()),
        0 => Err("a wrong answer was given".to_owned()),
        _ => Ok(tidy(said)),
    }
}

/// A site with far more weights than a process has besides, and a server of it that streams
/// as much as it can.
fn streaming(site: &Site, more: &[&str]) -> Result<(Site, Service), DeploymentError> {
    let large = Site::of(&site.owner.grounds, model::classifier_of(8, 240_000))?;
    let server = stream(&large, more)?;
    Ok((large, server))
}

fn stream(large: &Site, more: &[&str]) -> Result<Service, DeploymentError> {
    const DOING: &str = "streaming weights";
    let spill = format!("direct:{}", large.owner.folder().display());
    let serve = |memory: &str| {
        let all = [&["--protected-memory", memory, "--spill", &spill], more].concat();
        large
            .owner
            .try_serve(&large.owner.grounds.binary, SEALED, &all)
    };
    let smallest = match serve("1MiB")? {
        Ok(_) => return Err(failed(DOING)("1 MiB of protected memory was enough")),
        Err(said) => smallest(said.reason()).ok_or_else(|| failed(DOING)(said.reason()))?,
    };
    serve(&smallest)?.map_err(|said| failed(DOING)(said.reason()))
}

/// Writes over what a server has put into a file in its owner's folder.
fn write_over(file: &File) -> Result<(), DeploymentError> {
    const DOING: &str = "writing over streamed weights";
    let length = file.metadata().map_err(failed(DOING))?.len();
    for place in (0..length).step_by(64 << 10) {
        file.write_all_at(b"altered", place)
            .map_err(failed(DOING))?;
    }
    file.sync_all().map_err(failed(DOING))
}

fn altered_streamed_weights(site: &Site) -> Result<Seen, DeploymentError> {
    let (large, server) = streaming(site, &[])?;
    let input = model::secret_input(11);
    large.must_infer(&server.url(), &input)?;
    write_over(&spilled(&server, &large)?)?;
    let said = large.infer(&server.url(), &input)?;
    Ok(match said.code {
        0 if large.is_right(&said, &input) => {
            return Err(failed("altering weights")("what was altered was not read"));
        }
        _ => judge([right_or_none(&large, &said, &input)]),
    })
}

fn streamed_weights(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "reading streamed weights";
    let (large, server) = streaming(site, &[])?;
    large.must_infer(&server.url(), &model::secret_input(13))?;
    let spilled = std::fs::read(place_of_spilled(&server, &large)?).map_err(failed(DOING))?;
    let sealed = std::fs::read(large.owner.at(SEALED)).map_err(failed(DOING))?;
    // Rows of the largest weight, in columns as the model has them and as they are computed.
    let pieces = large.model.weights[0].chunks_exact(16).step_by(64);
    let secrets = Secrets::new(pieces, &large.model.names);
    if secrets.find(&large.model.onnx).is_none() {
        return Err(failed(DOING)("the plain model itself is not found"));
    }
    let found = |bytes: &[u8]| secrets.find(bytes).is_some();
    Ok(if found(&spilled) || found(&sealed) {
        Seen::Broke("a piece of a weight in what was streamed".to_owned())
    } else {
        Seen::Held(format!(
            "none of {} pieces in {} bytes of streamed weights",
            secrets.len(),
            spilled.len()
        ))
    })
}

fn storage_reads(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "counting reads";
    const RUNS: usize = 12;
    let (large, server) = streaming(site, &[])?;
    let proxy = large.proxy(&server, &[])?;
    let read = || -> Result<u64, DeploymentError> {
        let file = format!("/proc/{}/io", server.process.id());
        let counts = std::fs::read_to_string(file).map_err(failed(DOING))?;
        let count = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
        count
            .and_then(|count| count.parse().ok())
            .ok_or_else(|| failed(DOING)("no count"))
    };
    // What is read ahead for the next answer counts with this one.
    let settled = || -> Result<u64, DeploymentError> {
        let mut last = read()?;
        loop {
            std::thread::sleep(Duration::from_millis(60));
            let now = read()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    };
    let mut seen = Vec::new();
    for run in 0..RUNS + 2 {
        let input = match run % 3 {
            0 => vec![0.0; model::FEATURES],
            1 => vec![-1.0; model::FEATURES],
            _ => model::secret_input(run as u64),
        };
        let before = settled()?;
        let given = ask(proxy.address, &request(&input)).map_err(failed(DOING))?;
        if given.status != 200 {
            return Err(failed(DOING)(String::from_utf8_lossy(&given.body)));
        }
        // The first ones verify the server, and fill what is read ahead.
        if run >= 2 {
            seen.push(settled()? - before);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    Ok(match seen[..] {
        [one] => Seen::Held(format!("{one} bytes for each of {RUNS} inputs")),
        _ => Seen::Broke(format!("{seen:?} bytes for different inputs")),
    })
}

fn corruption_under_load(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "corrupting under load";
    const USERS: u64 = 2;
    const QUESTIONS: u64 = 6;
    let large = Site::of(&site.owner.grounds, model::classifier_of(9, 240_000))?;
    let second = large.owner.grounds.running.folder()?;
    let (sealed, copy) = (large.owner.at(SEALED), second.at(SEALED));
    std::fs::copy(&sealed, &copy).map_err(failed(DOING))?;
    let whole = std::fs::read(&sealed).map_err(failed(DOING))?;
    // Of the container, while nobody reads it yet.
    let mut corrupt = whole.clone();
    for from_end in [40_000, 20_000_000] {
        let place = corrupt.len() - from_end;
        corrupt[place] ^= 1;
    }
    std::fs::write(&sealed, corrupt).map_err(failed(DOING))?;
    let mirror = second.path().display().to_string();
    let server = match stream(&large, &["--mirror", &mirror]) {
        Ok(server) => server,
        Err(error) => return Ok(Seen::Broke(error.to_string())),
    };
    // Of streamed weights, all the while.
    let file = spilled(&server, &large)?;
    let (asking, rounds) = (AtomicBool::new(true), AtomicUsize::new(0));
    let ask = |user: u64| -> Result<u64, DeploymentError> {
        let mut right = 0;
        for question in 0..QUESTIONS {
            let input = model::secret_input(100 * user + question);
            let name = format!("user-{user}.npy");
            let said = large.infer_with(&name, POLICY, &server.url(), &input)?;
            right += u64::from(said.code == 0 && large.is_right(&said, &input));
        }
        Ok(right)
    };
    let right = std::thread::scope(|scope| {
        let operator = scope.spawn(|| {
            while asking.load(Ordering::SeqCst) {
                write_over(&file)?;
                std::thread::sleep(Duration::from_millis(10));
                rounds.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<_, DeploymentError>(())
        });
        let users: Vec<_> = (1..=USERS)
            .map(|user| scope.spawn(move || ask(user)))
            .collect();
        let answers: Vec<_> = users.into_iter().map(ScopedJoinHandle::join).collect();
        asking.store(false, Ordering::SeqCst);
        let panicked = |_| failed(DOING)("a thread panicked");
        operator.join().map_err(panicked)??;
        let mut right = 0;
        for answer in answers {
            right += answer.map_err(panicked)??;
        }
        Ok::<_, DeploymentError>(right)
    })?;
    let metrics = get(server.address, "/metrics").map_err(failed(DOING))?.body;
    let metrics = String::from_utf8_lossy(&metrics);
    let panels = repairs(&metrics, "weights");
    let repaired = std::fs::read(&sealed).map_err(failed(DOING))? == whole;
    let asked = USERS * QUESTIONS;
    let seen = format!(
        "{right} of {asked} answers right, while all streamed weights were written over {} times; \
         {panels} panels repaired; the container is {} as it was",
        rounds.load(Ordering::SeqCst),
        if repaired { "again" } else { "NOT" }
    );
    let held = right == asked && panels > 0 && repaired;
    Ok(if held {
        Seen::Held(seen)
    } else {
        Seen::Broke(seen)
    })
}

/// How many parts of `what` a server says that it repaired.
fn repairs(metrics: &str, what: &str) -> u64 {
    let lines = metrics.lines().filter(|line| {
        line.starts_with("occlude_repairs_total")
            && line.contains(&format!("what=\"{what}\""))
            && line.contains("outcome=\"repaired\"")
    });
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// The number in "the model needs N, of which".
fn smallest(reason: &str) -> Option<String> {
    let (_, rest) = reason.split_once("the model needs ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// The unnamed file in its owner's folder that a server has open, to be written.
fn spilled(server: &Service, large: &Site) -> Result<File, DeploymentError> {
    let place = place_of_spilled(server, large)?;
    let file = File::options().write(true).open(place);
    file.map_err(failed("opening streamed weights"))
}

fn place_of_spilled(server: &Service, large: &Site) -> Result<PathBuf, DeploymentError> {
    const DOING: &str = "looking for streamed weights";
    let open = format!("/proc/{}/fd", server.process.id());
    let open = std::fs::read_dir(open).map_err(failed(DOING))?;
    let found = open.flatten().map(|file| file.path()).find(|file| {
        let to = std::fs::read_link(file).unwrap_or_default();
        to.starts_with(large.owner.folder()) && to.to_string_lossy().ends_with("(deleted)")
    });
    found.ok_or_else(|| failed(DOING)("there is no such file"))
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
