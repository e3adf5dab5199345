//! Where values lie in one block of memory, when it is known during which steps of a run
//! each of them is needed.
//!
//! The longest first, each at the lowest place where nothing lies that is needed at the same
//! time: "greedy by size" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net
//! Inference (2020), section 5.

use std::ops::{Range, RangeInclusive};

/// Numbers to which places are aligned: a cache line.
const ALIGNMENT: usize = 16;

/// A value: how many numbers it has, and the steps from the one that makes it to its last
/// reader.
#[derive(Debug, Clone)]
pub(super) struct Lifetime {
    pub(super) length: usize,
    pub(super) steps: RangeInclusive<usize>,
}

/// Numbers of a block, one place for each value.
#[derive(Debug)]
pub(super) struct Arrangement {
    /// In the order of the lifetimes; `0..0` for a value without numbers.
    pub(super) places: Vec<Range<usize>>,
    /// Numbers of the block.
    pub(super) length: usize,
    /// The step during which the most of it is in use.
    pub(super) fullest: usize,
}

impl Arrangement {
    /// None if the block would be longer than numbers can be counted.
    pub(super) fn of(lifetimes: &[Lifetime]) -> Option<Self> {
        let mut by_length: Vec<usize> = (0..lifetimes.len()).collect();
        by_length.sort_by_key(|&value| std::cmp::Reverse(lifetimes[value].length));
        let mut places = vec![0..0; lifetimes.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(lifetimes.len());
        for value in by_length {
            let Lifetime { length, steps } = &lifetimes[value];
            if *length == 0 {
                break;
            }
            let mut start = 0_usize;
            // In the order of their places.
            for &other in &placed {
                let taken: &Range<usize> = &places[other];
                if !meet(steps, &lifetimes[other].steps) || taken.end <= start {
                    continue;
                }
                if start.checked_add(*length)? <= taken.start {
                    break;
                }
                start = taken.end.checked_next_multiple_of(ALIGNMENT)?;
            }
            places[value] = start..start.checked_add(*length)?;
            let index = placed.partition_point(|&other| places[other].start <= start);
            placed.insert(index, value);
        }
        Some(Self {
            length: places.iter().map(|place| place.end).max().unwrap_or(0),
            fullest: fullest(lifetimes),
            places,
        })
    }
}

fn meet(one: &RangeInclusive<usize>, other: &RangeInclusive<usize>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

fn fullest(lifetimes: &[Lifetime]) -> usize {
    let last = lifetimes.iter().map(|life| *life.steps.end()).max();
    let needed = |step: &usize| {
        let living = lifetimes.iter().filter(|life| life.steps.contains(step));
        living.map(|life| life.length as u128).sum::<u128>()
    };
    // The first of equal ones.
    let steps = (0..=last.unwrap_or(0)).rev();
    steps.max_by_key(needed).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life(length: usize, steps: RangeInclusive<usize>) -> Lifetime {
        Lifetime { length, steps }
    }

    #[test]
    fn values_of_a_chain_take_turns() {
        let lives = [
            life(160, 0..=1),
            life(100, 1..=2),
            life(160, 2..=3),
            life(100, 3..=4),
        ];
        let arrangement = Arrangement::of(&lives).unwrap();
        assert_eq!(arrangement.places, [0..160, 160..260, 0..160, 160..260]);
        assert_eq!((arrangement.length, arrangement.fullest), (260, 1));
    }

    #[test]
    fn a_value_lies_in_the_lowest_gap_that_is_wide_enough() {
        let lives = [
            life(64, 0..=0),
            life(48, 0..=2),
            life(32, 1..=2),
            life(16, 1..=2),
        ];
        let arrangement = Arrangement::of(&lives).unwrap();
        assert_eq!(arrangement.places, [0..64, 64..112, 0..32, 32..48]);
        assert_eq!(arrangement.length, 112);
    }

    #[test]
    fn places_are_whole_cache_lines_apart() {
        let arrangement = Arrangement::of(&[life(3, 0..=0), life(2, 0..=0)]).unwrap();
        assert_eq!(arrangement.places, [0..3, 16..18]);
    }

    #[test]
    fn a_value_without_numbers_takes_no_place() {
        let arrangement = Arrangement::of(&[life(0, 0..=5), life(16, 0..=0)]).unwrap();
        assert_eq!(arrangement.places, [0..0, 0..16]);
        assert_eq!(Arrangement::of(&[]).unwrap().length, 0);
    }

    #[test]
    fn a_block_of_more_numbers_than_can_be_counted_is_none() {
        let half = usize::MAX / 2;
        let lives = [life(half, 0..=0), life(half, 0..=0), life(half, 0..=0)];
        assert!(Arrangement::of(&lives).is_none());
    }

    fn lifetime() -> impl Strategy<Value = Lifetime> {
        (0_usize..1000, 0_usize..20, 0_usize..6)
            .prop_map(|(length, first, more)| life(length, first..=first + more))
    }

    proptest! {
        #[test]
        fn what_is_needed_at_the_same_time_lies_apart(
            lives in prop::collection::vec(lifetime(), 0..40)
        ) {
            let arrangement = Arrangement::of(&lives).unwrap();
            for (index, place) in arrangement.places.iter().enumerate() {
                prop_assert_eq!(place.len(), lives[index].length);
                prop_assert!(place.end <= arrangement.length);
                prop_assert!(place.start.is_multiple_of(ALIGNMENT));
                for other in 0..index {
                    let (one, two) = (&lives[index].steps, &lives[other].steps);
                    let together = (0..30).any(|step| one.contains(&step) && two.contains(&step));
                    let apart = place.end <= arrangement.places[other].start
                        || arrangement.places[other].end <= place.start;
                    prop_assert!(!together || apart);
                }
            }
        }
    }
}
