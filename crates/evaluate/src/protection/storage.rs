//! What a server puts outside of protected memory, while it serves: the operator reads and
//! alters it, and watches how it is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use occlude_weakening::Weakening;

use super::network::request;
use super::reads::{self, Repeated, Tracing};
use super::search::Secrets;
use super::site::{Site, judge, right_or_none};
use super::wire::{ask, get};
use super::{Attacker, Check, Seen, model};
use crate::owner::{POLICY, SEALED};
use crate::processes::{DeploymentError, Service, failed};

pub(super) const CHECKS: &[Check] = &[
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
        name: "storage-order",
        attacker: Attacker::Operator,
        tried: "tell inputs apart by what the server reads to answer them, in which order: every call of \
                the kernel's that reads a file or disk",
        weakening: Weakening::InputReads,
        carry_out: storage_order,
    },
    Check {
        name: "corruption-under-load",
        attacker: Attacker::Operator,
        tried: "alter a container, and write over all streamed weights again and again while users \
                ask, where a second place holds both",
        weakening: Weakening::NoMirror,
        carry_out: corruption_under_load,
    },
];

/// A site with far more weights than a process has besides, and a server of it that streams
/// as much as it can.
pub(super) fn streaming(site: &Site, more: &[&str]) -> Result<(Site, Service), DeploymentError> {
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
        let before = settled()?;
        ask_differently(&proxy, run)?;
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

/// Asks with another input each time.
fn ask_differently(proxy: &Service, run: usize) -> Result<(), DeploymentError> {
    const DOING: &str = "asking for an answer";
    let input = match run % 3 {
        0 => vec![0.0; model::FEATURES],
        1 => vec![-1.0; model::FEATURES],
        _ => model::secret_input(run as u64),
    };
    let given = ask(proxy.address, &request(&input)).map_err(failed(DOING))?;
    if given.status != 200 {
        return Err(failed(DOING)(String::from_utf8_lossy(&given.body)));
    }
    Ok(())
}

fn storage_order(site: &Site) -> Result<Seen, DeploymentError> {
    const RUNS: usize = 12;
    let (large, server) = streaming(site, &[])?;
    let proxy = large.proxy(&server, &[])?;
    // The first ones verify the server, and fill what is read ahead.
    for run in 0..2 {
        ask_differently(&proxy, run)?;
    }
    let tracing = Tracing::start(&server.process)?;
    for run in 0..RUNS {
        ask_differently(&proxy, run)?;
    }
    let reads = tracing.stop(|| server.answers())?;
    Ok(match reads::same_each_time(&reads, RUNS) {
        Ok(Repeated { reads, overtaking }) => Seen::Held(format!(
            "{RUNS} inputs, each {reads} reads in one order, in which threads overtake each other by at \
             most {overtaking} places"
        )),
        Err(difference) => Seen::Broke(difference),
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
