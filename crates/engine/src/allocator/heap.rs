//! Which bytes of which region are in use, and which hold what a request left there.
//!
//! Blocks are cut to size, to the cache line; free neighbours become one block again,
//! and the smallest free block that will do is taken. A run that asks for the same
//! sizes in the same order as the last one therefore finds the same blocks and
//! needs nothing from the kernel. Before a region of large values or of scratch is added,
//! others of that kind without any block in use are given back, so that memory does not
//! double while a model's requests grow.
//!
//! Bytes of free blocks are remembered as dirty until they are zeroed, which
//! happens on [`Heap::wipe_idle`] and before a region returns to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::ptr;

use super::region::{PAGE, Region};

/// Every block starts at a multiple of this and is as long: a cache line, the
/// widest vector, and what ONNX Runtime's kernels prefer.
pub(crate) const ALIGNMENT: usize = 64;

/// Bytes behind a block that may be read: ONNX Runtime's own allocator adds them for
/// its quantised kernels on Arm (`MLAS_SYMM_QGEMM_BUF_OVERRUN`).
const OVERREAD: usize = if cfg!(target_arch = "aarch64") { 16 } else { 0 };

/// Blocks below this size share regions of [`SMALL_REGION`]: a constant that stays
/// must not keep the region of a large intermediate result.
const SMALL: usize = 32 << 10;
const SMALL_REGION: usize = 128 << 10;

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What one operator hands on to others.
    Values,
    /// What one operator needs while it runs. Operators run one after the other, so that all
    /// of them use the same region; cut from regions of values, scratch would be in the way of
    /// longer values, and they in its.
    Scratch,
}

/// Why there is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It would have exceeded the limit, which is this many bytes.
    Limit(usize),
    /// The kernel gave no memory.
    Kernel,
}

/// Bytes, now and at their highest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) now: usize,
    pub(crate) peak: usize,
}

impl Level {
    fn rise(&mut self, bytes: usize) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }
}

pub(super) struct Heap {
    regions: BTreeMap<usize, Region>,
    /// Every block by its address; together they cover the regions exactly.
    blocks: BTreeMap<usize, Block>,
    /// Size and address of the free ones.
    free: BTreeSet<(Class, usize, usize)>,
    /// Start and end of the bytes of free blocks that may not be zero.
    dirty: BTreeMap<usize, usize>,
    pub(super) in_use: Level,
    pub(super) held: Level,
    limit: usize,
    /// Refuses all but so many requests.
    #[cfg(test)]
    pub(super) grants: usize,
    /// Regions taken from the kernel and given back, ever.
    pub(super) kernel_calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Small,
    Large,
    Scratch,
}

impl Class {
    fn of(size: usize, purpose: Purpose) -> Self {
        match purpose {
            Purpose::Scratch => Self::Scratch,
            Purpose::Values if size < SMALL => Self::Small,
            Purpose::Values => Self::Large,
        }
    }
}

#[derive(Clone, Copy)]
struct Block {
    size: usize,
    class: Class,
    in_use: bool,
}

impl Heap {
    pub(super) fn new() -> Self {
        Self {
            regions: BTreeMap::new(),
            blocks: BTreeMap::new(),
            free: BTreeSet::new(),
            dirty: BTreeMap::new(),
            in_use: Level::default(),
            held: Level::default(),
            limit: usize::MAX,
            #[cfg(test)]
            grants: usize::MAX,
            kernel_calls: 0,
        }
    }

    /// The address of `bytes` bytes, which belong to the caller until [`Heap::free`].
    pub(super) fn allocate(&mut self, bytes: usize, purpose: Purpose) -> Result<usize, Refusal> {
        #[cfg(test)]
        {
            let left = self.grants.checked_sub(1);
            self.grants = left.ok_or(Refusal::Limit(self.limit))?;
        }
        let size = bytes
            .max(1)
            .checked_add(OVERREAD)
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .ok_or(Refusal::Kernel)?;
        let class = Class::of(size, purpose);
        let address = match self.smallest_free(class, size) {
            Some(address) => address,
            None => match self.grow(class, size) {
                Ok(address) => address,
                // Within the limit it may still be cut from what is for large values.
                Err(refusal) => self.smallest_free(Class::Large, size).ok_or(refusal)?,
            },
        };
        self.take(address, size);
        self.in_use.rise(size);
        Ok(address)
    }

    /// [`Self::allocate`], but whatever the limit is.
    pub(super) fn allocate_beyond_limit(
        &mut self,
        bytes: usize,
        purpose: Purpose,
    ) -> Result<usize, Refusal> {
        let limit = std::mem::replace(&mut self.limit, usize::MAX);
        let address = self.allocate(bytes, purpose);
        self.limit = limit;
        address
    }

    /// Takes a block back.
    ///
    /// # Panics
    /// If nothing that is in use starts at `address`.
    pub(super) fn free(&mut self, address: usize) {
        let block = self.blocks.get(&address).copied();
        let block = block.filter(|block| block.in_use).expect("a block in use");
        self.in_use.now -= block.size;
        self.soil(address..address + block.size);

        let region = self.region_around(address);
        let (mut start, mut end) = (address, address + block.size);
        if let Some((&before, neighbour)) = self.blocks.range(..address).next_back()
            && region.contains(&before)
            && !neighbour.in_use
        {
            self.free.remove(&(neighbour.class, neighbour.size, before));
            self.blocks.remove(&address);
            start = before;
        }
        if let Some(&neighbour) = self.blocks.get(&end)
            && region.contains(&end)
            && !neighbour.in_use
        {
            self.free.remove(&(neighbour.class, neighbour.size, end));
            self.blocks.remove(&end);
            end += neighbour.size;
        }
        self.put_free(start, end - start, block.class);
    }

    /// Zeroes what was left in free blocks. Blocks in use are not touched.
    pub(super) fn wipe_idle(&mut self) {
        for (start, end) in std::mem::take(&mut self.dirty) {
            zero(start..end);
        }
    }

    /// Zeroes every free byte, whether it may be other than zero or not: the kernel then has
    /// memory behind all that is held.
    pub(super) fn touch_idle(&mut self) {
        for &(_, size, address) in &self.free {
            zero(address..address + size);
        }
        self.dirty.clear();
    }

    /// Refuses from now on to hold more than `limit` bytes; what is idle above it goes
    /// back at once.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        if self.held.now > limit {
            self.release_idle(|_| true);
        }
    }

    #[cfg(test)]
    pub(super) fn reset_peaks(&mut self) {
        self.in_use.peak = self.in_use.now;
        self.held.peak = self.held.now;
    }

    pub(super) fn is_locked(&self) -> bool {
        self.regions.values().all(Region::is_locked)
    }

    /// The addresses of every byte held, region by region.
    #[cfg(test)]
    pub(super) fn regions(&self) -> Vec<Range<usize>> {
        self.regions
            .values()
            .map(|region| region.start()..region.start() + region.length())
            .collect()
    }

    #[cfg(test)]
    pub(super) fn dirty_bytes(&self) -> usize {
        self.dirty.iter().map(|(start, end)| end - start).sum()
    }

    /// The contents of everything that is not in use.
    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> Vec<u8> {
        self.free
            .iter()
            .flat_map(|&(_, size, address)| {
                let start = ptr::with_exposed_provenance::<u8>(address);
                // SAFETY: the bytes of a free block of a live region, which nobody writes
                // while the heap is borrowed.
                unsafe { std::slice::from_raw_parts(start, size) }
            })
            .copied()
            .collect()
    }

    fn smallest_free(&self, class: Class, size: usize) -> Option<usize> {
        self.free
            .range((class, size, 0)..=(class, usize::MAX, usize::MAX))
            .next()
            .map(|&(_, _, address)| address)
    }

    /// Adds a region with room for `size` bytes; returns the address of its only block.
    fn grow(&mut self, class: Class, size: usize) -> Result<usize, Refusal> {
        let exact = size.checked_next_multiple_of(PAGE).ok_or(Refusal::Kernel)?;
        let preferred = match class {
            Class::Small => SMALL_REGION,
            Class::Large | Class::Scratch => {
                self.release_idle(|idle| idle == class);
                exact
            }
        };
        if self.room() < exact {
            self.release_idle(|_| true);
        }
        let length = if self.room() < preferred {
            exact
        } else {
            preferred
        };
        if self.room() < length {
            return Err(Refusal::Limit(self.limit));
        }
        let region = Region::map(length).map_err(|_| Refusal::Kernel)?;
        let start = region.start();
        self.kernel_calls += 1;
        self.held.rise(length);
        self.regions.insert(start, region);
        self.put_free(start, length, class);
        Ok(start)
    }

    fn room(&self) -> usize {
        self.limit.saturating_sub(self.held.now)
    }

    /// Wipes regions without a block in use and gives them back.
    fn release_idle(&mut self, of_class: impl Fn(Class) -> bool) {
        let idle: Vec<(usize, usize)> = self
            .regions
            .values()
            .map(|region| (region.start(), region.length()))
            .filter(|&(start, length)| {
                let block = self.blocks[&start];
                block.size == length && !block.in_use && of_class(block.class)
            })
            .collect();
        for (start, length) in idle {
            for dirty in self.clean(start..start + length) {
                zero(dirty);
            }
            if let Some(block) = self.blocks.remove(&start) {
                self.free.remove(&(block.class, block.size, start));
            }
            self.held.now -= length;
            self.kernel_calls += 1;
            self.regions.remove(&start);
        }
    }

    /// Marks `size` bytes of the free block at `address` as in use.
    fn take(&mut self, address: usize, size: usize) {
        let block = self.blocks[&address];
        self.free.remove(&(block.class, block.size, address));
        let taken = Block {
            size,
            class: block.class,
            in_use: true,
        };
        self.blocks.insert(address, taken);
        if block.size > size {
            self.put_free(address + size, block.size - size, block.class);
        }
        // Whatever is in it is dirty again when it comes back.
        self.clean(address..address + size);
    }

    fn put_free(&mut self, address: usize, size: usize, class: Class) {
        let block = Block {
            size,
            class,
            in_use: false,
        };
        self.blocks.insert(address, block);
        self.free.insert((class, size, address));
    }

    fn region_around(&self, address: usize) -> Range<usize> {
        self.regions
            .range(..=address)
            .next_back()
            .map_or(0..0, |(&start, region)| start..start + region.length())
    }

    fn soil(&mut self, range: Range<usize>) {
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &stop)) = self.dirty.range(..start).next_back()
            && stop == start
        {
            start = before;
        }
        if let Some(stop) = self.dirty.remove(&end) {
            end = stop;
        }
        self.dirty.insert(start, end);
    }

    /// Takes the dirty parts of `range` off the list.
    fn clean(&mut self, range: Range<usize>) -> Vec<Range<usize>> {
        let first = self.dirty.range(..=range.start).next_back();
        let from = first.map_or(range.start, |(&start, _)| start);
        let touched: Vec<(usize, usize)> = self
            .dirty
            .range(from..range.end)
            .map(|(&start, &end)| (start, end))
            .filter(|&(_, end)| end > range.start)
            .collect();
        touched
            .into_iter()
            .map(|(start, end)| {
                self.dirty.remove(&start);
                if start < range.start {
                    self.dirty.insert(start, range.start);
                }
                if end > range.end {
                    self.dirty.insert(range.end, end);
                }
                start.max(range.start)..end.min(range.end)
            })
            .collect()
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        debug_assert_eq!(self.in_use.now, 0, "memory in use is unmapped");
        self.wipe_idle();
    }
}

/// Zeroes bytes of free blocks of a mapped region.
fn zero(range: Range<usize>) {
    // SAFETY: callers pass bytes of a live region that belong to no block in use, so
    // nobody else reads or writes them; the region's provenance is exposed. The memory
    // is the kernel's and other languages', so the compiler may not leave the writes out.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(range.start).write_bytes(0, range.len()) };
}

#[cfg(test)]
mod tests;
