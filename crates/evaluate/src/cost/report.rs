//! The report, whose field names are the JSON's.

use std::fmt::{self, Display, Formatter};
use std::fs;

use occlude_attest::TeeKind;
use serde::Serialize;

use crate::bench::report::rounded;
use crate::bench::{BudgetReport, LayerTime, Measured, Outcome, Report, Side, Speed};
use crate::number;

/// What protection costs for one model on one machine.
#[derive(Debug, Clone, Serialize)]
pub struct CostReport {
    /// The version of this form: 1.
    pub format: u32,
    /// Occlude's version.
    pub occlude: &'static str,
    /// The model's file name.
    pub model: String,
    /// All weights, in MiB, if any budget works.
    pub weights_mib: Option<f64>,
    /// Threads of every side.
    pub threads: usize,
    /// Examples in one request.
    pub batch: u64,
    /// Where streamed weights lie.
    pub spill: String,
    /// The machine.
    pub machine: Machine,
    /// The TEE that this was measured in.
    pub tee: Tee,
    /// What was measured, plain ONNX Runtime first.
    pub rows: Vec<Row>,
    /// The differences, taken apart.
    pub costs: Costs,
    /// Where the time of a run goes, for the owner's eyes: the names are the model's.
    pub layers: Vec<LayerSplit>,
    /// The budget of the streamed times in `layers`.
    pub layers_budget: Option<String>,
    /// Largest finite float among plain ONNX Runtime's outputs, without its sign.
    pub max_abs_output: Option<f64>,
}

/// One way to run the model.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: RowOutcome,
}

/// What came of one way to run the model.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum RowOutcome {
    /// It works.
    Measured(Box<Figures>),
    /// A budget below the smallest possible.
    DoesNotFit {
        /// The smallest that works, in MiB.
        smallest_mib: f64,
        /// What needs the most of it, in the engine's words.
        does_not_fit: String,
    },
    /// Something else keeps it from working.
    NotMeasured {
        /// What.
        not_measured: String,
    },
}

/// The figures of one way to run the model.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// How quickly it answers.
    #[serde(flatten)]
    pub speed: Speed,
    /// Its median over that of the plain runs in turns with it.
    pub ratio_p50: f64,
    /// From its start to the first answer, in milliseconds.
    pub first_answer_ms: f64,
    /// Highest anonymous memory of its process, in MiB: what a TEE would have to protect.
    /// None for the service, whose processes are more than the model.
    pub peak_protected_mib: Option<f64>,
    /// Weights that stay in protected memory, in MiB.
    pub resident_mib: Option<f64>,
    /// Streamed weights that are opened in a second of running, in MiB.
    pub opened_mib_per_second: Option<f64>,
    /// Largest difference of an output element from plain ONNX Runtime's.
    pub max_abs_diff: f64,
}

/// What one answer costs more than plain ONNX Runtime's, taken apart, in milliseconds of the
/// median. A part is none where one of the two that it lies between was not measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Costs {
    /// Plain ONNX Runtime's own median.
    pub plain_ms: f64,
    /// Occlude's engine with every weight resident, less plain ONNX Runtime.
    pub engine_ms: Option<f64>,
    /// Opening streamed weights under `crypto_budget`, less that.
    pub crypto_ms: Option<f64>,
    /// The smallest share of the weights that was measured.
    pub crypto_budget: Option<String>,
    /// Encapsulation, HTTP and the server around the engine: an answer over the channel, less
    /// the engine with every weight resident.
    pub channel_ms: Option<f64>,
}

/// Where the time of one layer goes, in milliseconds of a run.
#[derive(Debug, Clone, Serialize)]
pub struct LayerSplit {
    /// The weight's name.
    pub name: String,
    /// What reads it.
    pub kind: String,
    /// Computing, with the weight resident.
    pub compute_ms: f64,
    /// What it takes longer where the weight is streamed.
    pub opening_ms: f64,
}

/// The machine that this was measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor, as the kernel names it.
    pub processor: String,
    /// Processors that this may use.
    pub processors: usize,
    /// Memory, in MiB.
    pub memory_mib: Option<u64>,
}

/// The TEE that this was measured in.
#[derive(Debug, Clone, Serialize)]
pub struct Tee {
    /// The TEE that the machine is, if it is one that hides memory.
    pub present: Option<String>,
    /// The TEE that the service was deployed in; `simulated` protects nothing.
    pub service: Option<String>,
    /// What that means for the numbers.
    pub meaning: String,
}

impl Tee {
    pub(super) fn new(present: Option<TeeKind>, service: Option<TeeKind>) -> Self {
        let meaning = match (present, service) {
            (Some(kind), _) => format!(
                "Everything was measured inside {kind}, plain ONNX Runtime too. What {kind} itself \
                 costs is in every row and in none of the differences: to see it, run this on the \
                 same machine outside of it."
            ),
            (None, Some(kind)) if kind != TeeKind::Simulated => format!(
                "This machine has no TEE that hides memory from its host. The service gave evidence \
                 of {kind}, which says what was started: no number here is a TEE's overhead."
            ),
            (None, Some(_)) => "This machine has no TEE that hides memory. The service ran in the \
                 SIMULATED TEE, which protects nothing and costs nothing: no number here is a \
                 TEE's overhead."
                .to_owned(),
            (None, None) => "This machine has no TEE that hides memory, and this build has no \
                 simulated one: no number here is a TEE's overhead, and the service was not \
                 measured."
                .to_owned(),
        };
        Self {
            present: present.map(|kind| kind.to_string()),
            service: service.map(|kind| kind.to_string()),
            meaning,
        }
    }
}

impl Machine {
    /// This one.
    pub(super) fn here() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).ok()?;
            let mut lines = text.lines();
            let line = lines.find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let memory = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.map(|kibibytes| kibibytes >> 10),
        }
    }
}

impl CostReport {
    /// What stands above a row's cells.
    pub const COLUMNS: [&str; 10] = [
        "p50 ms",
        "ratio",
        "p99 ms",
        "answers/s",
        "CPU ms",
        "first answer ms",
        "peak MiB",
        "resident MiB",
        "opened MiB/s",
        "largest difference",
    ];

    pub(super) fn new(measured: Report, machine: Machine, tee: Tee) -> Self {
        let resident = of_share(&measured.budgets, 100.0);
        let smallest = smallest_share(&measured.budgets);
        let costs = Costs::new(&measured, resident, smallest);
        let first = measured.budgets.iter().find_map(|it| it.outcome.measured());
        Self {
            format: 1,
            occlude: env!("CARGO_PKG_VERSION"),
            weights_mib: first.map(|first| first.occlude.weights_mib),
            max_abs_output: first.map(|first| first.max_abs_output),
            layers: resident
                .zip(smallest)
                .map_or_else(Vec::new, |(resident, (_, streamed))| {
                    split(&resident.layers, &streamed.layers)
                }),
            layers_budget: smallest.map(|(entry, _)| entry.budget.to_string()),
            rows: rows(&measured),
            costs,
            threads: measured.threads.get(),
            batch: measured.batch,
            spill: measured.spill.to_string(),
            model: measured.model,
            machine,
            tee,
        }
    }
}

impl Row {
    /// Its figures as text, in the order of [`CostReport::COLUMNS`]; none if it has none.
    #[must_use]
    pub fn cells(&self) -> Option<Vec<String>> {
        let RowOutcome::Measured(figures) = &self.outcome else {
            return None;
        };
        let optional = |value: Option<f64>| value.map_or_else(String::new, number);
        Some(vec![
            number(figures.speed.p50_ms),
            format!("{:.2}", figures.ratio_p50),
            number(figures.speed.p99_ms),
            number(figures.speed.per_second),
            number(figures.speed.cpu_ms),
            number(figures.first_answer_ms),
            optional(figures.peak_protected_mib),
            optional(figures.resident_mib),
            optional(figures.opened_mib_per_second),
            format!("{:.1e}", figures.max_abs_diff),
        ])
    }

    /// Why it has none.
    #[must_use]
    pub fn instead(&self) -> Option<String> {
        match &self.outcome {
            RowOutcome::Measured(_) => None,
            RowOutcome::DoesNotFit { smallest_mib, .. } => {
                let smallest = number(*smallest_mib);
                Some(format!("does not fit, smallest {smallest} MiB"))
            }
            RowOutcome::NotMeasured { not_measured } => {
                Some(format!("not measured: {not_measured}"))
            }
        }
    }
}

/// One part of the cost, as people read it.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// What it is for.
    pub name: String,
    /// How much, in milliseconds of an answer.
    pub cost: String,
    /// The share of plain ONNX Runtime's median.
    pub share: String,
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.cost)?;
        if !self.share.is_empty() {
            write!(f, " ({})", self.share)?;
        }
        Ok(())
    }
}

impl Costs {
    /// The parts, each with its name.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let crypto = match &self.crypto_budget {
            Some(budget) => format!("opening streamed weights, {budget} of them resident"),
            None => "opening streamed weights".to_owned(),
        };
        let parts = [
            ("the engine, every weight resident", self.engine_ms),
            (&*crypto, self.crypto_ms),
            ("the channel and the server around it", self.channel_ms),
        ];
        let parts = parts.into_iter().map(|(name, ms)| Part {
            name: name.to_owned(),
            cost: ms.map_or_else(
                || "not measured".to_owned(),
                |ms| format!("{} ms", number(ms)),
            ),
            share: ms.map_or_else(String::new, |ms| {
                format!("{:+.0} %", 100.0 * ms / self.plain_ms)
            }),
        });
        parts.collect()
    }
}

/// What was measured with so many percent of the weights resident.
fn of_share(budgets: &[BudgetReport], percent: f64) -> Option<&Measured> {
    let mut shares = shares(budgets);
    shares
        .find(|(share, _)| *share >= percent)
        .and_then(|(_, entry)| entry.outcome.measured())
}

/// The smallest share of the weights that was measured, less than all.
fn smallest_share(budgets: &[BudgetReport]) -> Option<(&BudgetReport, &Measured)> {
    shares(budgets)
        .filter(|(share, _)| *share < 100.0)
        .filter_map(|(share, entry)| Some((share, entry, entry.outcome.measured()?)))
        .min_by(|(one, ..), (other, ..)| one.total_cmp(other))
        .map(|(_, entry, measured)| (entry, measured))
}

/// Budgets that are shares of the weights, in percent.
fn shares(budgets: &[BudgetReport]) -> impl Iterator<Item = (f64, &BudgetReport)> {
    budgets
        .iter()
        .filter_map(|entry| Some((entry.budget.share()?, entry)))
}

impl Costs {
    /// All of them are differences of ratios, since each side has plain runs of its own in
    /// turns with it.
    fn new(
        measured: &Report,
        resident: Option<&Measured>,
        smallest: Option<(&BudgetReport, &Measured)>,
    ) -> Self {
        let plain_ms = measured.plain.speed.p50_ms;
        let more = |ratio: f64, than: f64| rounded((ratio - than) * plain_ms, 1e4);
        let service = measured.service.as_ref().and_then(Outcome::measured);
        Self {
            plain_ms,
            engine_ms: resident.map(|resident| more(resident.ratio_p50, 1.0)),
            crypto_ms: resident
                .zip(smallest)
                .map(|(resident, (_, smallest))| more(smallest.ratio_p50, resident.ratio_p50)),
            crypto_budget: smallest.map(|(entry, _)| entry.budget.to_string()),
            channel_ms: resident
                .zip(service)
                .map(|(resident, service)| more(service.ratio_p50, resident.ratio_p50)),
        }
    }
}

fn rows(measured: &Report) -> Vec<Row> {
    let plain = &measured.plain;
    let mut rows = vec![Row {
        name: "plain ONNX Runtime".to_owned(),
        outcome: RowOutcome::Measured(Box::new(Figures {
            speed: plain.speed,
            ratio_p50: 1.0,
            first_answer_ms: plain.first_answer_ms,
            peak_protected_mib: Some(plain.peak_mib),
            resident_mib: None,
            opened_mib_per_second: None,
            max_abs_diff: 0.0,
        })),
    }];
    let sides = [
        ("opened whole, then plain", &measured.opened_whole),
        ("over the channel, resident", &measured.service),
    ];
    let side = |(name, outcome): (&str, &Option<Outcome<Side>>)| {
        Some(Row {
            name: name.to_owned(),
            outcome: row(outcome.as_ref()?, Figures::of_side),
        })
    };
    rows.extend(side(sides[0]));
    rows.extend(measured.budgets.iter().map(|entry| Row {
        name: format!("Occlude, {}", entry.budget),
        outcome: row(&entry.outcome, Figures::of_budget),
    }));
    rows.extend(side(sides[1]));
    rows
}

fn row<T>(outcome: &Outcome<T>, figures: impl FnOnce(&T) -> Figures) -> RowOutcome {
    match outcome {
        Outcome::Measured(measured) => RowOutcome::Measured(Box::new(figures(measured))),
        Outcome::Refused {
            refused,
            smallest_mib: Some(smallest),
        } => RowOutcome::DoesNotFit {
            smallest_mib: *smallest,
            does_not_fit: refused.clone(),
        },
        Outcome::Refused { refused, .. } => RowOutcome::NotMeasured {
            not_measured: refused.clone(),
        },
    }
}

impl Figures {
    fn of_side(side: &Side) -> Self {
        Self {
            speed: side.speed,
            ratio_p50: side.ratio_p50,
            first_answer_ms: side.first_answer_ms,
            peak_protected_mib: side.peak_protected_mib,
            resident_mib: None,
            opened_mib_per_second: None,
            max_abs_diff: side.max_abs_diff,
        }
    }

    fn of_budget(measured: &Measured) -> Self {
        let occlude = &measured.occlude;
        let opened = occlude.opened_mib_per_run * occlude.speed.per_second;
        Self {
            speed: occlude.speed,
            ratio_p50: measured.ratio_p50,
            first_answer_ms: occlude.first_answer_ms,
            peak_protected_mib: Some(occlude.peak_protected_mib),
            resident_mib: Some(occlude.resident_mib),
            opened_mib_per_second: Some(rounded(opened, 1e3)),
            max_abs_diff: measured.max_abs_diff,
        }
    }
}

/// Both lists are of the same layers, in the same order.
fn split(resident: &[LayerTime], streamed: &[LayerTime]) -> Vec<LayerSplit> {
    let layers = resident.iter().zip(streamed);
    layers
        .map(|(resident, streamed)| LayerSplit {
            name: resident.name.clone(),
            kind: resident.kind.to_string(),
            compute_ms: resident.ms,
            opening_ms: (streamed.ms - resident.ms).max(0.0),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use occlude_engine::{Spill, WeightKind};

    use super::*;
    use crate::bench::{Budget, Occlude, Plain};

    fn speed(p50_ms: f64) -> Speed {
        Speed {
            p50_ms,
            p99_ms: p50_ms,
            min_ms: p50_ms,
            per_second: 1e3 / p50_ms,
            cpu_ms: p50_ms,
        }
    }

    fn budget(budget: Budget, ratio_p50: f64, layer_ms: f64) -> BudgetReport {
        let occlude = Occlude {
            speed: speed(10.0 * ratio_p50),
            wipe_ms: 0.1,
            load_ms: 1.0,
            first_answer_ms: 2.0,
            peak_protected_mib: 20.0,
            weights_mib: 8.0,
            resident_mib: 4.0,
            opened_mib_per_run: 2.0,
            spill_cipher: None,
            read_ms: None,
            read_p50_ms: None,
        };
        let layer = LayerTime {
            name: "<first>".to_owned(),
            kind: WeightKind::Matrix,
            ms: layer_ms,
        };
        BudgetReport {
            budget,
            outcome: Outcome::Measured(Measured {
                occlude,
                ratio_p50,
                ratio_min: ratio_p50,
                max_abs_diff: 1e-6,
                max_abs_output: 1.0,
                layers: vec![layer],
            }),
        }
    }

    fn report(budgets: Vec<BudgetReport>, service: Option<TeeKind>) -> CostReport {
        let side = |ratio_p50: f64| Side {
            speed: speed(10.0 * ratio_p50),
            first_answer_ms: 3.0,
            peak_protected_mib: None,
            ratio_p50,
            ratio_min: ratio_p50,
            max_abs_diff: 0.0,
        };
        let measured = Report {
            model: "<script>alert(1)</script>.onnx".to_owned(),
            threads: NonZeroUsize::MIN,
            batch: 1,
            spill: Spill::SharedMemory,
            plain: Plain {
                speed: speed(10.0),
                load_ms: 1.0,
                first_answer_ms: 2.0,
                peak_mib: 30.0,
            },
            budgets,
            opened_whole: Some(Outcome::Measured(side(1.0))),
            service: Some(match service {
                Some(_) => Outcome::Measured(side(1.5)),
                None => Outcome::Refused {
                    refused: "there is no TEE here to deploy in".to_owned(),
                    smallest_mib: None,
                },
            }),
        };
        CostReport::new(measured, Machine::here(), Tee::new(None, service))
    }

    fn too_small() -> BudgetReport {
        BudgetReport {
            budget: Budget::Bytes(1 << 20),
            outcome: Outcome::Refused {
                refused: "too small".to_owned(),
                smallest_mib: Some(20.0),
            },
        }
    }

    #[test]
    fn the_costs_are_the_differences_of_the_ratios() {
        let budgets = vec![
            budget(Budget::Resident, 1.1, 1.0),
            budget(Budget::Percent(50.0), 1.2, 1.1),
            budget(Budget::Percent(10.0), 1.4, 1.25),
            too_small(),
        ];
        let report = report(budgets, Some(TeeKind::Nitro));
        let costs = &report.costs;
        assert_eq!((costs.engine_ms, costs.crypto_ms), (Some(1.0), Some(3.0)));
        assert_eq!(costs.channel_ms, Some(4.0));
        assert_eq!(costs.crypto_budget.as_deref(), Some("10%"));
        let [layer] = &report.layers[..] else {
            panic!("one layer");
        };
        assert!((layer.compute_ms - 1.0).abs() < 1e-9);
        assert!((layer.opening_ms - 0.25).abs() < 1e-9);
        let parts = costs.parts();
        let said: Vec<String> = parts.iter().map(Part::to_string).collect();
        assert_eq!(
            said,
            [
                "the engine, every weight resident: 1.00 ms (+10 %)",
                "opening streamed weights, 10% of them resident: 3.00 ms (+30 %)",
                "the channel and the server around it: 4.00 ms (+40 %)",
            ]
        );
        // 2 MiB a run, 14 ms each.
        let RowOutcome::Measured(figures) = &report.rows[4].outcome else {
            panic!("measured");
        };
        assert_eq!(figures.opened_mib_per_second, Some(142.857));
    }

    #[test]
    fn a_budget_that_is_too_small_is_no_failure_and_names_the_smallest() {
        let report = report(vec![too_small()], None);
        let said: Vec<Option<String>> = report.rows.iter().map(Row::instead).collect();
        assert_eq!(said[2].as_deref(), Some("does not fit, smallest 20.0 MiB"));
        assert_eq!(
            said[3].as_deref(),
            Some("not measured: there is no TEE here to deploy in")
        );
        let costs = report.costs.parts();
        assert!(costs.iter().all(|part| part.cost == "not measured"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][2]["smallest_mib"], 20.0);
        assert_eq!(json["rows"][0]["p50_ms"], 10.0);
    }

    #[test]
    fn numbers_from_the_simulated_tee_are_called_no_overhead() {
        for (present, service, words) in [
            (
                None,
                Some(TeeKind::Simulated),
                "SIMULATED TEE, which protects nothing and costs nothing: no number here is a TEE's overhead",
            ),
            (
                None,
                Some(TeeKind::Tpm),
                "evidence of tpm, which says what was started: no number here is a TEE's overhead",
            ),
            (None, None, "no number here is a TEE's overhead"),
            (
                Some(TeeKind::Snp),
                Some(TeeKind::Snp),
                "measured inside snp",
            ),
        ] {
            let tee = Tee::new(present, service);
            assert!(tee.meaning.contains(words), "{}", tee.meaning);
        }
    }

    #[test]
    fn the_page_escapes_what_the_model_says_and_names_nothing_outside() {
        let budgets = vec![
            budget(Budget::Resident, 1.0, 1.0),
            budget(Budget::Percent(0.0), 1.1, 1.2),
        ];
        let page = crate::cost::html(&report(budgets, None));
        assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
        assert!(page.contains("&lt;first&gt;"), "{page}");
        assert!(!page.contains("<script"), "{page}");
        // The name space of SVG is no address.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "//", "@import", "url("] {
            assert!(!page.contains(outside), "{outside} in {page}");
        }
        for colour in [
            "var(--ink)",
            "var(--grid)",
            "var(--plain)",
            "var(--occlude)",
        ] {
            assert!(page.contains(colour), "{colour}");
        }
    }
}
