//! Budgets of protected memory, as they are written on a command line.

use std::fmt;
use std::str::FromStr;

use occlude_engine::ProtectedMemory;

/// One budget: `resident`, `25%` or `256MiB`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// All weights stay in protected memory.
    Resident,
    /// This many percent of the weights' bytes do, 0 to 100; tables that must be
    /// resident count in.
    Percent(f64),
    /// This many bytes of protected memory in total, the process included.
    Bytes(u64),
}

/// A text that is no budget.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `resident`, a share of the weights such as `50%`, or a size such as `256MiB`")]
pub struct BudgetError;

/// Units, the longest names first: `MiB` must not be read as `B`.
const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl Budget {
    pub(super) fn protected_memory(self) -> ProtectedMemory {
        match self {
            Self::Resident => ProtectedMemory::Resident,
            Self::Percent(percent) => ProtectedMemory::WeightShare(percent / 100.0),
            Self::Bytes(bytes) => ProtectedMemory::Bytes(bytes),
        }
    }
}

impl Budget {
    /// The share of the weights that stays resident, in percent, if it is a share.
    #[must_use]
    pub fn share(self) -> Option<f64> {
        match self {
            Self::Resident => Some(100.0),
            Self::Percent(percent) => Some(percent),
            Self::Bytes(_) => None,
        }
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        if text == "resident" {
            return Ok(Self::Resident);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return percent
                .parse()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(Self::Percent)
                .ok_or(BudgetError);
        }
        let (number, unit) = UNITS
            .iter()
            .find_map(|&(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .ok_or(BudgetError)?;
        let number: u64 = number.trim_end().parse().map_err(|_| BudgetError)?;
        number.checked_mul(unit).map(Self::Bytes).ok_or(BudgetError)
    }
}

impl fmt::Display for Budget {
    /// In a form that [`FromStr`] reads back as the same budget.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Resident => f.write_str("resident"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => {
                let (name, unit) = UNITS[..3]
                    .iter()
                    .rev()
                    .find(|&&(_, unit)| bytes > 0 && bytes.is_multiple_of(unit))
                    .unwrap_or(&UNITS[6]);
                write!(f, "{}{name}", bytes / unit)
            }
        }
    }
}

impl serde::Serialize for Budget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Budget {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_reads_back_as_it_is_written() {
        for (text, budget) in [
            ("resident", Budget::Resident),
            ("0%", Budget::Percent(0.0)),
            ("12.5%", Budget::Percent(12.5)),
            ("100%", Budget::Percent(100.0)),
            ("256MiB", Budget::Bytes(256 << 20)),
            ("3GiB", Budget::Bytes(3 << 30)),
            ("1000B", Budget::Bytes(1000)),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string(), text);
        }
        assert_eq!("2 MB".parse(), Ok(Budget::Bytes(2_000_000)));
    }

    #[test]
    fn what_is_no_budget_is_refused() {
        for text in [
            "",
            "%",
            "-1%",
            "101%",
            "NaN%",
            "64",
            "MiB",
            "-5MiB",
            "1.5MiB",
            "none",
            "99999999999999999999B",
            "99999999999999GiB",
        ] {
            assert_eq!(text.parse::<Budget>(), Err(BudgetError), "{text}");
        }
    }
}
