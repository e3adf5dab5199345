//! The memory of one session: everything that ONNX Runtime and our operators
//! allocate for a request, counted, limited and wiped.
//!
//! Against software beside us and whoever reads memory later, the next request
//! included: this memory is left out of core dumps, locked where the operating
//! system allows it, and what a request left in it is zeroed by
//! [`Allocator::wipe_idle`] before the session serves another one, and before any of
//! it returns to the kernel. Within one run freed memory is reused as it is.
//!
//! An environment of ONNX Runtime has one allocator for the processor's memory, and a
//! session keeps the one that was registered when it was created. So that sessions
//! neither count nor wipe each other's memory, each has an allocator of its own:
//! [`Allocator::lend_to_session`] registers it just while that session is created.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::mem::transmute;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::sys::{OrtAllocator, OrtEnv, OrtMemoryInfo};

use heap::{Heap, Purpose};
pub(crate) use heap::{Level, Refusal};

mod exception;
mod heap;
mod region;

/// The first version of `OrtAllocator` that has `Reserve`, the last member that we
/// provide: ONNX Runtime does not read the ones behind it.
const VERSION: u32 = 18;

/// Memory for one session, shared with ONNX Runtime as an `OrtAllocator`.
#[repr(C)]
pub(crate) struct Allocator {
    /// First, so that a pointer to it is one to the whole.
    interface: OrtAllocator,
    info: MemoryInfo<'static>,
    state: Mutex<State>,
}

struct State {
    heap: Heap,
    blocks: usize,
    refusal: Option<Refusal>,
    /// The layer whose operator ran last.
    running: Option<usize>,
    /// What `running` was when the most bytes were in use.
    fullest_at: Option<usize>,
    /// The longest scratch, in bytes.
    scratch: usize,
    /// Every layer that ran and how many points it passed over, while that is recorded.
    record: Option<Vec<(usize, u64)>>,
}

/// What a session took, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Bytes taken from the kernel, at their highest.
    pub(crate) held: usize,
    /// Bytes of the longest scratch that an operator borrowed.
    pub(crate) scratch: usize,
    /// The layer whose operator had run last when the most bytes were in use, if one had.
    pub(crate) fullest_at: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    Holds,
    GivesWay,
}

thread_local! {
    static STARTING: RefCell<Option<Arc<Allocator>>> = const { RefCell::new(None) };
    /// Whether this thread called ONNX Runtime, which then catches what is thrown.
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

impl Allocator {
    /// An allocator that holds no memory yet. ONNX Runtime must have been loaded.
    ///
    /// # Errors
    /// When ONNX Runtime describes no memory of the processor, or cannot be told of a
    /// refusal.
    pub(crate) fn new() -> Result<Arc<Self>, ort::Error> {
        exception::prepare().map_err(|error| ort::Error::new(error.to_string()))?;
        // SAFETY: all members are null or plain numbers.
        let mut interface = unsafe { OrtAllocator::default() };
        interface.version = VERSION;
        // SAFETY: both types take the same arguments, `*mut` for `*const` besides, in the
        // same registers; they differ in that these may unwind, into C++ only.
        unsafe {
            interface.Alloc = Some(transmute::<Allocate, Member>(allocate));
            interface.Reserve = Some(transmute::<Allocate, ConstantMember>(allocate));
        }
        interface.Free = Some(free);
        interface.Info = Some(info);
        Ok(Arc::new(Self {
            interface,
            // What `RegisterAllocator` asks for, whatever the allocator does inside.
            info: MemoryInfo::new(
                AllocationDevice::CPU,
                0,
                AllocatorType::Device,
                MemoryType::Default,
            )?,
            state: Mutex::new(State {
                heap: Heap::new(),
                blocks: 0,
                refusal: None,
                running: None,
                fullest_at: None,
                scratch: 0,
                record: None,
            }),
        }))
    }

    /// Runs `start`, which creates one session that uses the environment's allocator
    /// (`session.use_env_allocators`): this one. Sessions are started one at a time.
    ///
    /// # Errors
    /// When ONNX Runtime does not take the allocator; `start` did not run then.
    pub(crate) fn lend_to_session<T>(
        self: &Arc<Self>,
        environment: &Environment,
        start: impl FnOnce() -> T,
    ) -> Result<T, ort::Error> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let _registration = Registration::of(self, environment)?;
        Ok(self.watch(start).0)
    }

    /// Calls `run`, during which ONNX Runtime may allocate here, and says why memory was
    /// refused meanwhile, if it was. The run failed then, or must be taken for failed.
    ///
    /// A refusal is thrown to the thread that runs. A thread of ONNX Runtime's pool
    /// catches nothing: there the limit gives way, and only the run fails.
    pub(crate) fn watch<T>(&self, run: impl FnOnce() -> T) -> (T, Option<Refusal>) {
        {
            let mut state = self.lock();
            state.refusal = None;
            state.running = None;
        }
        CALLING.set(true);
        let outcome = run();
        CALLING.set(false);
        (outcome, self.lock().refusal.take())
    }

    /// Notes that an operator runs: the layers that it computes, each with the points that it
    /// passes over. The last one is what takes the most memory.
    pub(crate) fn enter(&self, layers: impl IntoIterator<Item = (usize, u64)>) {
        let mut state = self.lock();
        for (layer, points) in layers {
            state.running = Some(layer);
            if let Some(record) = &mut state.record {
                record.push((layer, points));
            }
        }
    }

    /// Records which layers run, for the first `run` after this.
    pub(crate) fn record(&self) {
        self.lock().record = Some(Vec::new());
    }

    /// What was recorded, which ends it.
    pub(crate) fn recorded(&self) -> Vec<(usize, u64)> {
        self.lock().record.take().unwrap_or_default()
    }

    /// What the session took so far.
    pub(crate) fn footprint(&self) -> Footprint {
        let state = self.lock();
        Footprint {
            held: state.heap.held.peak,
            scratch: state.scratch,
            fullest_at: state.fullest_at,
        }
    }

    /// The allocator of the session that this thread is just creating: for the
    /// constructors of operators, which ONNX Runtime calls meanwhile.
    pub(crate) fn of_starting_session() -> Option<Arc<Self>> {
        STARTING.with_borrow(Clone::clone)
    }

    /// Bytes in use by ONNX Runtime and as scratch, each rounded up to a cache line.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.lock().heap.in_use.now
    }

    /// The most bytes in use at once since the last [`Self::reset_peak`].
    #[cfg(test)]
    pub(crate) fn peak(&self) -> usize {
        self.lock().heap.in_use.peak
    }

    /// Bytes taken from the kernel, in use or not: what the session costs. At its
    /// highest since the last [`Self::reset_peak`], and now.
    pub(crate) fn held(&self) -> Level {
        self.lock().heap.held
    }

    /// Measures peaks from here on.
    #[cfg(test)]
    pub(crate) fn reset_peak(&self) {
        self.lock().heap.reset_peaks();
    }

    /// Never holds more than `bytes` from the kernel from now on; what is in use
    /// already stays. Requests beyond are refused, see [`Self::watch`].
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.lock().heap.set_limit(bytes);
    }

    /// Zeroes everything that was freed since the last time. Memory in use is not
    /// touched, and requests for memory wait meanwhile.
    pub(crate) fn wipe_idle(&self) {
        self.lock().heap.wipe_idle();
    }

    /// Makes all that is held count in the memory of the process, which a page does from
    /// its first use on. What is in use is not touched.
    pub(crate) fn touch_idle(&self) {
        self.lock().heap.touch_idle();
    }

    /// Whether the kernel keeps all of this memory out of swap.
    pub(crate) fn is_locked(&self) -> bool {
        self.lock().heap.is_locked()
    }

    /// Memory for an operator, `length` numbers, of any values. Callable from several
    /// threads at once. What is left in it is wiped with the rest, after the run.
    ///
    /// # Errors
    /// [`Refusal`]
    pub(crate) fn scratch(&self, length: usize) -> Result<Scratch<'_>, Refusal> {
        self.scratch_and_values(length, length)
    }

    /// [`Self::scratch`], of which at most `scratch` numbers are so at once. The rest are
    /// values that one step hands on to another: they count as ONNX Runtime's own do.
    pub(crate) fn scratch_and_values(
        &self,
        length: usize,
        scratch: usize,
    ) -> Result<Scratch<'_>, Refusal> {
        let bytes = length
            .checked_mul(size_of::<f32>())
            .ok_or(Refusal::Kernel)?;
        let start = self.allocate(bytes, Purpose::Scratch, Limit::Holds)?;
        let mut state = self.lock();
        state.scratch = state.scratch.max(scratch * size_of::<f32>());
        drop(state);
        Ok(Scratch {
            start: start.cast(),
            length,
            allocator: self,
        })
    }

    #[cfg(test)]
    fn kernel_calls(&self) -> usize {
        self.lock().heap.kernel_calls
    }

    #[cfg(test)]
    fn regions(&self) -> Vec<std::ops::Range<usize>> {
        self.lock().heap.regions()
    }

    #[cfg(test)]
    fn dirty_bytes(&self) -> usize {
        self.lock().heap.dirty_bytes()
    }

    /// The contents of everything that is not in use.
    #[cfg(test)]
    fn free_bytes(&self) -> Vec<u8> {
        self.lock().heap.free_bytes()
    }

    /// Only ever called on allocators inside an [`Arc`]: there are no others.
    fn allocate(
        &self,
        bytes: usize,
        purpose: Purpose,
        limit: Limit,
    ) -> Result<NonNull<c_void>, Refusal> {
        let mut state = self.lock();
        let fullest = state.heap.in_use.peak;
        let address = state.heap.allocate(bytes, purpose).or_else(|refusal| {
            state.refusal = Some(refusal);
            match limit {
                Limit::Holds => Err(refusal),
                Limit::GivesWay => state.heap.allocate_beyond_limit(bytes, purpose),
            }
        })?;
        if state.heap.in_use.peak > fullest {
            state.fullest_at = state.running;
        }
        state.blocks += 1;
        if state.blocks == 1 {
            // SAFETY: `self` is inside an `Arc`, of which the caller has a reference.
            // The count that is added here is taken away with the last block.
            unsafe { Arc::increment_strong_count(ptr::from_ref(self)) };
        }
        NonNull::new(ptr::with_exposed_provenance_mut(address)).ok_or(Refusal::Kernel)
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// `block` came from [`Self::allocate`] of this allocator and was not freed since:
    /// until then it keeps the allocator alive.
    unsafe fn free(allocator: *const Self, block: *mut c_void) {
        let last = {
            // SAFETY: by this function's contract; the reference ends before the
            // allocator might.
            let mut state = unsafe { &*allocator }.lock();
            state.heap.free(block.expose_provenance());
            state.blocks -= 1;
            state.blocks == 0
        };
        if last {
            // SAFETY: takes away what `allocate` added with the first block.
            unsafe { Arc::decrement_strong_count(allocator) };
        }
    }

    /// Under the lock only [`Heap`]'s own invariants could panic, and a later caller is
    /// then told so again.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Allocator")
            .field("in_use", &state.heap.in_use)
            .field("held", &state.heap.held)
            .finish_non_exhaustive()
    }
}

/// Memory that an operator borrowed; it goes back on drop.
pub(crate) struct Scratch<'a> {
    start: NonNull<f32>,
    length: usize,
    allocator: &'a Allocator,
}

impl Deref for Scratch<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `start` is aligned to a cache line and valid for `length` numbers until
        // drop; they are initialised, as the kernel zeroed them once, and any bits are a
        // number. `&self` rules out a live mutable slice.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; `&mut self` makes this the only slice.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // SAFETY: the block is this allocator's and given back once.
        unsafe { Allocator::free(self.allocator, self.start.as_ptr().cast()) };
    }
}

// SAFETY: a scratch owns its block alone, and the allocator may be used from any thread.
unsafe impl Send for Scratch<'_> {}
// SAFETY: through `&self` the block can only be read.
unsafe impl Sync for Scratch<'_> {}

/// While it lives, an allocator is the environment's.
struct Registration<'a> {
    environment: &'a Environment,
    allocator: Arc<Allocator>,
}

impl<'a> Registration<'a> {
    fn of(allocator: &Arc<Allocator>, environment: &'a Environment) -> Result<Self, ort::Error> {
        // SAFETY: both pointers are valid; the environment reads the allocator until it
        // is unregistered, which is on drop, and sessions for as long as they live, by
        // `Compartment`'s order of fields.
        unsafe {
            let status = (ort::api().RegisterAllocator)(
                raw(environment),
                Arc::as_ptr(allocator).cast_mut().cast::<OrtAllocator>(),
            );
            ort::Error::result_from_status(status)?;
        }
        STARTING.set(Some(Arc::clone(allocator)));
        Ok(Self {
            environment,
            allocator: Arc::clone(allocator),
        })
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        STARTING.set(None);
        // SAFETY: both pointers are valid, and the allocator is registered.
        let result = unsafe {
            let status =
                (ort::api().UnregisterAllocator)(raw(self.environment), self.allocator.info.ptr());
            ort::Error::result_from_status(status)
        };
        if result.is_err() {
            // The environment still points at it: it may never go.
            std::mem::forget(Arc::clone(&self.allocator));
        }
    }
}

/// ONNX Runtime locks its environment itself.
fn raw(environment: &Environment) -> *mut OrtEnv {
    environment.ptr().cast_mut()
}

type Allocate = unsafe extern "system-unwind" fn(*mut OrtAllocator, usize) -> *mut c_void;

/// The types that `ort` has for it, which say nothing of exceptions. Rust never calls
/// the members.
type Member = unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void;
type ConstantMember = unsafe extern "system" fn(*const OrtAllocator, usize) -> *mut c_void;

/// `OrtAllocator::Alloc` and `Reserve`: null for no bytes; a refusal is thrown.
///
/// # Safety
/// `allocator` points at the first member of an [`Allocator`], and C++ is calling.
unsafe extern "system-unwind" fn allocate(
    allocator: *mut OrtAllocator,
    bytes: usize,
) -> *mut c_void {
    if bytes == 0 {
        return ptr::null_mut();
    }
    // SAFETY: by this function's contract; shared access only, and the session or the
    // registration that called keeps the allocator alive.
    let allocator = unsafe { &*allocator.cast::<Allocator>() };
    let limit = if CALLING.get() {
        Limit::Holds
    } else {
        Limit::GivesWay
    };
    // A panic must not cross into ONNX Runtime.
    let block = catch_unwind(AssertUnwindSafe(|| {
        allocator.allocate(bytes, Purpose::Values, limit).ok()
    }));
    let block = block.unwrap_or(None);
    if let Some(block) = block {
        return block.as_ptr();
    }
    // SAFETY: C++ called this function, which may unwind, and nothing here is dropped.
    unsafe { exception::throw_bad_alloc() };
    ptr::null_mut()
}

/// `OrtAllocator::Free`.
///
/// # Safety
/// As for [`allocate`]; `block` is null or came from it and was not freed since.
unsafe extern "system" fn free(allocator: *mut OrtAllocator, block: *mut c_void) {
    if block.is_null() {
        return;
    }
    // SAFETY: by this function's contract.
    let _ = catch_unwind(|| unsafe { Allocator::free(allocator.cast(), block) });
}

/// `OrtAllocator::Info`.
///
/// # Safety
/// As for [`allocate`].
unsafe extern "system" fn info(allocator: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: by this function's contract.
    let allocator = unsafe { &*allocator.cast::<Allocator>() };
    allocator.info.ptr()
}

#[cfg(test)]
mod tests;
