//! What an owner wants, in the owner's file and sealed with the model.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::{self, Client, TokenError};
use crate::{Budgets, Issuer, Misinformation, Shaping, Telemetry, Watermark, Work};
use occlude_keys::ModelId;

/// Where a sealed model's metadata has it.
pub const METADATA_KEY: &str = "guard";

/// What a model without a guard is said to have.
pub const NO_GUARD: &str = "none";

/// The only version.
const FORMAT: u32 = 1;

/// The longest configuration that is read: some names and numbers.
const MAX_BYTES: usize = 16 * 1024;

/// The defences of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuardConfiguration {
    format: u32,
    /// The output that has the answers, the only one that clients see: probabilities of
    /// classes, where they are changed.
    pub output: String,
    /// Adaptive misinformation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misinformation: Option<Misinformation>,
    /// How much of an answer is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shaping: Option<Shaping>,
    /// What a copy is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<Watermark>,
    /// How many queries are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Budgets>,
    /// What is looked at in each client's queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<Telemetry>,
    /// What answers cost, in work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Who says who a client is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<Issuer>,
}

/// Why a text is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// Longer than any honest one.
    #[error("{found} bytes, a guard has at most {MAX_BYTES}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not TOML or JSON, an unknown field, or a value of the wrong type.
    #[error("{reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// Another version of the format.
    #[error("format {found}, expected {FORMAT}")]
    ForeignFormat {
        /// The version that came.
        found: u32,
    },
    /// A value that means nothing.
    #[error("{field}: found {found}, expected {expected}")]
    Value {
        /// The field, with its section.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it may say.
        expected: &'static str,
    },
    /// It says nothing.
    #[error("it has no defence: add [misinformation], [shaping], [watermark] or [budgets]")]
    Empty,
}

/// The field that says which others there are.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl GuardConfiguration {
    /// Reads what an owner wrote.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigurationError> {
        fn read<T: DeserializeOwned>(text: &str) -> Result<T, ConfigurationError> {
            toml::from_str(text).map_err(|error| {
                let start = error.span().map_or(0, |span| span.start);
                let line = 1 + text[..start].matches('\n').count();
                malformed(format_args!("line {line}: {}", error.message()))
            })
        }
        Self::checked(text, read, read)
    }

    /// Reads what was sealed.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn from_json(text: &str) -> Result<Self, ConfigurationError> {
        fn read<T: DeserializeOwned>(text: &str) -> Result<T, ConfigurationError> {
            serde_json::from_str(text).map_err(malformed)
        }
        Self::checked(text, read, read)
    }

    /// What is sealed.
    ///
    /// # Panics
    /// Never: all it holds has a form in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a guard has a JSON form")
    }

    /// Its defences by name, as statements and metadata tell them:
    /// `misinformation+shaping+watermark+budgets+telemetry+work`.
    #[must_use]
    pub fn name(&self) -> String {
        let names = [
            self.misinformation.as_ref().map(|_| "misinformation"),
            self.shaping.as_ref().map(|_| "shaping"),
            self.watermark.map(|_| "watermark"),
            self.budgets.map(|_| "budgets"),
            self.telemetry.map(|_| "telemetry"),
            self.work.map(|_| "work"),
        ];
        names.into_iter().flatten().collect::<Vec<_>>().join("+")
    }

    /// Whether answers may be others than the model's.
    #[must_use]
    pub fn changes_answers(&self) -> bool {
        self.misinformation.is_some() || self.shaping.is_some() || self.watermark.is_some()
    }

    /// Whether it goes by how certain the model is, besides changing answers by it.
    pub(crate) fn looks_at_answers(&self) -> bool {
        self.telemetry.is_some() || self.work.is_some()
    }

    /// Whether whoever asks has to say who they are, with a token.
    #[must_use]
    pub fn asks_for_tokens(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// Whom a token of one of the issuers names. `now` is the time in seconds since 1970, by
    /// a clock that is not the operator's.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn identify(&self, token: &str, model: &ModelId, now: u64) -> Result<Client, TokenError> {
        identity::identify(&self.issuers, token, model, now)
    }

    fn checked(
        text: &str,
        format: fn(&str) -> Result<Format, ConfigurationError>,
        read: fn(&str) -> Result<Self, ConfigurationError>,
    ) -> Result<Self, ConfigurationError> {
        if text.len() > MAX_BYTES {
            return Err(ConfigurationError::TooLong { found: text.len() });
        }
        // Another format may well have other fields.
        let Format { format: found } = format(text)?;
        if found != FORMAT {
            return Err(ConfigurationError::ForeignFormat { found });
        }
        let configuration = read(text)?;
        configuration.check()?;
        Ok(configuration)
    }

    fn check(&self) -> Result<(), ConfigurationError> {
        check_name("output", &self.output)?;
        if let Some(misinformation) = &self.misinformation {
            misinformation.check()?;
            if misinformation.output == self.output {
                return Err(ConfigurationError::Value {
                    field: "misinformation.output",
                    found: format!("{:?}", misinformation.output),
                    expected: "another output than the answers'",
                });
            }
        }
        if let Some(shaping) = &self.shaping {
            shaping.check()?;
        }
        if let Some(watermark) = self.watermark {
            watermark.check()?;
        }
        if let Some(budgets) = &self.budgets {
            budgets.check()?;
        }
        if !self.changes_answers() && self.budgets.is_none() {
            return Err(ConfigurationError::Empty);
        }
        self.check_issuers()?;
        self.check_telemetry()?;
        self.check_work()
    }

    /// What a client has learned is known where it is counted, window by window.
    fn check_work(&self) -> Result<(), ConfigurationError> {
        let Some(work) = self.work else {
            return Ok(());
        };
        let client = self.budgets.and_then(|budgets| budgets.client);
        if client.is_none_or(|budget| budget.window.is_none()) {
            return Err(ConfigurationError::value(
                "work",
                "no budgets.client.window",
                "one, however large: what a client learns is counted in it",
            ));
        }
        work.check()
    }

    /// Whose queries they are is known where clients are counted, and whoever counts them is
    /// whom the owner hears it from.
    fn check_telemetry(&self) -> Result<(), ConfigurationError> {
        let Some(telemetry) = self.telemetry else {
            return Ok(());
        };
        if !self.asks_for_tokens() {
            return Err(ConfigurationError::value(
                "telemetry",
                "no budgets.client",
                "one, however large: clients are looked at where they are counted",
            ));
        }
        telemetry.check()
    }

    /// Clients are counted by the names that issuers give them, and for nothing else.
    fn check_issuers(&self) -> Result<(), ConfigurationError> {
        let counted = self.budgets.is_some_and(|budgets| budgets.client.is_some());
        let wrong = |found: &str, expected| ConfigurationError::Value {
            field: "issuers",
            found: found.to_owned(),
            expected,
        };
        match (self.issuers.is_empty(), counted) {
            (true, true) => Err(wrong(
                "none",
                "one or more: budgets.client needs to know who asks",
            )),
            (false, false) => Err(wrong(
                "some",
                "none without budgets.client, which they are for",
            )),
            _ => self.issuers.iter().try_for_each(Issuer::check),
        }
    }
}

impl ConfigurationError {
    /// A field has a value that means nothing.
    pub(crate) fn value(
        field: &'static str,
        found: impl std::fmt::Display,
        expected: &'static str,
    ) -> Self {
        Self::Value {
            field,
            found: found.to_string(),
            expected,
        }
    }
}

fn malformed(reason: impl std::fmt::Display) -> ConfigurationError {
    let reason = reason.to_string().chars().take(200).collect();
    ConfigurationError::Malformed { reason }
}

pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigurationError> {
    if name.is_empty() {
        return Err(ConfigurationError::Value {
            field,
            found: "nothing".to_owned(),
            expected: "the name of an output of the model",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = r#"
        format = 1
        output = "probabilities"

        [misinformation]
        output = "misinformation"
        tau = 0.5

        [shaping]
        top = 3
        decimals = 2

        [watermark]
        one-in = 200

        [budgets]
        window-seconds = 3600
        client = { window = 100, total = 5000 }
        model = { window = 1000 }

        [telemetry]
        queries = 500
        uncertain = { below = 0.5, share = 0.25 }
        distances = { normality = 0.9 }
        throttle-seconds = 600

        [work]
        bits = 16
        gain = 5.0
        most-bits = 30

        [[issuers]]
        name = "https://issuer.example"
        key = """
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
    "#;

    #[test]
    fn what_an_owner_wrote_is_sealed_and_read_back() {
        let configuration = GuardConfiguration::from_toml(WHOLE).unwrap();
        assert_eq!(
            configuration.name(),
            "misinformation+shaping+watermark+budgets+telemetry+work"
        );
        assert_eq!(configuration.misinformation.as_ref().unwrap().nu, 1000.0);
        let sealed = configuration.to_json();
        assert_eq!(
            sealed,
            r#"{"format":1,"output":"probabilities","misinformation":{"output":"misinformation","tau":0.5,"nu":1000.0},"shaping":{"top":3,"decimals":2},"watermark":{"one-in":200},"budgets":{"window-seconds":3600,"client":{"window":100,"total":5000},"model":{"window":1000}},"telemetry":{"queries":500,"uncertain":{"below":0.5,"share":0.25},"distances":{"normality":0.9},"throttle-seconds":600},"work":{"bits":16,"gain":5.0,"most-bits":30},"issuers":[{"name":"https://issuer.example","key":"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"}]}"#
        );
        assert_eq!(GuardConfiguration::from_json(&sealed), Ok(configuration));
    }

    #[test]
    fn each_malformation_is_told() {
        let refused = |from: &str, to: &str| {
            assert!(WHOLE.contains(from), "{from}");
            let text = WHOLE.replace(from, to);
            GuardConfiguration::from_toml(&text)
                .unwrap_err()
                .to_string()
        };
        for (from, to, expected) in [
            ("format = 1", "format = 2", "format 2, expected 1"),
            ("format = 1", "", "line 1: missing field `format`"),
            (
                "top = 3",
                "bottom = 3",
                "line 10: unknown field `bottom`, expected one of `top`, `decimals`, `label-only`",
            ),
            (
                "tau = 0.5",
                "tau = 1.5",
                "misinformation.tau: found 1.5, expected a probability from 0 to 1",
            ),
            (
                "tau = 0.5",
                "tau = nan",
                "misinformation.tau: found NaN, expected a probability from 0 to 1",
            ),
            (
                "tau = 0.5",
                "tau = 0.5\nnu = 0",
                "misinformation.nu: found 0, expected a number above 0, up to 1000000",
            ),
            (
                "tau = 0.5",
                "tau = 0.5\nnu = inf",
                "misinformation.nu: found inf, expected a number above 0, up to 1000000",
            ),
            (
                "output = \"misinformation\"",
                "output = \"probabilities\"",
                "misinformation.output: found \"probabilities\", expected another output than the \
                 answers'",
            ),
            (
                "output = \"misinformation\"",
                "output = \"\"",
                "misinformation.output: found nothing, expected the name of an output of the model",
            ),
            (
                "output = \"probabilities\"",
                "output = \"\"",
                "output: found nothing, expected the name of an output of the model",
            ),
            (
                "top = 3",
                "top = 0",
                "shaping.top: found 0, expected 1 or more",
            ),
            (
                "decimals = 2",
                "decimals = 10",
                "shaping.decimals: found 10, expected 0 to 9",
            ),
            (
                "decimals = 2",
                "label-only = true",
                "shaping.label-only: found true with top or decimals, expected it alone: a label has \
                 neither",
            ),
            (
                "one-in = 200",
                "one-in = 9",
                "watermark.one-in: found 9, expected 10 to 1000000",
            ),
            (
                "window-seconds = 3600",
                "window-seconds = 0",
                "budgets.window-seconds: found 0, expected 1 to 31536000, a year",
            ),
            (
                "window-seconds = 3600",
                "window-seconds = 31536001",
                "budgets.window-seconds: found 31536001, expected 1 to 31536000, a year",
            ),
            (
                "window-seconds = 3600",
                "",
                "line 16: missing field `window-seconds`",
            ),
            (
                "model = { window = 1000 }",
                "model = {}",
                "budgets.model: found nothing, expected window, total or both, each 1 or more",
            ),
            (
                "total = 5000",
                "total = 0",
                "budgets.client: found 0, expected window, total or both, each 1 or more",
            ),
            (
                "client = { window = 100, total = 5000 }",
                "",
                "issuers: found some, expected none without budgets.client, which they are for",
            ),
            (
                "queries = 500",
                "queries = 99",
                "telemetry.queries: found 99, expected 100 to 1000",
            ),
            (
                "queries = 500",
                "queries = 1001",
                "telemetry.queries: found 1001, expected 100 to 1000",
            ),
            (
                "below = 0.5",
                "below = 0.0",
                "telemetry.uncertain.below: found 0, expected a number above 0, to 1",
            ),
            (
                "below = 0.5",
                "below = nan",
                "telemetry.uncertain.below: found NaN, expected a number above 0, to 1",
            ),
            (
                "share = 0.25",
                "share = 1.0",
                "telemetry.uncertain.share: found 1, expected a share from 0 to below 1",
            ),
            (
                "normality = 0.9",
                "normality = 1.0",
                "telemetry.distances.normality: found 1, expected a number between 0 and 1",
            ),
            (
                "throttle-seconds = 600",
                "throttle-seconds = 0",
                "telemetry.throttle-seconds: found 0, expected 1 to 2592000, thirty days",
            ),
            (
                "uncertain = { below = 0.5, share = 0.25 }\n        distances = { normality = 0.9 }",
                "",
                "telemetry: found nothing to look at, expected telemetry.uncertain, \
                 telemetry.distances or both",
            ),
            (
                "bits = 16",
                "bits = 0",
                "work.bits: found 0, expected 1 to 40",
            ),
            (
                "bits = 16",
                "bits = 41",
                "work.bits: found 41, expected 1 to 40",
            ),
            (
                "most-bits = 30",
                "most-bits = 15",
                "work.most-bits: found 15, expected work.bits to 40",
            ),
            (
                "most-bits = 30",
                "most-bits = 41",
                "work.most-bits: found 41, expected work.bits to 40",
            ),
            (
                "gain = 5.0",
                "gain = 0.5",
                "work.gain: found 0.5, expected a number from 1 to 1000000",
            ),
            (
                "gain = 5.0",
                "gain = nan",
                "work.gain: found NaN, expected a number from 1 to 1000000",
            ),
            (
                "client = { window = 100, total = 5000 }",
                "client = { total = 5000 }",
                "work: found no budgets.client.window, expected one, however large: what a client \
                 learns is counted in it",
            ),
            (
                "name = \"https://issuer.example\"",
                "name = \"\"",
                "issuers.name: found 0 bytes, expected 1 to 256 bytes",
            ),
        ] {
            assert_eq!(refused(from, to), expected);
        }
        let only = |sections: &str| {
            let text = format!("format = 1\noutput = \"p\"\n{sections}");
            GuardConfiguration::from_toml(&text).unwrap_err()
        };
        assert_eq!(only(""), ConfigurationError::Empty);
        assert_eq!(
            only("[shaping]").to_string(),
            "shaping: found nothing, expected top, decimals or label-only"
        );
        assert_eq!(
            only("[budgets]\nwindow-seconds = 1").to_string(),
            "budgets: found no limit, expected budgets.client, budgets.model or both"
        );
        assert_eq!(
            only("[budgets]\nwindow-seconds = 1\nclient = { total = 1 }").to_string(),
            "issuers: found none, expected one or more: budgets.client needs to know who asks"
        );
        assert_eq!(
            only(
                "[budgets]\nwindow-seconds = 1\nmodel = { total = 1 }\n[telemetry]\nqueries = 100\n\
                 distances = { normality = 0.9 }"
            )
            .to_string(),
            "telemetry: found no budgets.client, expected one, however large: clients are looked at \
             where they are counted"
        );
        let key = refused("MCowBQYDK2Vw", "MCowBQYDK2Vx");
        assert!(key.contains("not an issuer's public key"), "{key}");
        let long = " ".repeat(MAX_BYTES + 1);
        assert_eq!(
            GuardConfiguration::from_json(&long),
            Err(ConfigurationError::TooLong {
                found: MAX_BYTES + 1
            })
        );
        let sealed = GuardConfiguration::from_toml(WHOLE).unwrap().to_json();
        let more = sealed.replace("\"format\":1", "\"format\":1,\"more\":1");
        assert!(matches!(
            GuardConfiguration::from_json(&more),
            Err(ConfigurationError::Malformed { reason }) if reason.starts_with("unknown field `more`")
        ));
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,80}", place in 0..200_usize, cut in any::<bool>()) {
            let sealed = GuardConfiguration::from_toml(WHOLE).unwrap().to_json();
            for whole in [WHOLE, sealed.as_str()] {
                let place = place.min(whole.len());
                let rest = if cut { "" } else { &whole[place..] };
                let damaged = [&whole[..place], &text, rest].concat();
                let _ = GuardConfiguration::from_toml(&damaged);
                let _ = GuardConfiguration::from_json(&damaged);
            }
        }
    }
}
