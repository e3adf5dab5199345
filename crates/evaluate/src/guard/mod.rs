//! By how much a guard makes copying a model dearer: what `occlude evaluate guard` does.
//!
//! Models and attackers are the Python package's, which is what owners train guards with.
//! What is between them is Occlude as its users start it: the models are sealed, each with its
//! guard, served by one server, and asked through a proxy over the encrypted channel.

mod html;
mod named;
mod telemetry;
mod thresholds;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub use html::html;
pub use named::{NamedClone, NamesReport, ThrottledReport, WorkedReport};
use occlude_attest::TeeKind;
use serde::{Deserialize, Serialize};
pub use telemetry::{ClientReport, TelemetryReport};

use crate::claim::Claim;
use crate::owner::{Grounds, Owner};
use crate::processes::{DeploymentError, Folder, Running, failed, free_address};
use named::Named;
use telemetry::{Asker, Watching};

/// How often it is looked whether Python has ended.
const PAUSE: Duration = Duration::from_millis(100);

/// The container of the model with a watermark.
const WATERMARKED: &str = "digits-watermark.occ";

/// What is attacked, and how long.
#[derive(Debug)]
pub struct GuardOptions {
    /// The `occlude` binary.
    pub binary: PathBuf,
    /// The TEE that the server runs in: this machine's.
    pub tee: TeeKind,
    /// What hardware vendors publish, if the TEE's evidence needs it.
    pub collateral: Option<PathBuf>,
    /// Python, with the `occlude` package and scikit-learn.
    pub python: OsString,
    /// How many rows an attacker may ask, at most.
    pub queries: u32,
    /// What decides all that is drawn.
    pub seed: u32,
    /// Where whoever is interrupted stops it.
    pub running: Running,
}

/// What came of all attacks. Accuracies and shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardReport {
    /// The version of this form: 1.
    pub format: u32,
    /// What decided all that was drawn.
    pub seed: u32,
    /// What each attacker does.
    pub attackers: BTreeMap<String, String>,
    /// Each model, with each defence.
    pub victims: Vec<VictimReport>,
    /// What each threshold of misinformation does, computed and not asked.
    pub sweeps: Vec<SweepReport>,
    /// Each copy that somebody made.
    pub clones: Vec<CloneReport>,
    /// What the owner of the watermarked model can show of copies, and of models that are none.
    #[serde(default)]
    pub claims: Vec<ClaimReport>,
    /// Copies that somebody made under several names, each of which has a budget.
    #[serde(default)]
    pub names: Option<NamesReport>,
    /// How far each comes whom telemetry watches.
    #[serde(default)]
    pub throttled: Vec<ThrottledReport>,
    /// How long those wait whose answers cost work.
    #[serde(default)]
    pub worked: Vec<WorkedReport>,
    /// What telemetry would say of who copied the unguarded model, and of who did not.
    #[serde(default)]
    pub telemetry: Option<TelemetryReport>,
    /// What a guard costs in time.
    pub latency: LatencyReport,
    /// For each attacker, the smallest number of queries with which the copy of the unguarded
    /// model is good.
    #[serde(flatten)]
    pub summaries: BTreeMap<String, SummaryReport>,
}

/// One model as it was served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VictimReport {
    /// Its public name.
    pub id: String,
    /// Which network it is.
    pub network: String,
    /// What defends it.
    pub defence: String,
    /// How many held-out digits the model itself has right.
    pub accuracy: f64,
    /// How many its answers have right.
    pub guarded_accuracy: f64,
    /// The threshold of misinformation, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// How many outliers keep the label that the same network gives unguarded.
    pub outliers_kept: Option<f64>,
}

/// What each threshold does to one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Which network.
    pub network: String,
    /// Whether it was trained with outliers.
    pub exposed: bool,
    /// Each threshold.
    pub outcomes: Vec<OutcomeReport>,
}

/// What one threshold does. Shares, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeReport {
    /// The threshold.
    pub tau: f64,
    /// How many held-out digits are answered right.
    pub benign_accuracy: f64,
    /// How many of them keep the label that the model alone gives.
    pub benign_kept: f64,
    /// The same of letters and strokes.
    pub outliers_kept: f64,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloneReport {
    /// Of which model.
    pub victim: String,
    /// Which network that is.
    pub network: String,
    /// What defends it.
    pub defence: String,
    /// Who made it.
    pub attacker: String,
    /// How many rows were asked for it.
    pub queries: u32,
    /// How many held-out digits it has right.
    pub accuracy: f64,
    /// How many of them it answers as the served model does.
    pub fidelity: f64,
}

/// What `occlude guard claim` says of one suspect, which was asked about what it learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimReport {
    /// Who made the suspect.
    pub attacker: String,
    /// How many rows were asked for it.
    pub queries: u32,
    /// What defends the model that it learned from: `watermark`, or `none` of one that is the
    /// same but for that.
    pub learned_from: String,
    /// What was found.
    #[serde(flatten)]
    pub claim: Claim,
}

/// Times of one answer over the channel, in turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Median of the larger network without a guard, in milliseconds.
    pub unguarded_ms: f64,
    /// The same with misinformation.
    pub guarded_ms: f64,
    /// The second by the first.
    pub ratio: f64,
    /// Each defence.
    #[serde(default)]
    pub each: Vec<DefenceLatency>,
}

/// Times of one answer with one defence, beside those of the same network without.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DefenceLatency {
    /// Which network.
    pub network: String,
    /// What defends it.
    pub defence: String,
    /// Median without, in milliseconds.
    pub unguarded_ms: f64,
    /// Median with it.
    pub guarded_ms: f64,
    /// The second by the first.
    pub ratio: f64,
}

/// What a guard did to one attacker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryReport {
    /// How many rows were asked.
    pub queries: u32,
    /// Whether the copy of the unguarded model has 95% of that one's accuracy; if not, these
    /// are the most queries.
    pub reached_95_percent: bool,
    /// The copy of the unguarded model.
    pub undefended_clone_accuracy: f64,
    /// The copy of the guarded one.
    pub defended_clone_accuracy: f64,
    /// Percentage points of accuracy that users of the guarded model lose.
    pub benign_loss_points: f64,
}

impl GuardReport {
    /// Accuracies of copies, and their fidelity in brackets: a row for each model, defence and
    /// attacker, a column for each number of queries.
    #[must_use]
    pub fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let budgets: BTreeSet<u32> = self.clones.iter().map(|clone| clone.queries).collect();
        let mut header = vec!["model and attacker".to_owned(), "defence".to_owned()];
        header.extend(budgets.iter().map(ToString::to_string));
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut order: Vec<&CloneReport> = self.clones.iter().collect();
        let of_attacker = |clone: &CloneReport| (clone.network.clone(), clone.attacker.clone());
        order.sort_by_key(|clone| of_attacker(clone));
        for clone in order {
            let name = format!("{}, {}", clone.network, clone.attacker);
            let found = rows
                .iter_mut()
                .find(|row| row[0] == name && row[1] == clone.defence);
            let cell = format!("{} ({})", percent(clone.accuracy), percent(clone.fidelity));
            match found {
                Some(row) => row.push(cell),
                None => rows.push(vec![name, clone.defence.clone(), cell]),
            }
        }
        (header, rows)
    }
}

impl VictimReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 6] {
        [
            self.network.clone(),
            self.defence.clone(),
            self.tau.map_or_else(String::new, |tau| format!("{tau:.2}")),
            percent(self.accuracy),
            percent(self.guarded_accuracy),
            self.outliers_kept.map_or_else(String::new, percent),
        ]
    }
}

impl DefenceLatency {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 5] {
        [
            self.network.clone(),
            self.defence.clone(),
            format!("{:.2}", self.unguarded_ms),
            format!("{:.2}", self.guarded_ms),
            format!("{:.2}", self.ratio),
        ]
    }
}

impl ClaimReport {
    /// As a row of a table.
    #[must_use]
    pub fn cells(&self) -> [String; 6] {
        [
            self.attacker.clone(),
            self.learned_from.clone(),
            self.queries.to_string(),
            format!("{} of {}", self.claim.matched, self.claim.marked),
            format!("{:.1}", self.claim.expected_by_chance),
            format!("{:.1e}", self.claim.p_value),
        ]
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// A model that may be a copy, and what its maker asked about.
#[derive(Deserialize)]
struct Suspect {
    attacker: String,
    queries: u32,
    learned_from: String,
    suspect: String,
    inputs: String,
}

/// A model that Python made.
#[derive(Deserialize)]
struct Made {
    id: String,
}

/// Has models made, serves them, and has them attacked; `progress` hears what is done.
///
/// # Errors
/// [`DeploymentError`]; nothing goes on running then.
pub fn guard(
    options: &GuardOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<GuardReport, DeploymentError> {
    const READING: &str = "reading what Python wrote";
    let grounds = Grounds::new(
        &options.binary,
        options.tee,
        options.collateral.as_ref(),
        &options.running,
    );
    let folder = options.running.folder()?;
    let python = Python { options, folder };
    python.run("making models", &["make"], progress)?;
    let read = |name: &str| std::fs::read(python.folder.at(name)).map_err(failed(READING));
    let made: Vec<Made> =
        serde_json::from_slice(&read("victims.json")?).map_err(failed(READING))?;

    progress("sealing models");
    let [first, rest @ ..] = &made[..] else {
        return Err(failed(READING)("there are no models"));
    };
    let plain = |id: &str| python.folder.at(&format!("{id}.onnx"));
    let owner = Owner::new(&grounds, &plain(&first.id), &first.id)?;
    let mut serve = Vec::new();
    for Made { id } in rest {
        let (sealed, guard) = (format!("{id}.occ"), python.folder.at(&format!("{id}.toml")));
        let guard = guard.exists().then(|| guard.display().to_string());
        let more: Vec<&str> = guard.iter().flat_map(|guard| ["--guard", guard]).collect();
        owner.seal_with(&plain(id), &sealed, id, 1, &more)?;
        owner.must_order(&["add-model", &owner.text(&sealed)])?;
        serve.extend(["--model".to_owned(), sealed]);
    }
    progress("choosing thresholds");
    let askers = || -> Result<Vec<Asker>, DeploymentError> {
        serde_json::from_slice(&read("watched.json")?).map_err(failed(READING))
    };
    let named = Named::new(&owner, &python)?;
    let watching = Watching::new(&owner, python.folder.path(), named.issuers(), &askers()?)?;
    for counted in named.seal(watching.thresholds())? {
        serve.extend(["--model".to_owned(), counted]);
    }
    progress("starting a server");
    let serve: Vec<&str> = serve.iter().map(String::as_str).collect();
    let server = owner.serve(crate::owner::SEALED, &serve)?;
    let policy = format!(
        "{}\n[service]\nowners = [\"{}\"]\n",
        owner.broker_policy(),
        owner.public
    );
    std::fs::write(owner.at("any-model.toml"), policy).map_err(failed("writing a policy"))?;
    let (address, policy) = (free_address()?, owner.text("any-model.toml"));
    let (listen, url) = (address.to_string(), server.url());
    let proxy = ["proxy", &url, "--policy", &policy, "--listen", &listen];
    let proxy = owner
        .spawn(grounds.binary.command(&proxy), address)?
        .listening("starting a proxy")?;

    progress("starting a proxy for each name");
    let proxies = named.start(&url, &policy)?;

    let queries = options.queries.to_string();
    let attack = ["attack", "--proxy", &listen, "--queries", &queries];
    python.run("attacking", &attack, progress)?;
    drop((proxy, proxies, server));
    let report = read("result.json")?;
    let mut report: GuardReport = serde_json::from_slice(&report).map_err(failed(READING))?;
    let suspects = read("claims.json")?;
    let suspects: Vec<Suspect> = serde_json::from_slice(&suspects).map_err(failed(READING))?;
    for suspect in suspects {
        progress("looking for the watermark");
        let at = |name: &str| python.folder.at(name).display().to_string();
        let found = owner.claim(
            &at(&suspect.suspect),
            &owner.text(WATERMARKED),
            &at(&suspect.inputs),
        )?;
        report.claims.push(ClaimReport {
            attacker: suspect.attacker,
            queries: suspect.queries,
            learned_from: suspect.learned_from,
            claim: serde_json::from_str(&found).map_err(failed(READING))?,
        });
    }
    progress("looking at queries");
    report.telemetry = Some(watching.report(&askers()?)?);
    Ok(report)
}

/// The Python package, which works in one folder.
struct Python<'a> {
    options: &'a GuardOptions,
    folder: Folder,
}

impl Python<'_> {
    /// Runs a half of the evaluation to its end.
    fn run(
        &self,
        doing: &'static str,
        arguments: &[&str],
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), DeploymentError> {
        let (out, err) = (self.folder.at("said"), self.folder.at("errors"));
        let file = |path| std::fs::File::create(path).map_err(failed(doing));
        let mut command = Command::new(&self.options.python);
        command
            .args(["-B", "-m", "occlude.guard.evaluation"])
            .args(arguments)
            .arg("--folder")
            .arg(self.folder.path())
            .args(["--seed", &self.options.seed.to_string()])
            // Small matrices: threads would wait for each other, on a busy machine for long.
            .env("OPENBLAS_NUM_THREADS", "1")
            .stdout(file(&out)?)
            .stderr(file(&err)?);
        let process = self.options.running.spawn(doing, &mut command)?;
        let mut told = String::new();
        let status = loop {
            let said = std::fs::read_to_string(&out).unwrap_or_default();
            if let Some(last) = said.lines().last().filter(|last| *last != told) {
                told = last.to_owned();
                progress(last);
            }
            match process.ended() {
                Some(status) => break status,
                None => std::thread::sleep(PAUSE),
            }
        };
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        let said = std::fs::read_to_string(&err).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it said nothing");
        Err(failed(doing)(last))
    }
}
