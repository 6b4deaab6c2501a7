//! The level of compression: within its bounds, where the shorter of processor and network has it, and at rest once it is there.

use pgherd_core::compression::{
    HIGHEST_LEVEL, LOWEST_LEVEL, LevelBounds, LevelCount, LevelState, LevelsUsed, Queues, RESTING_LEVEL,
};
use proptest::prelude::*;

const SOURCE_IS_SLOW: Queues = Queues { source_waited: false, parts_full: false, shrinks: true };
const PROCESSOR_IS_SHORT: Queues = Queues { source_waited: true, parts_full: false, shrinks: true };
const NETWORK_IS_SHORT: Queues = Queues { source_waited: true, parts_full: true, shrinks: true };

fn bounds(lowest: i32, highest: i32) -> LevelBounds {
    LevelBounds::new(lowest, highest).expect("bounds")
}

fn any_bounds() -> impl Strategy<Value = LevelBounds> {
    let level = || (LOWEST_LEVEL..=HIGHEST_LEVEL).prop_filter("0 is no level", |level| *level != 0);
    (level(), level()).prop_map(|(a, b)| bounds(a.min(b), a.max(b)))
}

fn any_queues() -> impl Strategy<Value = Queues> {
    any::<(bool, bool, bool)>().prop_map(|(source_waited, parts_full, shrinks)| Queues {
        source_waited,
        parts_full,
        shrinks,
    })
}

/// The level after each frame of the same queues.
fn run(bounds: LevelBounds, frames: usize, queues: impl Fn(i32) -> Queues) -> Vec<i32> {
    let mut state = LevelState::new(bounds);
    let step = |_| {
        state = state.next(queues(state.level()));
        state.level()
    };
    (0..frames).map(step).collect()
}

fn changes(levels: &[i32]) -> usize {
    levels.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// A machine and a network that stay as they are, in MB/s of what is read; each level costs and saves the same share.
#[derive(Clone, Debug)]
struct World {
    source: f64,
    processor: f64,
    network: f64,
    cost: f64,
    gain: f64,
}

impl World {
    fn rates(&self, level: i32) -> (f64, f64) {
        (self.processor / self.cost.powi(level), self.network * self.gain.powi(level))
    }

    fn queues(&self, level: i32) -> Queues {
        let (processor, network) = self.rates(level);
        let source_waited = self.source > processor.min(network);
        Queues { source_waited, parts_full: source_waited && network < processor, shrinks: true }
    }

    fn speed(&self, level: i32) -> f64 {
        let (processor, network) = self.rates(level);
        self.source.min(processor).min(network)
    }
}

fn world() -> impl Strategy<Value = World> {
    (10.0..3000.0, 10.0..3000.0, 10.0..3000.0, 1.05..1.6, 1.005..1.15)
        .prop_map(|(source, processor, network, cost, gain)| World { source, processor, network, cost, gain })
}

proptest! {
    #[test]
    fn the_level_stays_within_its_bounds_and_moves_by_one_at_a_time(
        bounds in any_bounds(), queues in prop::collection::vec(any_queues(), 0..500),
    ) {
        let mut state = LevelState::new(bounds);
        for queues in queues {
            let before = state.level();
            state = state.next(queues);
            prop_assert!((bounds.lowest()..=bounds.highest()).contains(&state.level()));
            // From 1 it is one step to -1.
            prop_assert!(state.level() != 0 && (state.level() - before).abs() <= 1 + i32::from(before.abs() == 1));
        }
    }

    #[test]
    fn in_a_world_that_stays_the_level_settles_at_one_of_the_best(world in world(), bounds in any_bounds()) {
        let levels = run(bounds, 60_000, |level| world.queues(level));
        let settled = &levels[20_000..];
        // The longest patience is 64 windows of 8 frames, and every probe that fails is taken back.
        prop_assert!(changes(settled) <= 2 * settled.len() / 512 + 2, "{} changes", changes(settled));
        let (low, high) = (settled.iter().min().copied(), settled.iter().max().copied());
        let (Some(low), Some(high)) = (low, high) else { return Ok(()) };
        prop_assert!(high - low <= 1 || (low, high) == (-1, 1), "between {low} and {high}");
        // No level of the bounds would have been better by more than a step's share (from 1 to -1 it is two).
        let reached = world.speed(low).max(world.speed(high));
        let best = (bounds.lowest()..=bounds.highest()).filter(|level| *level != 0).map(|level| world.speed(level));
        let best = best.fold(0.0, f64::max);
        prop_assert!(reached * world.cost.max(world.gain).powi(2) >= best * 0.999, "{reached} of {best}");
    }

    #[test]
    fn data_that_does_not_shrink_never_gets_more_than_rest(queues in prop::collection::vec(any_queues(), 0..500)) {
        let mut state = LevelState::new(bounds(LOWEST_LEVEL, HIGHEST_LEVEL));
        for queues in queues {
            state = state.next(Queues { shrinks: false, ..queues });
            prop_assert!(state.level() <= RESTING_LEVEL);
        }
    }

    #[test]
    fn what_was_used_is_counted(levels in prop::collection::vec(-50_i32..=19, 0..300)) {
        let mut count = LevelCount::default();
        levels.iter().for_each(|level| count.note(*level));
        let Some(used) = count.used() else {
            prop_assert!(levels.is_empty());
            return Ok(());
        };
        prop_assert_eq!((Some(used.lowest), Some(used.highest)), (levels.iter().min().copied(), levels.iter().max().copied()));
        prop_assert!(used.lowest * 100 <= used.mean_hundredths && used.mean_hundredths <= used.highest * 100);
    }
}

#[test]
fn a_slow_network_raises_the_level_to_its_bound_and_a_slow_processor_lowers_it() {
    let bounds = bounds(-5, 6);
    assert_eq!(run(bounds, 80, |_| NETWORK_IS_SHORT).last(), Some(&6));
    assert_eq!(run(bounds, 80, |_| PROCESSOR_IS_SHORT).last(), Some(&-5));
    assert_eq!(changes(&run(bounds, 800, |_| SOURCE_IS_SLOW)), 0);
}

#[test]
fn a_part_that_leaves_lets_several_frames_pass_without_a_wait() {
    let mut state = LevelState::new(bounds(1, 6));
    for frame in 0..80 {
        state = state.next(Queues { source_waited: frame % 5 == 0, ..NETWORK_IS_SHORT });
    }
    assert_eq!(state.level(), 6);
    let enough = run(bounds(1, 6), 80, |_| Queues { source_waited: false, ..NETWORK_IS_SHORT });
    assert_eq!(enough.last(), Some(&1), "all parts on their way, and nobody waits");
}

#[test]
fn when_the_network_is_fast_again_the_level_goes_back_to_rest() {
    let mut state = LevelState::new(bounds(1, 6));
    for _ in 0..80 {
        state = state.next(NETWORK_IS_SHORT);
    }
    assert_eq!(state.level(), 6);
    for _ in 0..400 {
        state = state.next(SOURCE_IS_SLOW);
    }
    assert_eq!(state.level(), RESTING_LEVEL);
}

#[test]
fn single_frames_out_of_line_change_nothing() {
    let mut state = LevelState::new(bounds(-5, 6));
    for frame in 0..4000 {
        let queues = [NETWORK_IS_SHORT, PROCESSOR_IS_SHORT, SOURCE_IS_SLOW, SOURCE_IS_SLOW][frame % 4];
        state = state.next(queues);
        assert_eq!(state.level(), RESTING_LEVEL);
    }
}

#[test]
fn a_default_gives_way_to_what_is_asked_for() {
    let of = |lowest, highest| LevelBounds::of(lowest, highest).map(|levels| (levels.lowest(), levels.highest()));
    assert_eq!(of(None, None), Ok((1, 6)));
    assert_eq!(of(Some(-5), None), Ok((-5, 6)));
    assert_eq!(of(Some(9), None), Ok((9, 9)));
    assert_eq!(of(None, Some(-3)), Ok((-3, -3)));
    assert!(of(Some(3), Some(2)).is_err() && of(None, Some(0)).is_err());
}

#[test]
fn the_mean_is_told_with_two_places() {
    let mean = |mean_hundredths| LevelsUsed { lowest: 0, highest: 0, mean_hundredths }.render_mean();
    assert_eq!([mean(125), mean(100), mean(-35), mean(-207)], ["1.25", "1.00", "-0.35", "-2.07"]);
}

#[test]
fn bounds_that_cross_and_levels_that_are_none_are_refused() {
    assert!(LevelBounds::new(1, 1).is_ok());
    for (lowest, highest) in [(0, 3), (-5, 0), (3, 1), (-51, 1), (1, 20)] {
        assert!(LevelBounds::new(lowest, highest).is_err(), "{lowest} {highest}");
    }
}
