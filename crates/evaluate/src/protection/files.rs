//! The operator looks: files, wires, logs, metrics, dumps, and memory that was freed.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use occlude_weakening::Weakening;

use super::search::Secrets;
use super::site::{Site, run};
use super::wire::{get, recording_relay};
use super::{Attacker, Check, Seen, model};
use crate::owner::SEALED;
use crate::processes::{DeploymentError, Service, failed, free_address};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "files",
        attacker: Attacker::Operator,
        tried: "search every file that the server can write or was given, those deleted and still \
                open, its environment and its command line",
        weakening: Weakening::TemporaryCopy,
        carry_out: files,
    },
    Check {
        name: "wires",
        attacker: Attacker::Network,
        tried: "record what passes between user, server and broker, and search it",
        weakening: Weakening::PlainChannel,
        carry_out: wires,
    },
    Check {
        name: "logs-and-metrics",
        attacker: Attacker::Operator,
        tried: "search logs at their most talkative, and metrics",
        weakening: Weakening::LoggedRequests,
        carry_out: logs_and_metrics,
    },
    Check {
        name: "core-dumps-and-swap",
        attacker: Attacker::Operator,
        tried: "have the kernel write a core dump, trace the process, swap its memory out",
        weakening: Weakening::NoHardening,
        carry_out: core_dumps_and_swap,
    },
    Check {
        name: "freed-memory",
        attacker: Attacker::Operator,
        tried: "search all of the server's memory for an input and its answer after the answer was \
                given",
        weakening: Weakening::KeptRequests,
        carry_out: freed_memory,
    },
];

/// What nobody may find: weights, names, an input.
fn secrets(site: &Site, input: &[f32]) -> Secrets {
    let input = bytes(input);
    let weights = site.model.weights.iter().map(Vec::as_slice);
    Secrets::new(weights.chain([input.as_slice()]), &site.model.names)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A search of several places, of which the plain model must be one that is found.
fn search(
    site: &Site,
    secrets: &Secrets,
    places: Vec<(String, Vec<u8>)>,
) -> Result<Seen, DeploymentError> {
    if secrets.find(&site.model.onnx).is_none() {
        return Err(failed("searching")("the plain model itself is not found"));
    }
    let (count, mut searched) = (places.len(), 0);
    for (place, bytes) in places {
        searched += bytes.len();
        if let Some((offset, name)) = secrets.find(&bytes) {
            let what = name.map_or("a piece of a secret".to_owned(), |name| format!("{name:?}"));
            return Ok(Seen::Broke(format!("{what} in {place}, at byte {offset}")));
        }
    }
    Ok(Seen::Held(format!(
        "none of {} pieces and names in {count} places, {searched} bytes",
        secrets.len()
    )))
}

fn files(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "searching files";
    let operator = site.owner.grounds.running.folder()?;
    let temporary = operator.at("tmp");
    std::fs::create_dir(&temporary).map_err(failed(DOING))?;
    std::fs::copy(site.owner.at(SEALED), operator.at(SEALED)).map_err(failed(DOING))?;
    let address = free_address()?;
    let binary = &site.owner.grounds.binary;
    let mut command = site.owner.serve_command(binary, SEALED, address, &[]);
    command
        .current_dir(operator.path())
        .env("TMPDIR", &temporary);
    let server = site.owner.spawn(command, address)?.answering(DOING)?;
    let input = model::secret_input(3);
    site.must_infer(&server.url(), &input)?;
    let mut places = of_process(&server)?;
    for path in below(operator.path()) {
        let bytes = std::fs::read(&path).map_err(failed(DOING))?;
        let name = path.strip_prefix(operator.path()).unwrap_or(&path);
        places.push((name.display().to_string(), bytes));
    }
    search(site, &secrets(site, &input), places)
}

/// What root reads of a process without stopping it.
fn of_process(server: &Service) -> Result<Vec<(String, Vec<u8>)>, DeploymentError> {
    const DOING: &str = "reading /proc as root";
    let process = PathBuf::from(format!("/proc/{}", server.process.id()));
    let mut places = Vec::new();
    for name in ["environ", "cmdline", "maps"] {
        let bytes = std::fs::read(process.join(name)).map_err(failed(DOING))?;
        places.push((format!("/proc/.../{name}"), bytes));
    }
    let open = std::fs::read_dir(process.join("fd")).map_err(failed(DOING))?;
    for file in open.flatten() {
        let path = std::fs::read_link(file.path()).unwrap_or_default();
        let kept = path.is_absolute() && !path.starts_with("/dev") && !path.starts_with("/memfd:");
        if kept && let Ok(bytes) = std::fs::read(file.path()) {
            places.push((format!("open file {}", path.display()), bytes));
        }
    }
    Ok(places)
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn wires(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "recording wires";
    let relay = |address| recording_relay(address).map_err(failed(DOING));
    let (broker, broker_wire) = relay(site.owner.broker.address)?;
    let broker = format!("http://{broker}");
    let server = site.owner.serve(SEALED, &["--broker", &broker])?;
    let (user, user_wire) = relay(server.address)?;
    let input = model::secret_input(4);
    site.must_infer(&format!("http://{user}"), &input)?;
    let (user_wire, broker_wire) = (user_wire.bytes(), broker_wire.bytes());
    if user_wire.len() < 1024 || broker_wire.len() < 1024 {
        return Err(failed(DOING)("nothing passed"));
    }
    let places = vec![
        ("what the user sent and got".to_owned(), user_wire),
        ("what the broker sent and got".to_owned(), broker_wire),
    ];
    search(site, &secrets(site, &input), places)
}

fn logs_and_metrics(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "reading logs";
    let address = free_address()?;
    let binary = &site.owner.grounds.binary;
    let mut command = site.owner.serve_command(binary, SEALED, address, &[]);
    command.env("OCCLUDE_LOG", "trace");
    let server = site.owner.spawn(command, address)?.answering(DOING)?;
    let input = model::secret_input(5);
    site.must_infer(&server.url(), &input)?;
    let metrics = get(address, "/metrics").map_err(failed(DOING))?.body;
    let log = server.log();
    if log.is_empty() || metrics.is_empty() {
        return Err(failed(DOING)("there is nothing in them"));
    }
    let digits: String = bytes(&input[..4])
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let number = format!("{}", input[0]);
    if log.contains(&digits) || log.contains(&number) {
        return Ok(Seen::Broke("the input in the log".to_owned()));
    }
    let places = vec![
        ("the log".to_owned(), log.into_bytes()),
        ("the metrics".to_owned(), metrics),
    ];
    search(site, &secrets(site, &input), places)
}

fn core_dumps_and_swap(site: &Site) -> Result<Seen, DeploymentError> {
    const DOING: &str = "asking for a core dump";
    let address = free_address()?;
    let (broker, binary) = (site.owner.broker.url(), site.binary()?);
    let script = format!(
        "ulimit -c unlimited; exec '{}' serve --model {SEALED} --broker {broker} --tee {} \
         --listen {address}",
        binary.display(),
        site.owner.grounds.tee
    );
    let server = site
        .owner
        .spawn(site.shell(&script), address)?
        .answering(DOING)?;
    site.must_infer(&server.url(), &model::secret_input(6))?;
    let process = PathBuf::from(format!("/proc/{}", server.process.id()));
    let read = |name: &str| std::fs::read_to_string(process.join(name)).map_err(failed(DOING));
    let (limits, status) = (read("limits")?, read("status")?);
    let words = |text: &str, line: &str| -> Vec<String> {
        let line = text.lines().find(|found| found.starts_with(line));
        let words = line.unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect()
    };
    let core = words(&limits, "Max core file size");
    if core.get(4).map(String::as_str) != Some("0") {
        return Ok(Seen::Broke("the kernel may write a core dump".to_owned()));
    }
    let kill = format!("kill -ABRT {}", server.process.id());
    run(DOING, &mut site.shell(&kill))?;
    if server.ends_within(Duration::from_secs(30)).is_none() {
        return Err(failed(DOING)("it goes on"));
    }
    let dumped = below(site.owner.folder()).into_iter().any(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("core")
    });
    if dumped {
        return Ok(Seen::Broke("the kernel wrote a core dump".to_owned()));
    }
    let locked = words(&status, "VmLck");
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let may_swap = swaps.lines().count() > 1;
    if locked.get(1).is_none_or(|locked| locked == "0") && may_swap {
        return Ok(Seen::Broke(
            "no memory is locked, and this machine swaps".to_owned(),
        ));
    }
    Ok(Seen::Held(format!(
        "no core dump at an abort; {} kB locked{}",
        locked.get(1).map_or("0", String::as_str),
        if may_swap {
            ""
        } else {
            ", and nothing to swap to"
        }
    )))
}

fn freed_memory(site: &Site) -> Result<Seen, DeploymentError> {
    let server = site.serve()?;
    // Large enough that what was freed is not all used again at once.
    let input: Vec<f32> = (100..356).flat_map(model::secret_input).collect();
    let said = site.infer(&server.url(), &input)?;
    let answer = model::probabilities(&said.out);
    let answer = answer.ok_or_else(|| failed("asking for an answer")(said.reason()))?;
    let answer: Vec<f32> = answer.iter().map(|value| *value as f32).collect();
    // Whoever still holds something lets go of it.
    std::thread::sleep(Duration::from_millis(300));
    // Each with its own place in the answer, and each example's own numbers.
    let (input, answer) = (bytes(&input), bytes(&answer));
    let pieces: HashSet<&[u8]> = (input.chunks_exact(256).map(|example| &example[..PROBE]))
        .chain(answer.chunks_exact(40).map(|example| &example[..PROBE]))
        .collect();
    let (found, searched) = search_memory(server.process.id(), &pieces)?;
    Ok(match found {
        Some(place) => Seen::Broke(format!("a piece of the input or its answer in {place}")),
        None => Seen::Held(format!("nothing of either in {searched} bytes of memory")),
    })
}

/// Bytes of a piece that is searched for in memory.
const PROBE: usize = 16;

/// Searches a process's memory; where something is, and how much was read.
fn search_memory(
    process: u32,
    pieces: &HashSet<&[u8]>,
) -> Result<(Option<String>, usize), DeploymentError> {
    const DOING: &str = "reading the process's memory as root";
    const PIECE: usize = 1 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).map_err(failed(DOING))?;
    let memory = File::open(format!("/proc/{process}/mem")).map_err(failed(DOING))?;
    let (mut searched, mut buffer) = (0, vec![0; PIECE + 64]);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let (Some((start, end)), Some(rights)) = (range, words.next()) else {
            continue;
        };
        let place = words.nth(3).unwrap_or("anonymous memory");
        let number = |digits| u64::from_str_radix(digits, 16).map_err(failed(DOING));
        let (mut at, end) = (number(start)?, number(end)?);
        // What cannot be written holds nothing of a request.
        if !rights.starts_with("rw") {
            continue;
        }
        while at < end {
            // Pieces that lie across two reads are in the first.
            let length = buffer.len().min((end - at) as usize);
            let read = memory.read_at(&mut buffer[..length], at).unwrap_or(0);
            let mut windows = buffer[..read].windows(PROBE);
            if windows.any(|window| pieces.contains(window)) {
                return Ok((Some(place.to_owned()), searched));
            }
            searched += read.min(PIECE);
            at += PIECE as u64;
        }
    }
    if searched == 0 {
        return Err(failed(DOING)("nothing can be read"));
    }
    Ok((None, searched))
}
