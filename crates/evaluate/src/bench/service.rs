//! What answers elsewhere: a service, over its channel.

use std::time::Duration;

use occlude_inference_protocol::Tensor;

/// A service that answers for the same model, asked one request at a time.
pub trait Service {
    /// How long it took from its start to its first answer.
    fn first_answer(&self) -> Duration;

    /// One answer.
    ///
    /// # Errors
    /// A sentence for people.
    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String>;

    /// Processor time of its processes so far, this one left out; none if that cannot be
    /// seen.
    fn cpu_time(&self) -> Option<Duration>;
}
