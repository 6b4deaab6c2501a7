//! Mode `Preferred`: how many replicas a commit waits for, from who is there. The voters change by the same joint change as
//! ever; here only W is chosen.

use std::collections::BTreeMap;

use crate::register::{MemberId, VoterSet};

/// A voter that is missing for less than this, in milliseconds, is still waited for.
pub const MISSING_MS: u64 = 3_000;

/// Since when each voter does not stream; kept by the caller from round to round. Losing it makes commits wait a little
/// longer, no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    missing_since_ms: BTreeMap<MemberId, u64>,
}

impl Attendance {
    /// Takes in who streams now. `known` are the members that could.
    #[must_use]
    pub fn update(&self, now_ms: u64, known: &[MemberId], streaming: &[MemberId]) -> Self {
        let missing = known.iter().filter(|member| !streaming.contains(member));
        let since = |member: &MemberId| self.missing_since_ms.get(member).copied().unwrap_or(now_ms);
        Self { missing_since_ms: missing.map(|member| (member.clone(), since(member))).collect() }
    }

    /// The member was there a moment ago.
    fn is_briefly_missing(&self, member: &MemberId, now_ms: u64) -> bool {
        self.missing_since_ms.get(member).is_some_and(|since| now_ms.saturating_sub(*since) < MISSING_MS)
    }
}

/// The W to ask for: `wanted` while that many replicas stream, fewer while they don't. It rises at once, and falls only
/// when a voter has been missing for [`MISSING_MS`], so that a restarted replica does not weaken the promise.
#[must_use]
pub fn decide_acks(
    wanted: u32,
    in_force: &VoterSet,
    streaming: &[MemberId],
    attendance: &Attendance,
    now_ms: u64,
) -> u32 {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let there = count(streaming.len()).min(wanted);
    let absent = in_force.voters.iter().map(|voter| &voter.member).filter(|member| !streaming.contains(member));
    let expected = absent.filter(|member| attendance.is_briefly_missing(member, now_ms)).count();
    let kept = count(streaming.len() + expected).min(in_force.acks).min(wanted);
    there.max(kept)
}
