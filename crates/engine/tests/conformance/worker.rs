//! The child process: judges the tests that it is told to, one after another. It
//! says what it is about to do before it does it, so that its parent can name
//! what killed it.

use std::any::Any;
use std::io::{BufRead, Write};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use occlude_engine::LoadError;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::comparison::difference;
use crate::node_test::NodeTest;
use crate::sealed::{self, Facts, NoAnswer};
use crate::served::{Served, possible_constants, serve};
use crate::{plain, support};

/// A test to judge.
#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) name: String,
    /// Sets of constants with which plain ONNX Runtime killed an earlier child.
    pub(crate) deadly: Vec<Vec<usize>>,
}

/// What the child says, a line of JSON each.
#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// Plain ONNX Runtime comes next, with these inputs as constants.
    Plain { constants: Vec<usize> },
    /// Occlude comes next. If that kills the child, the test is known by this.
    Sealed(Passed),
    /// The test is done.
    Verdict(Verdict),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// Plain ONNX Runtime does not give the expected outputs.
    PlainFails { why: String },
    /// It does, and so does Occlude or not.
    PlainPasses(Passed, Sealed),
}

/// A test that plain ONNX Runtime passes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// How many inputs became initializers.
    pub(crate) constants: usize,
    /// Whether nodes carry its inputs and outputs over the protocol.
    pub(crate) is_adapted: bool,
    /// Whether it passes without any initializer too.
    pub(crate) without_constants: bool,
}

/// What became of the sealed model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Sealed {
    Same(Facts),
    Different {
        why: String,
    },
    /// Occlude says beforehand that it does not serve such a model.
    Refused {
        why: String,
    },
}

/// Answers requests from standard input until it ends.
pub(crate) fn work(tests: &Path) -> Outcome<()> {
    support::runtime();
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let verdict = match NodeTest::read(&tests.join(&request.name)) {
            Ok(test) => judge(&test, &request)?,
            Err(error) => return Err(format!("{}: {error}", request.name).into()),
        };
        say(&Message::Verdict(verdict))?;
    }
    Ok(())
}

fn say(message: &Message) -> Outcome<()> {
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, message)?;
    output.write_all(b"\n")?;
    Ok(output.flush()?)
}

fn judge(test: &NodeTest, request: &Request) -> Outcome<Verdict> {
    let trial = Trial { test, request };
    let without = trial.plain(&[])?;
    let without_constants = without.is_ok();
    let (constants, plain) = match trial.with_constants()? {
        Some(converted) => converted,
        None => match without {
            Ok(plain) => (Vec::new(), plain),
            Err(why) => return Ok(Verdict::PlainFails { why }),
        },
    };
    let Served {
        model,
        inputs,
        is_adapted,
        ..
    } = serve(test, &constants)?;
    let passed = Passed {
        constants: constants.len(),
        is_adapted,
        without_constants,
    };
    say(&Message::Sealed(passed))?;
    let sealed = std::panic::catch_unwind(AssertUnwindSafe(|| sealed::run(&model, inputs)));
    Ok(Verdict::PlainPasses(
        passed,
        match sealed {
            Ok(Ok((answers, facts))) => match difference(&answers, &plain, test.tolerance) {
                None => Sealed::Same(facts),
                Some(why) => Sealed::Different { why },
            },
            Ok(Err(error)) if is_refusal(&error) => Sealed::Refused {
                why: error.to_string(),
            },
            Ok(Err(error)) => Sealed::Different {
                why: error.to_string(),
            },
            Err(panic) => Sealed::Different {
                why: format!("it panics: {}", panic_message(&*panic)),
            },
        },
    ))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// Documented limits; any other error is a fault.
fn is_refusal(error: &NoAnswer) -> bool {
    matches!(
        error,
        NoAnswer::Seal(_)
            | NoAnswer::Load(LoadError::Interface { .. } | LoadError::WeightType { .. })
    )
}

/// Plain ONNX Runtime on one test.
struct Trial<'a> {
    test: &'a NodeTest,
    request: &'a Request,
}

type Outputs = Vec<occlude_inference_protocol::Tensor>;

impl Trial<'_> {
    /// The outputs where they are those expected, or why not.
    fn plain(&self, constants: &[usize]) -> Outcome<Result<Outputs, String>> {
        if self.request.deadly.iter().any(|deadly| deadly == constants) {
            return Ok(Err("ONNX Runtime kills the process".to_owned()));
        }
        let served = match serve(self.test, constants) {
            Ok(served) => served,
            Err(error) => return Ok(Err(error.to_string())),
        };
        say(&Message::Plain {
            constants: constants.to_vec(),
        })?;
        Ok(match plain::run(&served.model, &served.inputs) {
            Ok(outputs) => match difference(&outputs, &served.expected, self.test.tolerance) {
                None => Ok(outputs),
                Some(why) => Err(why),
            },
            Err(error) => Err(error.to_string()),
        })
    }

    /// All possible constants if plain ONNX Runtime passes with them; else each one
    /// with which it still does; `None` if there is no such.
    fn with_constants(&self) -> Outcome<Option<(Vec<usize>, Outputs)>> {
        let possible = possible_constants(self.test);
        if possible.is_empty() {
            return Ok(None);
        }
        if let Ok(outputs) = self.plain(&possible)? {
            return Ok(Some((possible, outputs)));
        }
        let mut kept: Option<(Vec<usize>, Outputs)> = None;
        for constant in possible {
            let mut constants = kept.as_ref().map_or(Vec::new(), |(kept, _)| kept.clone());
            constants.push(constant);
            if let Ok(outputs) = self.plain(&constants)? {
                kept = Some((constants, outputs));
            }
        }
        Ok(kept)
    }
}
