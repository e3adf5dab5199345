//! Defences against copying a model by asking it.
//!
//! A TEE keeps the file; whoever may ask still gets the model an answer at a time. The
//! defences here make that dearer. **None of them prevents it.**
//!
//! 1. An owner writes down what it wants ([`GuardConfiguration::from_toml`]) and seals it
//!    with the model, as metadata that is encrypted and authenticated like a weight. So the
//!    operator can neither read it nor turn it off.
//! 2. The server reads it back ([`GuardConfiguration::from_json`]), sees whether the model
//!    has what it names ([`Guard::new`]), and shows clients one output alone.
//! 3. Whoever asks shows a token ([`GuardConfiguration::identify`]), where clients are counted, and pays
//!    for each row of an answer ([`Guard::rows`]) from its budget, which the server keeps, and
//!    in work ([`Guard::price`]).
//! 4. Each answer goes through [`Guard::apply`]: first misinformation, then the watermark,
//!    then shaping.
//!
//! Clients are hostile: every input is theirs, so no number that comes out of a model is
//! taken for a probability before it was looked at. What cannot be guarded is not answered.
//!
//! Nothing here counts: what is left of a budget and what a client has learned is the broker's
//! to say, and whether a client's queries are unusual is looked at in `occlude-usage`.

#![forbid(unsafe_code)]

mod answer;
mod budgets;
mod configuration;
mod identity;
mod misinformation;
mod shaping;
mod telemetry;
mod watermark;
mod work;

pub use answer::{AnswerError, Guard, Look, MismatchError};
pub use budgets::{Budgets, QueryBudget};
pub use configuration::{ConfigurationError, GuardConfiguration, METADATA_KEY, NO_GUARD};
pub use identity::{Claims, Client, Issuer, TokenError, issue};
pub use misinformation::Misinformation;
pub use shaping::Shaping;
pub use telemetry::{Distances, Telemetry, Uncertain};
pub use watermark::{Marks, Watermark, examples};
pub use work::{GAIN_OF_ANSWER, Price, Work, gain};
