//! What streaming costs, and what to keep resident for a budget.
//!
//! The cost of a panel is the time that each run takes longer because the panel is not
//! resident: a fixed start, and a time for each byte. Of the time for the bytes a layer
//! hides a part behind its arithmetic, the more the more points it passes over with each
//! weight ([`exposed`]).
//!
//! What is kept is the solution of a knapsack problem, see [`choose`]. Shapes and times
//! go in, no value of any weight or request.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use occlude_spill::{CipherKind, MappedStore, PanelName, Store};
use zeroize::Zeroizing;

/// How long opening takes on one core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Costs {
    /// Seconds for a byte.
    pub(crate) byte: f64,
    /// Seconds for a panel, however short.
    pub(crate) start: f64,
}

/// How one run reads a layer, as a dry run saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// How often its weights are opened.
    pub(crate) passes: u64,
    /// Points that each opening serves: the rows of a matrix product, the pixels of a
    /// convolution's output.
    pub(crate) points: u64,
}

impl Usage {
    /// Not read.
    pub(crate) const NONE: Self = Self {
        passes: 0,
        points: 0,
    };

    /// Of a layer that no dry run was seen to read: once, for one point.
    pub(crate) const UNKNOWN: Self = Self {
        passes: 1,
        points: 1,
    };
}

/// A panel, or a whole tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Piece {
    /// What it takes when it is resident.
    pub(crate) bytes: usize,
    /// What each run takes longer while it is not: finite and not negative.
    pub(crate) cost: f64,
}

/// Which pieces are to be resident.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) panels: Vec<bool>,
    pub(crate) wholes: Vec<bool>,
}

/// The part of opening that is left to see where a layer passes over very many points.
const LEAST_EXPOSED: f64 = 0.35;

/// With so many points half of what can be hidden is.
const POINTS_THAT_HIDE_HALF: f64 = 12.0;

/// A tensor that is opened for an operator of ONNX Runtime is written, read again and
/// zeroed, all in memory: about twice what its opening takes.
const WHOLE: f64 = 2.0;

/// As many whole tensors are tried in every combination.
const MOST_COMBINED: usize = 12;

/// Bytes of a panel and of the store that [`Costs::measured`] opens: more than a core's
/// own caches hold.
const TRIAL_PANEL: usize = 96 << 10;
const TRIAL: usize = 16 << 20;

/// Openings of a short panel.
const SHORT_TRIALS: u32 = 512;
const SHORT_PANEL: usize = 64;

/// The cipher that was chosen, or the fastest here, and what it costs, tried once in a
/// process.
///
/// It is not kept in a file: what the host could rewrite decides nothing in here.
pub(crate) fn cipher(chosen: Option<CipherKind>) -> (CipherKind, Costs) {
    static FASTEST: OnceLock<CipherKind> = OnceLock::new();
    static COSTS: [OnceLock<Costs>; CipherKind::ALL.len()] =
        [const { OnceLock::new() }; CipherKind::ALL.len()];
    let kind = chosen.unwrap_or_else(|| *FASTEST.get_or_init(CipherKind::fastest));
    let place = CipherKind::ALL.iter().position(|&one| one == kind);
    let measure = || Costs::measured(kind).unwrap_or(Costs::ASSUMED);
    let costs = place.map_or(Costs::ASSUMED, |place| *COSTS[place].get_or_init(measure));
    (kind, costs)
}

impl Costs {
    /// Where nothing can be measured: a core of 2022 with AES instructions.
    pub(crate) const ASSUMED: Self = Self {
        byte: 1.0 / 10e9,
        start: 150e-9,
    };

    /// Opens panels in a store of its own, for some milliseconds. `None` if there is no
    /// memory for it or a clock that stands still.
    fn measured(kind: CipherKind) -> Option<Self> {
        let count = TRIAL / TRIAL_PANEL;
        let room = count * MappedStore::room_for(TRIAL_PANEL) + MappedStore::room_for(SHORT_PANEL);
        let store = MappedStore::new(kind, room, [0; 32]).ok()?;
        let name = |panel: usize| PanelName {
            layer: 0,
            panel: panel as u32,
        };
        let mut panel = Zeroizing::new(vec![0; TRIAL_PANEL]);
        let tickets: Vec<_> = (0..count)
            .map(|index| store.append(name(index), &panel).ok())
            .collect::<Option<_>>()?;
        let short = store.append(name(count), &panel[..SHORT_PANEL]).ok()?;

        let mut open_all = || {
            let started = Instant::now();
            for (index, ticket) in tickets.iter().enumerate() {
                store.open(name(index), ticket, &mut panel).ok()?;
            }
            Some(started.elapsed())
        };
        let long = open_all()?.min(open_all()?);
        let started = Instant::now();
        for _ in 0..SHORT_TRIALS {
            store
                .open(name(count), &short, &mut panel[..SHORT_PANEL])
                .ok()?;
        }
        let start = started.elapsed() / SHORT_TRIALS;
        Self::of(long / count as u32, start)
    }

    /// From the times of a long and of a short panel.
    fn of(long: Duration, short: Duration) -> Option<Self> {
        let bytes = (TRIAL_PANEL - SHORT_PANEL) as f64;
        let byte = long.checked_sub(short)?.as_secs_f64() / bytes;
        let start = (short.as_secs_f64() - byte * SHORT_PANEL as f64).max(0.0);
        (byte > 0.0).then_some(Self { byte, start })
    }

    /// Seconds that a run takes longer for one panel of `bytes` bytes, were there one
    /// thread.
    pub(crate) fn panel(&self, bytes: usize, usage: Usage) -> f64 {
        let once = self.start + self.byte * bytes as f64 * exposed(usage);
        once * usage.passes as f64
    }

    /// The same for a tensor of `panels` panels that is opened as a whole.
    pub(crate) fn whole(&self, bytes: usize, panels: usize, usage: Usage) -> f64 {
        let once = self.start * panels as f64 + WHOLE * self.byte * bytes as f64;
        once * usage.passes as f64
    }
}

/// The part of the time for opening bytes that a run is seen to take longer, 0 to 1.
///
/// Fitted to what eight matrices of 2,048 by 2,048 take longer streamed than resident: 100 %
/// of the opening with 1 row, 56 % with 16 and 42 % with 128 (`occlude bench MODEL --batch
/// N --budget resident --budget 0%`).
fn exposed(usage: Usage) -> f64 {
    let points = usage.points.saturating_sub(1) as f64;
    LEAST_EXPOSED + (1.0 - LEAST_EXPOSED) / (1.0 + points / POINTS_THAT_HIDE_HALF)
}

/// Which of `panels` and `wholes` to keep in `budget` bytes, so that what is left out
/// costs the least.
///
/// # How good it is
/// Let *a choice's worth* be the cost of what it keeps, and `c` the highest cost of a
/// panel. With at most [`MOST_COMBINED`] whole tensors the choice is worth more than the
/// best one less `c`:
///
/// 1. Fix the set `S` of whole tensors kept, and let `b` be the bytes that are left. Take
///    panels in the order of cost per byte while they fit; let `p` be the first that does
///    not, and `G` the worth of those before it. If there is none, all panels are kept
///    and nothing is better.
/// 2. If panels could be cut, those before `p` and the part of `p` that still fits would
///    be the best filling of `b` (Dantzig, 1957): any other one gives some bytes to panels
///    with a lower cost per byte. That filling is worth less than `G + cost(p)`, and no
///    filling with whole panels is worth more than it.
/// 3. So for `S` the best is worth less than `G + c`. We go on after `p` and take what
///    fits, which only adds to `G`.
/// 4. Every `S` that fits is tried, that of the best choice among them.
///
/// As panels are of about 100 KiB, `c` is some microseconds. With more whole tensors only
/// those sets are tried that are the first few in the order of cost per byte, and one may be
/// missing besides.
pub(crate) fn choose(panels: &[Piece], wholes: &[Piece], budget: usize) -> Choice {
    let panel_order = by_density(panels);
    let whole_order = by_density(wholes);
    let mut best: Option<(f64, Vec<bool>, Vec<bool>)> = None;
    for kept in sets(&whole_order, wholes.len()) {
        let (mut taken, mut worth) = (0_usize, 0.0);
        for (piece, _) in wholes.iter().zip(&kept).filter(|(_, kept)| **kept) {
            taken = taken.saturating_add(piece.bytes);
            worth += piece.cost;
        }
        let Some(left) = budget.checked_sub(taken) else {
            continue;
        };
        let (filled, more) = fill(panels, &panel_order, left);
        if best.as_ref().is_none_or(|(most, ..)| worth + more > *most) {
            best = Some((worth + more, filled, kept));
        }
    }
    match best {
        Some((_, panels, wholes)) => Choice { panels, wholes },
        None => Choice {
            panels: vec![false; panels.len()],
            wholes: vec![false; wholes.len()],
        },
    }
}

/// The pieces that fit into `budget`, taken in `order`, and what they are worth.
fn fill(pieces: &[Piece], order: &[usize], budget: usize) -> (Vec<bool>, f64) {
    let (mut left, mut worth) = (budget, 0.0);
    let mut kept = vec![false; pieces.len()];
    for &index in order {
        if let Some(rest) = left.checked_sub(pieces[index].bytes) {
            left = rest;
            worth += pieces[index].cost;
            kept[index] = true;
        }
    }
    (kept, worth)
}

/// Places of `pieces`, the highest cost per byte first; equal ones in their own order, so
/// that layers become resident as wholes where it does not matter.
fn by_density(pieces: &[Piece]) -> Vec<usize> {
    let density = |index: usize| pieces[index].cost / pieces[index].bytes.max(1) as f64;
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by(|&one, &other| density(other).total_cmp(&density(one)));
    order
}

/// The sets of whole tensors that are tried.
fn sets(order: &[usize], count: usize) -> Vec<Vec<bool>> {
    if count <= MOST_COMBINED {
        return (0..1_u32 << count)
            .map(|bits| (0..count).map(|index| bits >> index & 1 == 1).collect())
            .collect();
    }
    (0..=count)
        .map(|first| {
            let mut kept = vec![false; count];
            for &index in &order[..first] {
                kept[index] = true;
            }
            kept
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The worth of the best choice, by trying all of them.
    fn best_worth(pieces: &[Piece], budget: usize) -> f64 {
        (0..1_u32 << pieces.len())
            .filter_map(|bits| {
                let kept = pieces.iter().enumerate();
                let kept = kept.filter(|(index, _)| bits >> index & 1 == 1);
                let (bytes, worth) = kept.fold((0, 0.0), |(bytes, worth), (_, piece)| {
                    (bytes + piece.bytes, worth + piece.cost)
                });
                (bytes <= budget).then_some(worth)
            })
            .fold(0.0, f64::max)
    }

    fn total(pieces: &[Piece], kept: &[bool]) -> (usize, f64) {
        let kept = pieces.iter().zip(kept).filter(|(_, kept)| **kept);
        kept.fold((0, 0.0), |(bytes, worth), (piece, _)| {
            (bytes + piece.bytes, worth + piece.cost)
        })
    }

    fn pieces(most: usize, largest: usize) -> impl Strategy<Value = Vec<Piece>> {
        let piece = (1..=largest, 0.0..10.0).prop_map(|(bytes, cost)| Piece { bytes, cost });
        prop::collection::vec(piece, 0..=most)
    }

    proptest! {
        #[test]
        fn a_choice_fits_and_is_worth_the_best_less_one_panel(
            panels in pieces(9, 20),
            wholes in pieces(5, 200),
            budget in 0_usize..400,
        ) {
            let choice = choose(&panels, &wholes, budget);
            let (panel_bytes, panel_worth) = total(&panels, &choice.panels);
            let (whole_bytes, whole_worth) = total(&wholes, &choice.wholes);
            prop_assert!(panel_bytes + whole_bytes <= budget);
            let all: Vec<Piece> = panels.iter().chain(&wholes).copied().collect();
            let best = best_worth(&all, budget);
            let dearest = panels.iter().map(|piece| piece.cost).fold(0.0, f64::max);
            let worth = panel_worth + whole_worth;
            prop_assert!(
                worth > best - dearest - 1e-9,
                "{worth} of {best}, one panel {dearest}"
            );
        }

        #[test]
        fn whatever_there_is_room_for_is_kept(
            panels in pieces(9, 20),
            wholes in pieces(20, 200),
            more in 0_usize..10,
        ) {
            let all = panels.iter().chain(&wholes).map(|piece| piece.bytes).sum::<usize>();
            let choice = choose(&panels, &wholes, all + more);
            // What costs nothing need not be kept.
            let missing = |pieces: &[Piece], kept: &[bool]| {
                pieces.iter().zip(kept).any(|(piece, kept)| !kept && piece.cost > 0.0)
            };
            prop_assert!(!missing(&panels, &choice.panels));
            prop_assert!(!missing(&wholes, &choice.wholes));
        }

        #[test]
        fn many_whole_tensors_fit_too(
            wholes in pieces(30, 200),
            budget in 0_usize..3000,
        ) {
            let choice = choose(&[], &wholes, budget);
            prop_assert!(total(&wholes, &choice.wholes).0 <= budget);
        }
    }

    #[test]
    fn a_matrix_at_one_point_comes_before_a_convolution_at_many() {
        let usage = |points| Usage { passes: 1, points };
        let costs = Costs::ASSUMED;
        let matrix = costs.panel(100 << 10, usage(1));
        let convolution = costs.panel(100 << 10, usage(12_544));
        assert!(matrix > 2.0 * convolution, "{matrix} {convolution}");
        let panels: Vec<Piece> = [convolution, matrix]
            .map(|cost| Piece {
                bytes: 100 << 10,
                cost,
            })
            .into();
        let choice = choose(&panels, &[], 150 << 10);
        assert_eq!(choice.panels, [false, true]);
    }

    #[test]
    fn short_panels_come_before_long_ones_of_the_same_kind() {
        let costs = Costs::ASSUMED;
        let panel = |bytes| Piece {
            bytes,
            cost: costs.panel(bytes, Usage::UNKNOWN),
        };
        let choice = choose(&[panel(100 << 10), panel(1 << 10)], &[], 100 << 10);
        assert_eq!(choice.panels, [false, true]);
    }

    #[test]
    fn what_is_opened_twice_costs_twice() {
        let costs = Costs::ASSUMED;
        let twice = Usage {
            passes: 2,
            points: 1,
        };
        let (once, twice) = (
            costs.panel(1 << 16, Usage::UNKNOWN),
            costs.panel(1 << 16, twice),
        );
        assert!((twice - 2.0 * once).abs() < 1e-12);
    }

    #[test]
    fn opening_is_measured_here_and_costs_something() {
        let (_, costs) = cipher(None);
        assert!(costs.byte > 0.0 && costs.byte < 1e-6, "{costs:?}");
        assert!((0.0..1e-3).contains(&costs.start), "{costs:?}");
        assert_eq!(cipher(None).1, costs);
    }
}
