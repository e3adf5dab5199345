//! Protections that can be left out on purpose, one at a time.
//!
//! A check that attacks a deployment says little unless it can fail. So each protection
//! that `occlude evaluate protection` attacks has a switch here, and each check is run once
//! more with its protection off, and has to notice.
//!
//! Without the feature `switches`, which `make release` does not have, nothing can be
//! switched: [`is`] is always false, and the compiler takes away what it guards. With it, a
//! process that was weakened says so: the simulated TEE's evidence says that it is being
//! debugged, and no hardware is asked for any. A process that was not weakened refuses such
//! evidence, whatever its policy says.

#![forbid(unsafe_code)]

/// The environment variable that names what a process leaves out.
#[cfg(feature = "switches")]
const VARIABLE: &str = "OCCLUDE_WEAKENING";

macro_rules! weakenings {
    ($($(#[$documentation:meta])* $variant:ident = $name:literal,)*) => {
        /// What can be left out.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Weakening {
            $($(#[$documentation])* $variant,)*
        }

        impl Weakening {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What it is called, on the command line and in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

weakenings! {
    /// A policy accepts what any program measures.
    AnyMeasurement = "any-measurement",
    /// A policy accepts services of any owner.
    AnyOwner = "any-owner",
    /// A policy accepts older versions of a model, and a broker withdraws none.
    AnyVersion = "any-version",
    /// A policy accepts a model whatever its container's digest is.
    AnyDigest = "any-digest",
    /// A policy accepts every security configuration.
    AnyConfiguration = "any-configuration",
    /// Evidence is accepted whatever it is bound to.
    UnboundEvidence = "unbound-evidence",
    /// Clients ask, and servers answer, outside the channel.
    PlainChannel = "plain-channel",
    /// Messages are not padded.
    NoPadding = "no-padding",
    /// Encapsulated requests are not remembered.
    NoReplayMemory = "no-replay-memory",
    /// Containers are read whoever signed them.
    AnySignature = "any-signature",
    /// Chunks of containers are read although they are not authentic.
    AnyChunk = "any-chunk",
    /// Streamed weights are used although they are not authentic.
    AnyPanel = "any-panel",
    /// What is streamed from a file lies there in the clear.
    ClearPanels = "clear-panels",
    /// A server reads more for some inputs.
    InputReads = "input-reads",
    /// A server reserves memory for what a client announces.
    DeclaredMemory = "declared-memory",
    /// A proxy takes any token, and none.
    AnyToken = "any-token",
    /// A server passes over what its operator mirrors.
    NoMirror = "no-mirror",
    /// A broker follows orders whoever signed them.
    AnyOrder = "any-order",
    /// A broker's log is taken as it is.
    AnyLog = "any-log",
    /// A broker follows a policy that is not the last one that its log names.
    AnyPolicy = "any-policy",
    /// A server takes requests of any length.
    NoLimits = "no-limits",
    /// A server ends at a request that it cannot open.
    Fragile = "fragile",
    /// A process can be dumped and swapped out.
    NoHardening = "no-hardening",
    /// A server keeps what it was asked.
    KeptRequests = "kept-requests",
    /// A server leaves a copy of the opened graph in its temporary folder.
    TemporaryCopy = "temporary-copy",
    /// A server logs what it was asked.
    LoggedRequests = "logged-requests",
    /// A server answers sooner or later by what it was asked.
    EarlyAnswers = "early-answers",
    /// A server does not count queries.
    UncountedQueries = "uncounted-queries",
    /// A server answers whether a client worked for it or not.
    UnworkedAnswers = "unworked-answers",
    /// External data of a model may lie anywhere.
    AnyPath = "any-path",
    /// A model's graphs may be nested without end.
    AnyNesting = "any-nesting",
}

impl std::fmt::Display for Weakening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no weakening's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("OCCLUDE_WEAKENING={found}: no such weakening")]
pub struct UnknownWeakening {
    /// The name.
    pub found: String,
}

/// Whether this build can be weakened.
pub const POSSIBLE: bool = cfg!(feature = "switches");

/// Puts what the environment names into force, for the whole life of the process. To be
/// called first in `main`.
///
/// # Errors
/// [`UnknownWeakening`].
#[cfg(feature = "switches")]
pub fn start() -> Result<Option<Weakening>, UnknownWeakening> {
    let Ok(found) = std::env::var(VARIABLE) else {
        return Ok(None);
    };
    let named = Weakening::ALL
        .iter()
        .find(|weakening| weakening.name() == found);
    let weakening = *named.ok_or(UnknownWeakening { found })?;
    // Whoever calls twice gets what was read first.
    let _ = ACTIVE.set(weakening);
    Ok(Some(weakening))
}

/// Nothing can be weakened in this build.
///
/// # Errors
/// None.
#[cfg(not(feature = "switches"))]
pub const fn start() -> Result<Option<Weakening>, UnknownWeakening> {
    Ok(None)
}

/// How a child process is weakened, if it can be: the environment variable and its value.
#[must_use]
pub const fn of_child(weakening: Weakening) -> Option<(&'static str, &'static str)> {
    #[cfg(feature = "switches")]
    return Some((VARIABLE, weakening.name()));
    #[cfg(not(feature = "switches"))]
    {
        let _ = weakening;
        None
    }
}

#[cfg(feature = "switches")]
static ACTIVE: std::sync::OnceLock<Weakening> = std::sync::OnceLock::new();

/// Whether this protection was left out of this process.
#[cfg(feature = "switches")]
#[must_use]
pub fn is(weakening: Weakening) -> bool {
    ACTIVE.get() == Some(&weakening)
}

/// No protection was left out.
#[cfg(not(feature = "switches"))]
#[must_use]
pub const fn is(_: Weakening) -> bool {
    false
}

/// Whether any protection was left out of this process.
#[cfg(feature = "switches")]
#[must_use]
pub fn any() -> bool {
    ACTIVE.get().is_some()
}

/// No protection was left out.
#[cfg(not(feature = "switches"))]
#[must_use]
pub const fn any() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_unless_somebody_says_so() {
        assert!(!any());
        assert!(!Weakening::ALL.iter().any(|weakening| is(*weakening)));
    }

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> =
            Weakening::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), Weakening::ALL.len());
    }
}
