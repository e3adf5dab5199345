//! What a guard is told to look for, and what it asks for an answer: chosen as an owner would,
//! by what honest users do.

use std::fmt::Write as _;

use super::telemetry::DOING;
use crate::owner::Watched;
use crate::processes::{DeploymentError, failed};
use crate::watch::quantile;

/// Thresholds are beyond this share of honest windows, each.
const USUAL: f64 = 0.99;

/// And further by so much: windows of few digits are more alike than those of many.
const MARGIN: f64 = 1.5;

/// An answer whose largest probability is below it is uncertain.
pub(super) const BELOW: f64 = 0.9;

/// Queries of a window.
pub(super) const QUERIES: u32 = 100;

/// A budget that nobody here comes to the end of.
pub(super) const PLENTY: u32 = 1_000_000;

/// The text of a guard, but for its issuers.
pub(super) struct GuardText(String);

impl GuardText {
    /// Each client has so many answers.
    pub(super) fn budgets(of_each: u32) -> Self {
        Self(format!(
            "format = 1\noutput = \"probabilities\"\n[budgets]\nwindow-seconds = 31536000\n\
             client = {{ window = {of_each} }}\n"
        ))
    }

    /// Windows are looked at, and clients of unusual ones wait for a day where they are stopped.
    pub(super) fn telemetry(mut self, thresholds: &Thresholds, stopped: bool) -> Self {
        let Thresholds {
            share, normality, ..
        } = thresholds;
        let _ = write!(
            self.0,
            "[telemetry]\nqueries = {QUERIES}\nuncertain = {{ below = {BELOW}, share = {share} }}\n\
             distances = {{ normality = {normality} }}\n"
        );
        if stopped {
            self.0.push_str("throttle-seconds = 86400\n");
        }
        self
    }

    /// The first answers cost `2^bits` hashes, and none more than `2^most_bits`.
    pub(super) fn work(mut self, thresholds: &Thresholds, (bits, most_bits): (u32, u32)) -> Self {
        let gain = thresholds.gain;
        let _ = write!(
            self.0,
            "[work]\nbits = {bits}\ngain = {gain}\nmost-bits = {most_bits}\n"
        );
        self
    }

    /// With the issuers who name clients.
    pub(super) fn with(self, issuers: &str) -> String {
        self.0 + issuers
    }
}

/// Beyond which something is unusual, or dearer.
pub(super) struct Thresholds {
    pub(super) share: f64,
    pub(super) normality: f64,
    pub(super) gain: f64,
}

impl Thresholds {
    /// Any: what is looked at before they are chosen.
    pub(super) const ANY: Self = Self {
        share: 0.5,
        normality: 0.5,
        gain: 1.0,
    };

    /// Those that few honest users would be beyond.
    pub(super) fn beyond(usual: &Watched) -> Result<Self, DeploymentError> {
        let few = || failed(DOING)("too few queries to choose thresholds with");
        let shares = usual.windows.iter().map(|window| window.uncertain);
        let normalities = usual.windows.iter().filter_map(|window| window.normality);
        let gains = usual.work.iter().map(|work| work.gained);
        let normality = quantile(normalities, 1.0 - USUAL).ok_or_else(few)?;
        Ok(Self {
            share: MARGIN * quantile(shares, USUAL).ok_or_else(few)?,
            normality: 1.0 - MARGIN * (1.0 - normality),
            gain: (MARGIN * quantile(gains, USUAL).ok_or_else(few)?).max(1.0),
        })
    }
}
