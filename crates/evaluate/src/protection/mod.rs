//! Attacks on a deployment, carried out: what `occlude evaluate protection` does.
//!
//! Each [check](CheckReport) starts a deployment of its own on this machine, an owner's, as
//! processes of the binary, and attacks it as its attacker could. It says what was tried
//! and what was seen. Where this build can leave protections out, it is then run again on
//! a deployment without the one that it is about, and has to notice: a check that cannot
//! fail shows nothing.
//!
//! The deployment serves a model that is made for this, with names and weights that a
//! search would find. What the operator can do needs root, as operators have.

mod clients;
mod files;
pub mod model;
mod models;
mod network;
mod owners;
mod reads;
mod records;
pub mod search;
mod services;
mod site;
mod storage;
mod times;
pub mod wire;

use std::path::PathBuf;

use occlude_attest::TeeKind;
use occlude_weakening::Weakening;
use serde::Serialize;

use crate::owner::Grounds;
use crate::processes::{DeploymentError, Running};

use site::Site;

/// What is attacked.
#[derive(Debug)]
pub struct ProtectionOptions {
    /// The `occlude` binary.
    pub binary: PathBuf,
    /// The TEE that servers run in: this machine's.
    pub tee: TeeKind,
    /// What hardware vendors publish, if the TEE's evidence needs it.
    pub collateral: Option<PathBuf>,
    /// Checks by their names; all if there is none.
    pub only: Vec<String>,
    /// Where whoever is interrupted stops it.
    pub running: Running,
}

/// Who attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Attacker {
    /// Root on the host: every file, every process, every packet.
    Operator,
    /// Somebody between client and server.
    Network,
    /// Somebody who may ask.
    Client,
    /// Whoever made the model.
    ModelMaker,
}

impl Attacker {
    /// What reports call them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Network => "network",
            Self::Client => "client",
            Self::ModelMaker => "model maker",
        }
    }
}

/// One attack.
struct Check {
    name: &'static str,
    attacker: Attacker,
    /// What is tried, in words for people.
    tried: &'static str,
    /// The protection that it is about.
    weakening: Weakening,
    carry_out: fn(&Site) -> Result<Seen, DeploymentError>,
}

/// What an attack led to, in words for people.
enum Seen {
    Held(String),
    Broke(String),
}

/// What came of one attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "seen", rename_all = "kebab-case")]
pub enum Verdict {
    /// It failed.
    Held(String),
    /// It succeeded.
    Broke(String),
    /// It could not be carried out here.
    NotTried(String),
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// What it is called.
    pub name: &'static str,
    /// Who attacks.
    pub attacker: Attacker,
    /// What was tried.
    pub tried: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What came of it without the protection, if that was tried.
    pub weakened: Option<WeakenedReport>,
}

/// What came of a check where a protection was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WeakenedReport {
    /// The protection.
    pub without: &'static str,
    /// What came of it; it should have broken.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl WeakenedReport {
    /// Whether the check noticed.
    #[must_use]
    pub fn caught(&self) -> bool {
        matches!(self.verdict, Verdict::Broke(_))
    }
}

/// What came of all checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProtectionReport {
    /// The TEE that servers ran in.
    pub tee: TeeKind,
    /// What that means.
    pub meaning: String,
    /// Each check.
    pub checks: Vec<CheckReport>,
}

impl ProtectionReport {
    /// Checks whose attack failed.
    #[must_use]
    pub fn held(&self) -> usize {
        let held = |check: &&CheckReport| matches!(check.verdict, Verdict::Held(_));
        self.checks.iter().filter(held).count()
    }

    /// Checks that were run without their protection.
    #[must_use]
    pub fn weakened(&self) -> usize {
        self.weakened_reports().count()
    }

    /// Those of them that noticed.
    #[must_use]
    pub fn caught(&self) -> usize {
        let caught = |report: &&WeakenedReport| report.caught();
        self.weakened_reports().filter(caught).count()
    }

    fn weakened_reports(&self) -> impl Iterator<Item = &WeakenedReport> {
        self.checks
            .iter()
            .filter_map(|check| check.weakened.as_ref())
    }

    /// Whether everything held, and every weakening was caught.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.held() == self.checks.len() && self.caught() == self.weakened()
    }

    /// All of it in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} checks, {} held, {} of {} weakenings caught",
            self.checks.len(),
            self.held(),
            self.caught(),
            self.weakened()
        )
    }
}

/// A name that is no check's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no check {found:?}: {} are", names().join(", "))]
pub struct UnknownCheck {
    /// The name.
    pub found: String,
}

/// What every check is called.
#[must_use]
pub fn names() -> Vec<&'static str> {
    checks().map(|check| check.name).collect()
}

fn checks() -> impl Iterator<Item = &'static Check> {
    [
        files::CHECKS,
        models::CHECKS,
        storage::CHECKS,
        records::CHECKS,
        services::CHECKS,
        network::CHECKS,
        times::CHECKS,
        clients::CHECKS,
        owners::CHECKS,
    ]
    .into_iter()
    .flatten()
}

/// Carries out the checks; `progress` is told which one is next, and of how many.
///
/// # Errors
/// [`UnknownCheck`]. What goes wrong in a check is in its report.
pub fn protection(
    options: &ProtectionOptions,
    progress: &mut dyn FnMut(usize, usize, &'static str),
) -> Result<ProtectionReport, UnknownCheck> {
    if let Some(found) = options
        .only
        .iter()
        .find(|name| !names().contains(&name.as_str()))
    {
        let found = found.clone();
        return Err(UnknownCheck { found });
    }
    let wanted = |check: &&Check| {
        options.only.is_empty() || options.only.iter().any(|name| name == check.name)
    };
    let chosen: Vec<&Check> = checks().filter(wanted).collect();
    let mut reports = Vec::new();
    for (done, check) in chosen.iter().enumerate() {
        progress(done, chosen.len(), check.name);
        reports.push(check.report(options));
    }
    Ok(ProtectionReport {
        tee: options.tee,
        meaning: meaning(options.tee),
        checks: reports,
    })
}

impl Check {
    fn report(&self, options: &ProtectionOptions) -> CheckReport {
        let weakenable = occlude_weakening::POSSIBLE && options.tee == TeeKind::Simulated;
        CheckReport {
            name: self.name,
            attacker: self.attacker,
            tried: self.tried,
            verdict: self.verdict(options, None),
            weakened: weakenable.then(|| WeakenedReport {
                without: self.weakening.name(),
                verdict: self.verdict(options, Some(self.weakening)),
            }),
        }
    }

    fn verdict(&self, options: &ProtectionOptions, weakening: Option<Weakening>) -> Verdict {
        let mut grounds = Grounds::new(
            &options.binary,
            options.tee,
            options.collateral.as_ref(),
            &options.running,
        );
        grounds.binary.weakening = weakening;
        let seen = Site::new(&grounds).and_then(|site| (self.carry_out)(&site));
        match seen {
            Ok(Seen::Held(seen)) => Verdict::Held(seen),
            Ok(Seen::Broke(seen)) => Verdict::Broke(seen),
            Err(error) => Verdict::NotTried(error.to_string()),
        }
    }
}

/// What the TEE says about the result.
fn meaning(tee: TeeKind) -> String {
    if tee == TeeKind::Simulated {
        return "The TEE is simulated: it keeps nobody out of live memory, and only a real one does. \
                What holds here is everything around it."
            .to_owned();
    }
    format!(
        "Servers ran in {tee}. That nobody reads its live memory is the hardware's promise, which no \
         check here can try."
    )
}
