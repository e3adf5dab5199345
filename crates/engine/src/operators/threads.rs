//! ONNX Runtime's own thread pool, as the kernels use it: no second pool competes for
//! the cores.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use occlude_kernels::Parallel;
use ort::operator::ComputeContext;

pub(super) struct Threads<'a> {
    pub(super) context: &'a ComputeContext,
    pub(super) count: usize,
}

impl Parallel for Threads<'_> {
    fn threads(&self) -> usize {
        self.count
    }

    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.count <= 1 {
            (0..count).for_each(work);
            return;
        }
        let panicked: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let guarded = |index: usize| {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(index))) {
                panicked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(panic);
            }
        };
        let outcome = self.context.par_for(count, count, guarded);
        if let Some(panic) = panicked
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            resume_unwind(panic);
        }
        if outcome.is_err() {
            // Nothing was started: ONNX Runtime only refuses a call that it cannot
            // begin.
            (0..count).for_each(work);
        }
    }
}
