//! What a loaded model keeps in protected memory, what it streams and what that costs.
//!
//! Names of layers are the owner's: they are [`Confidential`], and what is displayed or
//! logged of a plan does not have them.

use std::fmt;

use crate::error::Confidential;

/// What reads a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightKind {
    /// A convolution of ours, which opens its panels itself.
    Convolution,
    /// A matrix product of ours, which opens its panels itself.
    Matrix,
    /// An operator of ONNX Runtime, for which the tensor is opened as a whole.
    Opened,
    /// An operator of ONNX Runtime whose access depends on values, or that is part of a
    /// subgraph: resident whatever the budget is.
    Table,
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Convolution => "convolution",
            Self::Matrix => "matrix",
            Self::Opened => "opened whole",
            Self::Table => "table",
        })
    }
}

/// One weight of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedLayer {
    /// For the owner's eyes.
    pub name: Confidential,
    /// What reads it.
    pub kind: WeightKind,
    /// Bytes, as the model stores it.
    pub bytes: u64,
    /// Bytes in protected memory, as the kernel reads them: panels are padded.
    pub resident: u64,
    /// Bytes that are opened whenever the weight is used, as the kernel reads them.
    pub streamed: u64,
    /// Milliseconds that a run is estimated to take longer because of what is streamed: for
    /// opening it; that a disk may be slower is not in it.
    pub cost_ms: f64,
}

/// What became of a model under its budget of protected memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The budget in bytes, if one was given.
    pub budget: Option<u64>,
    /// Bytes of the process itself that the budget covers; 0 if it was not to.
    pub process: u64,
    /// Requests that run at once.
    pub sessions: u64,
    /// Bytes that one session takes for the largest inputs, intermediate results and
    /// scratch; none if the model was not run while it was loaded.
    pub working: Option<u64>,
    /// How many of them are the longest scratch of one operator: tiles and opened panels.
    pub scratch: Option<u64>,
    /// Bytes that streamed weights are read ahead into, for all sessions together; 0 where
    /// they are read where they lie.
    pub window: u64,
    /// Every weight, those of layers in the order of the graph and tables after them.
    pub layers: Vec<PlannedLayer>,
}

impl Plan {
    /// Bytes of weights in protected memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.layers.iter().map(|layer| layer.resident).sum()
    }

    /// Bytes of weights that are streamed.
    #[must_use]
    pub fn streamed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.streamed).sum()
    }

    /// Milliseconds that a run is estimated to take longer than with all weights resident.
    #[must_use]
    pub fn cost_ms(&self) -> f64 {
        // `sum` of nothing is -0, which would be shown so.
        self.layers
            .iter()
            .fold(0.0, |sum, layer| sum + layer.cost_ms)
    }

    /// Bytes of protected memory in all: the process, the resident weights, the window and
    /// the memory of every session. None if the model was not run while it was loaded.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        let sessions = self.working?.checked_mul(self.sessions)?;
        self.process
            .checked_add(self.resident())?
            .checked_add(self.window)?
            .checked_add(sessions)
    }
}

/// Which weight needs the most of a budget that is too small. Displayed without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetBy {
    /// What reads it.
    pub kind: WeightKind,
    /// Its place in [`Plan::layers`].
    pub index: usize,
    /// For the owner's eyes.
    pub name: Confidential,
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(resident: u64, streamed: u64, cost_ms: f64) -> PlannedLayer {
        PlannedLayer {
            name: Confidential::new("secret"),
            kind: WeightKind::Matrix,
            bytes: resident + streamed,
            resident,
            streamed,
            cost_ms,
        }
    }

    fn plan(layers: Vec<PlannedLayer>) -> Plan {
        Plan {
            budget: None,
            process: 7,
            sessions: 3,
            working: Some(100),
            scratch: Some(10),
            window: 20,
            layers,
        }
    }

    #[test]
    fn totals_are_the_sums_of_layers_and_sessions() {
        let plan = plan(vec![layer(5, 6, 0.5), layer(0, 4, 0.25)]);
        assert_eq!((plan.resident(), plan.streamed()), (5, 10));
        assert_eq!(plan.cost_ms(), 0.75);
        assert_eq!(plan.total(), Some(7 + 5 + 20 + 300));
    }

    #[test]
    fn a_plan_for_a_log_names_no_layer() {
        let set_by = SetBy {
            kind: WeightKind::Convolution,
            index: 17,
            name: Confidential::new("secret"),
        };
        assert_eq!(set_by.to_string(), "convolution 17");
        let shown = format!("{set_by:?} {:?}", plan(vec![layer(1, 2, 3.0)]));
        assert!(!shown.contains("secret"), "{shown}");
        assert_eq!(set_by.name.reveal(), "secret");
    }
}
