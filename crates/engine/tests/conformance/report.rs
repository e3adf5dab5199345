//! The counts over all tests, for people, for programs and for `scripts/test.py`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::worker::{Sealed, Verdict};

/// What the run came to.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Node tests of the package.
    tests: usize,
    /// How many of them were run.
    chosen: usize,
    /// Those whose expected outputs plain ONNX Runtime gives.
    passed_by_plain: usize,
    /// Of these, those that do so only with a weight in the model.
    only_with_weights: usize,
    /// Of these, those with at least one weight.
    with_weights: usize,
    /// Of these, those with nodes that carry inputs or outputs over the protocol.
    adapted: usize,
    /// Of these, those that Occlude answered.
    run: usize,
    /// Of these, those with plain ONNX Runtime's outputs.
    same: usize,
    /// Of these, those with a streamed weight.
    streamed: usize,
    sealed_operator: usize,
    fallback: usize,
    /// Tests that Occlude says it does not serve, by reason.
    refused: BTreeMap<String, Vec<String>>,
    different: BTreeMap<String, String>,
    not_passed_by_plain: BTreeMap<String, String>,
}

impl Report {
    pub(crate) fn new(tests: usize, verdicts: BTreeMap<String, Verdict>) -> Self {
        let mut report = Self {
            tests,
            chosen: verdicts.len(),
            passed_by_plain: 0,
            only_with_weights: 0,
            with_weights: 0,
            adapted: 0,
            run: 0,
            same: 0,
            streamed: 0,
            sealed_operator: 0,
            fallback: 0,
            refused: BTreeMap::new(),
            different: BTreeMap::new(),
            not_passed_by_plain: BTreeMap::new(),
        };
        for (name, verdict) in verdicts {
            report.count(name, verdict);
        }
        report
    }

    fn count(&mut self, name: String, verdict: Verdict) {
        let (passed, sealed) = match verdict {
            Verdict::PlainFails { why } => {
                self.not_passed_by_plain.insert(name, why);
                return;
            }
            Verdict::PlainPasses(passed, sealed) => (passed, sealed),
        };
        self.passed_by_plain += 1;
        self.only_with_weights += usize::from(!passed.without_constants);
        self.with_weights += usize::from(passed.constants > 0);
        self.adapted += usize::from(passed.is_adapted);
        match sealed {
            Sealed::Same(facts) => {
                self.run += 1;
                self.same += 1;
                self.streamed += usize::from(facts.streamed);
                self.sealed_operator += usize::from(facts.sealed_operator);
                self.fallback += usize::from(facts.fallback);
            }
            Sealed::Different { why } => {
                self.run += 1;
                self.different.insert(name, why);
            }
            Sealed::Refused { why } => self.refused.entry(why).or_default().push(name),
        }
    }

    /// Whether Occlude gives the outputs of every test that plain ONNX Runtime passes.
    pub(crate) fn is_good(&self) -> bool {
        self.different.is_empty() && self.refused.is_empty()
    }

    pub(crate) fn for_people(&self) -> String {
        let refused: usize = self.refused.values().map(Vec::len).sum();
        let counts = [
            ("node tests of the onnx package", self.tests),
            ("chosen", self.chosen),
            ("passed by plain ONNX Runtime", self.passed_by_plain),
            ("  only with a weight in the model", self.only_with_weights),
            ("  with a weight", self.with_weights),
            ("  with nodes at their interface", self.adapted),
            ("run by Occlude", self.run),
            ("  the same", self.same),
            ("  with a streamed weight", self.streamed),
            ("  that ran a sealed operator", self.sealed_operator),
            ("  that ran the fallback", self.fallback),
            ("refused by Occlude", refused),
            ("different", self.different.len()),
        ];
        let mut lines: Vec<String> = counts
            .map(|(what, count)| format!("{what:36}{count:6}"))
            .into();
        for (why, names) in &self.refused {
            lines.push(format!("refused: {why}: {}", names.join(", ")));
        }
        for (name, why) in &self.different {
            lines.push(format!("different: {name}: {why}"));
        }
        lines.join("\n")
    }

    /// In the form of Rust's own test harness.
    pub(crate) fn for_cargo(&self) -> String {
        let failed = self.refused.values().flatten().chain(self.different.keys());
        let mut lines: Vec<String> = failed
            .map(|name| format!("test {name} ... FAILED"))
            .collect();
        let verdict = if self.is_good() { "ok" } else { "FAILED" };
        lines.push(format!(
            "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered \
             out\n",
            self.same,
            self.passed_by_plain - self.same,
            self.tests - self.chosen,
        ));
        lines.join("\n")
    }
}
