//! With which level of zstd the next frame of a backup is compressed, by where the work piles up: what waits in front of the
//! compressors wants a faster level, what waits behind them a higher one. Frames are independent, so each may have its own.
//!
//! No clock and no I/O: what is counted are frames. A level is left only when most frames of a window say so, and one that was
//! left and came back is kept longer each time, so that the level settles instead of swinging.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// The fastest level that may be asked for; hardly more than a copy.
pub const LOWEST_LEVEL: i32 = -50;
/// The highest level that may be asked for.
pub const HIGHEST_LEVEL: i32 = 19;
/// The level where nothing speaks for another.
pub const RESTING_LEVEL: i32 = 1;
/// The highest level that is used without being asked for.
pub const DEFAULT_HIGHEST_LEVEL: i32 = 6;

/// Frames that are looked at before the level may change.
const WINDOW: u32 = 8;
/// So many frames of a window must say the same.
const AGREEMENT: u32 = 6;
/// Windows that have to agree before the level goes back to where it just came from, at first and at most.
const PATIENCE: u32 = 4;
const MAX_PATIENCE: u32 = 64;

/// Within which the level may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelBounds {
    lowest: i32,
    highest: i32,
}

/// The bounds are not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// A level that is not known, or 0, by which zstd means another one.
    #[error("{0} is not a level: it must be {LOWEST_LEVEL} to {HIGHEST_LEVEL} and not 0")]
    Unknown(i32),
    /// The lowest level is above the highest.
    #[error("the lowest level, {lowest}, is above the highest, {highest}")]
    Crossed {
        /// As given.
        lowest: i32,
        /// As given.
        highest: i32,
    },
}

impl LevelBounds {
    /// Bounds, both included.
    ///
    /// # Errors
    /// [`LevelError`].
    pub fn new(lowest: i32, highest: i32) -> Result<Self, LevelError> {
        if let Some(level) = [lowest, highest].into_iter().find(|level| !is_level(*level)) {
            return Err(LevelError::Unknown(level));
        }
        if lowest > highest { Err(LevelError::Crossed { lowest, highest }) } else { Ok(Self { lowest, highest }) }
    }

    /// The bounds that are given, and the defaults for the others; a default gives way.
    ///
    /// # Errors
    /// [`LevelError`].
    pub fn of(lowest: Option<i32>, highest: Option<i32>) -> Result<Self, LevelError> {
        let default = Self::default();
        let low = lowest.unwrap_or(default.lowest.min(highest.unwrap_or(default.lowest)));
        Self::new(low, highest.unwrap_or(default.highest.max(low)))
    }

    /// The lowest level.
    #[must_use]
    pub fn lowest(self) -> i32 {
        self.lowest
    }

    /// The highest level.
    #[must_use]
    pub fn highest(self) -> i32 {
        self.highest
    }

    fn resting(self) -> i32 {
        RESTING_LEVEL.clamp(self.lowest, self.highest)
    }
}

/// From [`RESTING_LEVEL`] to the highest level whose memory a backup's bound allows for.
impl Default for LevelBounds {
    fn default() -> Self {
        Self { lowest: RESTING_LEVEL, highest: DEFAULT_HIGHEST_LEVEL }
    }
}

fn is_level(level: i32) -> bool {
    level != 0 && (LOWEST_LEVEL..=HIGHEST_LEVEL).contains(&level)
}

/// The queues around the compressors at the moment in which a frame goes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// In front: the source had to wait for a free frame.
    pub source_waited: bool,
    /// Behind: every part is on its way to the store or waits for it.
    pub parts_full: bool,
    /// The newest finished frame became smaller by being compressed: a higher level may make the next ones smaller still.
    pub shrinks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Faster,
    Smaller,
}

/// What one frame speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    Faster,
    Smaller,
    Rest,
}

/// What a window wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// The queue in front is full, or the one behind.
    Pressed(Direction),
    /// Neither is: back to rest, which lies there.
    Resting(Direction),
}

impl Wish {
    fn direction(self) -> Direction {
        match self {
            Self::Pressed(direction) | Self::Resting(direction) => direction,
        }
    }
}

/// The frames of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    frames: u32,
    faster: u32,
    smaller: u32,
    rest: u32,
    /// For so many the source had to wait, whatever for.
    waited: u32,
}

/// Where the level stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelState {
    bounds: LevelBounds,
    level: i32,
    tally: Tally,
    /// Windows in a row that wish the same.
    agreeing: Option<(Wish, u32)>,
    /// The last step, and what it was for.
    last: Option<Wish>,
    patience: u32,
}

impl LevelState {
    /// At rest.
    #[must_use]
    pub fn new(bounds: LevelBounds) -> Self {
        let level = bounds.resting();
        Self { bounds, level, tally: Tally::default(), agreeing: None, last: None, patience: PATIENCE }
    }

    /// The level for the next frame.
    #[must_use]
    pub fn level(&self) -> i32 {
        self.level
    }

    /// The state after another frame met these queues.
    #[must_use]
    pub fn next(mut self, queues: Queues) -> Self {
        match decide_vote(queues) {
            Vote::Faster => self.tally.faster += 1,
            Vote::Smaller => self.tally.smaller += 1,
            Vote::Rest => self.tally.rest += 1,
        }
        self.tally.frames += 1;
        self.tally.waited += u32::from(queues.source_waited);
        if self.tally.frames < WINDOW {
            return self;
        }
        let wish = self.decide_wish();
        self.tally = Tally::default();
        match wish {
            Some(wish) => self.follow(wish),
            None => Self { agreeing: None, ..self },
        }
    }

    fn decide_wish(&self) -> Option<Wish> {
        let Tally { faster, smaller, rest, waited, .. } = self.tally;
        if faster >= AGREEMENT {
            return Some(Wish::Pressed(Direction::Faster));
        }
        // One wait is enough: a part that leaves makes room for several frames, which then pass without one.
        if smaller >= AGREEMENT && waited > 0 {
            return Some(Wish::Pressed(Direction::Smaller));
        }
        match self.level.cmp(&self.bounds.resting()) {
            Ordering::Less if rest >= AGREEMENT => Some(Wish::Resting(Direction::Smaller)),
            Ordering::Greater if rest >= AGREEMENT => Some(Wish::Resting(Direction::Faster)),
            _ => None,
        }
    }

    fn follow(mut self, wish: Wish) -> Self {
        let windows = match self.agreeing {
            Some((agreed, windows)) if agreed == wish => windows.saturating_add(1),
            _ => 1,
        };
        self.agreeing = Some((wish, windows));
        let level = self.step(wish.direction());
        if level == self.level || windows < self.needed(wish) {
            return self;
        }
        let goes_back = self.last.is_some_and(|last| last.direction() != wish.direction());
        self.patience = if goes_back { (self.patience * 2).min(MAX_PATIENCE) } else { PATIENCE };
        Self { level, last: Some(wish), agreeing: None, ..self }
    }

    /// Pressure is followed at once, unless it asks for what the opposite pressure just led away from. Rest has time.
    fn needed(&self, wish: Wish) -> u32 {
        match (wish, self.last) {
            (Wish::Pressed(now), Some(Wish::Pressed(last))) if now != last => self.patience,
            (Wish::Pressed(_), _) => 1,
            _ => self.patience,
        }
    }

    fn step(&self, direction: Direction) -> i32 {
        let level = match (direction, self.level) {
            (Direction::Faster, 1) => -1,
            (Direction::Smaller, -1) => 1,
            (Direction::Faster, level) => level - 1,
            (Direction::Smaller, level) => level + 1,
        };
        if (self.bounds.lowest..=self.bounds.highest).contains(&level) { level } else { self.level }
    }
}

fn decide_vote(queues: Queues) -> Vote {
    match queues {
        Queues { source_waited: true, parts_full: false, .. } => Vote::Faster,
        Queues { parts_full: true, shrinks: true, .. } => Vote::Smaller,
        // Neither side is short, or a higher level would only cost time.
        Queues { .. } => Vote::Rest,
    }
}

/// The levels that the frames of a backup were compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelsUsed {
    /// The lowest.
    pub lowest: i32,
    /// The highest.
    pub highest: i32,
    /// The mean over all frames, in hundredths.
    pub mean_hundredths: i32,
}

impl LevelsUsed {
    /// The mean for people: `-0.35`.
    #[must_use]
    pub fn render_mean(&self) -> String {
        let sign = if self.mean_hundredths < 0 { "-" } else { "" };
        let hundredths = self.mean_hundredths.unsigned_abs();
        format!("{sign}{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

/// Counts levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelCount {
    frames: i64,
    sum: i64,
    range: Option<(i32, i32)>,
}

impl LevelCount {
    /// One more frame of this level.
    pub fn note(&mut self, level: i32) {
        let (lowest, highest) = self.range.unwrap_or((level, level));
        self.range = Some((lowest.min(level), highest.max(level)));
        self.frames = self.frames.saturating_add(1);
        self.sum = self.sum.saturating_add(i64::from(level));
    }

    /// What was used; none when there was no frame.
    #[must_use]
    pub fn used(&self) -> Option<LevelsUsed> {
        let (lowest, highest) = self.range?;
        let mean = self.sum.saturating_mul(100) / self.frames.max(1);
        Some(LevelsUsed { lowest, highest, mean_hundredths: i32::try_from(mean).unwrap_or_default() })
    }
}
