//! What a kernel needs from the outside: weights and threads.

/// Where a kernel reads its weights.
pub trait Panels: Sync {
    /// Why a panel cannot be read.
    type Error: Send;

    /// Panel `index`, if it lies readable in memory.
    fn resident(&self, index: usize) -> Option<&[f32]>;

    /// Opens panel `index` into `out`, which has its length.
    ///
    /// # Errors
    /// The panel is not authentic or cannot be read; the contents of `out` are then
    /// arbitrary, but nothing of a wrong panel.
    fn open(&self, index: usize, out: &mut [f32]) -> Result<(), Self::Error>;

    /// Where [`Self::open`] would find panel `index`, and how many bytes, where that is in
    /// memory: for asking caches to have it soon, not for reading.
    fn whereabouts(&self, _index: usize) -> Option<(*const u8, usize)> {
        None
    }
}

/// Threads to share work among.
pub trait Parallel {
    /// How many there are, 1 or more.
    fn threads(&self) -> usize;

    /// Calls `work` once for each number below `count`, at most [`Self::threads`] of
    /// them, on as many threads as there are, and returns when all have returned.
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync));
}

/// One thread: the caller's.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Parallel for Alone {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(work);
    }
}

/// What a run needs besides its data.
pub struct Workers<'a, P> {
    /// Where weights come from.
    pub panels: &'a P,
    /// Who computes.
    pub parallel: &'a dyn Parallel,
    /// Memory for opened weights and copies of the input; contents arbitrary.
    pub scratch: &'a mut [f32],
}

impl<P> Workers<'_, P> {
    /// The same workers, for a part of the run.
    pub(crate) fn with(&mut self) -> Workers<'_, P> {
        Workers {
            panels: self.panels,
            parallel: self.parallel,
            scratch: self.scratch,
        }
    }
}
