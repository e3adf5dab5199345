//! What is compared with plain ONNX Runtime besides Occlude's budgets: the sealed model
//! opened as a whole, and a service over its channel.

use std::time::{Duration, Instant};

use occlude_inference_protocol::Tensor;

use super::comparison::Difference;
use super::plain::PlainModel;
use super::report::{self, Side, Speed};
use super::sealed::SealedModel;
use super::service::Service;
use super::turns::{self, CpuTime, Times};
use super::{Compared, Stage, Stop};

/// The name of the first in what is said to people.
pub(super) const OPENED_WHOLE: &str = "opened whole";

/// That of the second.
pub(super) const SERVICE: &str = "the service";

/// How long a run took, and its answer if it is to be compared.
type Run = (Duration, Option<Vec<Tensor>>);

impl Compared<'_> {
    /// What somebody does who has a key and a TEE and no engine: opens the whole model in
    /// memory, then gives it to ONNX Runtime. `peak` in bytes.
    pub(super) fn opened_whole(
        &mut self,
        sealed: &SealedModel,
        peak: u64,
        progress: &mut dyn FnMut(Stage<'_>),
    ) -> Result<(Side, Times), Stop> {
        progress(Stage::Loading { what: OPENED_WHOLE });
        let start = Instant::now();
        let bytes = sealed.open()?.unsealed();
        let bytes = bytes.map_err(|error| Stop::refused(error.to_string()))?;
        let mut model = PlainModel::load_bytes(self.runtime, start, &bytes)?;
        drop(bytes);
        model.feed(self.inputs)?;
        let mut difference = Difference::default();
        let answer = model.answer()?;
        let first_answer = start.elapsed();
        difference
            .add(&answer, self.expected)
            .map_err(Stop::refused)?;
        let (plain_times, times) = self.in_turns(
            OPENED_WHOLE,
            &mut |_| Ok((model.run()?, None)),
            &mut difference,
            progress,
        )?;
        let speed = Speed::new(&times, model.cpu_time());
        let mut side = side(speed, (&times, &plain_times), first_answer, difference);
        side.peak_protected_mib = Some(report::mebibytes(peak as f64));
        Ok((side, plain_times))
    }

    /// A service that is there already.
    pub(super) fn service(
        &mut self,
        service: &mut dyn Service,
        progress: &mut dyn FnMut(Stage<'_>),
    ) -> Result<(Side, Times), Stop> {
        let inputs: &[Tensor] = self.inputs;
        let before = service.cpu_time();
        let mut cpu = CpuTime::default();
        let mut difference = Difference::default();
        let (plain_times, times) = self.in_turns(
            SERVICE,
            &mut |last| {
                let (answer, elapsed) = cpu.time(|| service.infer(inputs));
                let answer = answer.map_err(Stop::refused)?;
                Ok((elapsed, last.then_some(answer)))
            },
            &mut difference,
            progress,
        )?;
        if let (Some(before), Some(after)) = (before, service.cpu_time()) {
            cpu.add_elsewhere(after.saturating_sub(before));
        }
        let speed = Speed::new(&times, cpu.of_one());
        let first_answer = service.first_answer();
        let side = side(speed, (&times, &plain_times), first_answer, difference);
        Ok((side, plain_times))
    }

    /// Times of plain ONNX Runtime and of `run`, which hears whether it is a turn's last run.
    fn in_turns(
        &mut self,
        what: &str,
        run: &mut dyn FnMut(bool) -> Result<Run, Stop>,
        difference: &mut Difference,
        progress: &mut dyn FnMut(Stage<'_>),
    ) -> Result<(Times, Times), Stop> {
        let (plain, expected) = (&mut *self.plain, self.expected);
        turns::take::<Stop>(
            self.options.runs,
            &mut || Ok(plain.run()?),
            &mut |last| {
                let (elapsed, answer) = run(last)?;
                if let Some(answer) = answer {
                    difference.add(&answer, expected).map_err(Stop::refused)?;
                }
                Ok(elapsed)
            },
            &mut |done, total| progress(Stage::Running { what, done, total }),
        )
    }
}

fn side(
    speed: Speed,
    (times, plain_times): (&Times, &Times),
    first_answer: Duration,
    difference: Difference,
) -> Side {
    Side {
        speed,
        first_answer_ms: report::milliseconds(first_answer),
        peak_protected_mib: None,
        ratio_p50: report::ratio(times.median(), plain_times.median()),
        ratio_min: report::ratio(times.minimum(), plain_times.minimum()),
        max_abs_diff: difference.largest,
    }
}
