//! The heap alone, with a record of what it promised.

use proptest::prelude::*;

use super::*;

/// The bytes at an address of the heap's.
fn bytes<'a>(address: usize, length: usize) -> &'a mut [u8] {
    // SAFETY: tests pass blocks that they have in use, and one slice at a time.
    unsafe { std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(address), length) }
}

fn assert_consistent(heap: &Heap) {
    let mut in_use = 0;
    let mut held = 0;
    let mut free = 0;
    for (&start, region) in &heap.regions {
        let end = start + region.length();
        let mut at = start;
        let mut after_free = false;
        for (&address, block) in heap.blocks.range(start..end) {
            assert_eq!(address, at, "blocks cover their region");
            assert_eq!((address % ALIGNMENT, block.size % ALIGNMENT), (0, 0));
            assert!(!after_free || block.in_use, "free neighbours are one");
            let listed = heap.free.contains(&(block.class, block.size, address));
            assert_eq!(listed, !block.in_use);
            after_free = !block.in_use;
            at += block.size;
            in_use += if block.in_use { block.size } else { 0 };
            free += usize::from(!block.in_use);
        }
        assert_eq!(at, end);
        held += region.length();
    }
    assert_eq!((in_use, held), (heap.in_use.now, heap.held.now));
    assert_eq!(free, heap.free.len());
    // Dirty ranges may go from one region into the next.
    for (&start, &end) in &heap.dirty {
        let mut at = start;
        while at < end {
            let (&address, block) = heap.blocks.range(..=at).next_back().unwrap();
            assert!(
                !block.in_use && at < address + block.size,
                "dirty and not free"
            );
            at = address + block.size;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(usize, Purpose),
    Free(usize),
    Wipe,
    Limit(usize),
}

fn allocate(bytes: Range<usize>) -> impl Strategy<Value = Step> {
    let purpose = prop_oneof![Just(Purpose::Values), Just(Purpose::Scratch)];
    (bytes, purpose).prop_map(|(bytes, purpose)| Step::Allocate(bytes, purpose))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => allocate(1..5000),
        4 => allocate(1..400_000),
        8 => any::<usize>().prop_map(Step::Free),
        1 => Just(Step::Wipe),
        1 => (100_000_usize..3_000_000).prop_map(Step::Limit),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn blocks_never_overlap_keep_their_contents_and_are_zero_once_wiped(steps in steps()) {
        let mut heap = Heap::new();
        let mut live: Vec<(usize, usize, u8)> = Vec::new();
        let mut limit = usize::MAX;
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Allocate(length, purpose) => {
                    let before = heap.held.now;
                    match heap.allocate(length, purpose) {
                        Ok(address) => {
                            let fill = (number % 255) as u8 + 1;
                            bytes(address, length).fill(fill);
                            live.push((address, length, fill));
                            prop_assert!(heap.held.now <= limit.max(before));
                        }
                        Err(refusal) => prop_assert_eq!(refusal, Refusal::Limit(limit)),
                    }
                }
                Step::Free(index) if !live.is_empty() => {
                    let (address, length, fill) = live.swap_remove(index % live.len());
                    prop_assert!(bytes(address, length).iter().all(|&byte| byte == fill));
                    heap.free(address);
                }
                Step::Free(_) => {}
                Step::Wipe => {
                    heap.wipe_idle();
                    prop_assert!(heap.free_bytes().iter().all(|&byte| byte == 0));
                }
                Step::Limit(bytes) => {
                    limit = bytes;
                    heap.set_limit(bytes);
                }
            }
            assert_consistent(&heap);
        }
        for (address, length, fill) in live {
            prop_assert!(bytes(address, length).iter().all(|&byte| byte == fill));
            heap.free(address);
        }
        assert_consistent(&heap);
        prop_assert_eq!(heap.in_use.now, 0);
    }
}

#[test]
fn the_same_requests_find_the_same_blocks_without_the_kernel() {
    let sizes = [100, 3 << 20, 70_000, 1 << 20, 64, 40_000, 2 << 20];
    let mut heap = Heap::new();
    let mut run = || {
        let mut blocks = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            blocks.push(heap.allocate(size, Purpose::Values).unwrap());
            if index % 3 == 2 {
                heap.free(blocks[index - 1]);
            }
        }
        for (index, &block) in blocks.iter().enumerate() {
            if index % 3 != 1 || index + 1 == blocks.len() {
                heap.free(block);
            }
        }
        heap.wipe_idle();
        (blocks, heap.kernel_calls)
    };
    run();
    let second = run();
    assert_eq!(run(), second);
    assert_eq!(run(), second);
}

#[test]
fn one_block_purposewhat_were_many_does_not_double_memory() {
    let mut heap = Heap::new();
    let parts: Vec<usize> = (0..8)
        .map(|_| heap.allocate(1 << 20, Purpose::Values).unwrap())
        .collect();
    parts.into_iter().for_each(|part| heap.free(part));
    let whole = heap.allocate(8 << 20, Purpose::Values).unwrap();
    assert_eq!(heap.held.peak, 8 << 20);
    heap.free(whole);
}

#[test]
fn small_blocks_that_stay_do_not_keep_large_regions() {
    let mut heap = Heap::new();
    let mut constants = Vec::new();
    for size in [1 << 20, 2 << 20, 3 << 20, 4 << 20] {
        let large = heap.allocate(size, Purpose::Values).unwrap();
        constants.push(heap.allocate(1000, Purpose::Values).unwrap());
        heap.free(large);
    }
    assert!(heap.held.now <= (4 << 20) + SMALL_REGION);
    constants.into_iter().for_each(|block| heap.free(block));
}

/// As in the first two runs of a session: for the second one ONNX Runtime lays all values
/// out in a single block.
#[test]
fn values_are_not_cut_from_where_the_next_scratch_has_to_go() {
    const SCRATCH: usize = 6 << 20;
    const VALUES: usize = 64 * PAGE;
    let mut heap = Heap::new();
    for values in [VALUES - PAGE, VALUES] {
        let values = heap.allocate(values, Purpose::Values).unwrap();
        let scratch = heap.allocate(SCRATCH, Purpose::Scratch).unwrap();
        heap.free(scratch);
        heap.free(values);
    }
    assert_eq!(heap.held.peak, SCRATCH + VALUES);
}

#[test]
fn operators_one_after_the_other_use_the_same_scratch() {
    let mut heap = Heap::new();
    let values = heap.allocate(1 << 20, Purpose::Values).unwrap();
    for bytes in [100, 3 << 20, 1 << 20, 4 << 20, 100] {
        let scratch = heap.allocate(bytes, Purpose::Scratch).unwrap();
        heap.free(scratch);
    }
    assert_eq!(heap.held.peak, (1 << 20) + (4 << 20));
    heap.free(values);
}

#[test]
fn under_a_limit_idle_regions_make_room_and_more_is_refused() {
    let mut heap = Heap::new();
    heap.set_limit(4 << 20);
    let first = heap.allocate(3 << 20, Purpose::Values).unwrap();
    assert_eq!(
        heap.allocate(2 << 20, Purpose::Values),
        Err(Refusal::Limit(4 << 20))
    );
    heap.free(first);
    let (a, b) = (
        heap.allocate(2 << 20, Purpose::Values).unwrap(),
        heap.allocate(1 << 20, Purpose::Values).unwrap(),
    );
    assert_eq!(heap.held.now, 3 << 20);
    // Small blocks have regions of their own while there is room, and exact ones, and
    // parts of large ones at last.
    let c = heap.allocate(ALIGNMENT, Purpose::Values).unwrap();
    let d = heap
        .allocate((1 << 20) - SMALL_REGION, Purpose::Values)
        .unwrap();
    assert_eq!(
        heap.allocate(40_000, Purpose::Values),
        Err(Refusal::Limit(4 << 20))
    );
    heap.free(b);
    let e: Vec<usize> = (0..8)
        .map(|_| heap.allocate(20_000, Purpose::Values).unwrap())
        .collect();
    assert_eq!(heap.held.peak, 4 << 20);
    [a, c, d]
        .into_iter()
        .chain(e)
        .for_each(|block| heap.free(block));
    heap.set_limit(0);
    assert_eq!((heap.held.now, heap.in_use.now), (0, 0));
}

#[test]
fn a_region_is_wiped_before_the_kernel_has_it_back() {
    let mut heap = Heap::new();
    let block = heap.allocate(1 << 20, Purpose::Values).unwrap();
    bytes(block, 1 << 20).fill(1);
    heap.free(block);
    assert_eq!(heap.clean(block..block + (1 << 20)).len(), 1);
    heap.soil(block..block + 1000);
    heap.soil(block + 2000..block + 3000);
    heap.soil(block + 1000..block + 2000);
    assert_eq!(heap.dirty_bytes(), 3000);
    let middle = block + 500..block + 600;
    assert_eq!(heap.clean(middle.clone()), std::slice::from_ref(&middle));
    assert_eq!(heap.dirty_bytes(), 2900);
    heap.set_limit(0);
    assert_eq!((heap.dirty_bytes(), heap.held.now), (0, 0));
}
