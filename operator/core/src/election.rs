//! Who is promoted: one pure function over the register and the reports of the sealed members. It neither asks nor
//! waits; who did not answer is missing from its input.
//!
//! The safety argument: a commit was acknowledged when W of N voters had
//! flushed it, so with R sealed voters and R + W > N one of them has it, and the furthest of them has every such commit.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{
    instance::SealReport,
    kinship::{is_holder, sort},
    lineage::came_to_nothing,
    lsn::Lsn,
    quantity::render_bytes,
    quorum::proves,
    register::{MemberId, Position, Register, Voter, VoterSet},
    timeline::{Relation, TimelineId},
};

/// What an election without a quorum (W = 0) goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ElectionRules {
    /// The last position that the primary wrote beside the register.
    pub last: Position,
    /// `failover.maxLag` in bytes: nobody further behind `last.flushed` is promoted without a quorum. None for no bound.
    pub max_lag: Option<u64>,
}

/// What became of one candidate, for people (`status.lastFailover.candidates`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateVerdict {
    /// Its pod.
    pub pod: String,
    /// The timeline it is on; None when it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// How far its WAL reaches; None when it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// One sentence.
    pub why: String,
}

/// The outcome of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Election {
    /// This one is promoted.
    Winner {
        /// Its report.
        winner: SealReport,
        /// Everyone that was looked at, the winner first.
        candidates: Vec<CandidateVerdict>,
        /// 0 with a quorum; without one, bytes between the winner's LSN and how far the primary may have come.
        possible_loss_bytes: u64,
    },
    /// Nobody may be promoted now.
    Blocked {
        /// Registered voters that did not seal.
        missing: Vec<Voter>,
        /// One sentence: what is missing, and what would help.
        why: String,
        /// Everyone that was looked at.
        candidates: Vec<CandidateVerdict>,
    },
}

/// How far a member's WAL reaches. A restarted replica forgets what it received before, but not what it replayed.
#[must_use]
pub fn reach(report: &SealReport) -> Lsn {
    report.received_lsn.max(report.replayed_lsn)
}

/// Decides who is promoted in `register.seal_term`.
///
/// With a promise in force (the committed W is above 0) only registered voters and the former holder stand, and R + W >
/// N must hold for the committed and for the pending set, unless the former holder answered: it has everything, and it
/// wins where the voters alone can't prove that they have. A pending set with W = 0 promises nothing and needs no proof.
/// Without a promise everyone who answered may stand, as long as the furthest is within `rules.max_lag`; a holder whose claim
/// came to nothing stands only where nobody else does.
///
/// Who may be on a branch that was left counts as if it had not answered.
#[must_use]
pub fn elect(register: &Register, reports: &[SealReport], rules: ElectionRules) -> Election {
    let ballot = Ballot::count(register, reports);
    let winner = if register.quorum.acks > 0 { ballot.with_quorum() } else { ballot.without_quorum(rules) };
    match winner {
        Ok(winner) => {
            // A pending set with W = 0 is applied by the primary before it is committed: then commits waited for nobody.
            let promised = register.quorum.acks > 0 && register.quorum_to_apply().acks > 0;
            let has_everything = promised || (ballot.is_holder(winner) && !ballot.is_idle(winner));
            let loss = if has_everything { 0 } else { rules.last.limit.bytes_since(reach(winner)) };
            Election::Winner {
                winner: winner.clone(),
                candidates: ballot.verdicts(Some(winner)),
                possible_loss_bytes: loss,
            }
        }
        Err(why) => Election::Blocked { missing: ballot.missing(), why, candidates: ballot.verdicts(None) },
    }
}

/// The reports of one election.
struct Ballot<'a> {
    register: &'a Register,
    /// One report of each member, furthest first.
    sealed: Vec<&'a SealReport>,
    /// Reports that promised another term.
    unsealed: Vec<&'a SealReport>,
    /// Reports of members that may be on a branch that was left.
    doubtful: Vec<&'a SealReport>,
}

impl<'a> Ballot<'a> {
    fn count(register: &'a Register, reports: &'a [SealReport]) -> Self {
        let (sealed, mut unsealed): (Vec<_>, Vec<_>) =
            reports.iter().partition(|report| report.sealed_term == register.seal_term);
        let mut by_member: BTreeMap<&MemberId, &SealReport> = BTreeMap::new();
        for report in sealed {
            let known = by_member.entry(&report.member).or_insert(report);
            if (reach(report), &report.pod) > (reach(known), &known.pod) {
                *known = report;
            }
        }
        let mut ranked: Vec<_> = by_member.into_values().map(|report| (rank(register, report), report)).collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0));
        unsealed.sort_by(|a, b| a.pod.cmp(&b.pod));
        let sealed = ranked.into_iter().map(|(_, report)| report).collect();
        Self { register, sealed, unsealed, doubtful: Vec::new() }.without_doubtful()
    }

    /// Found among those that may stand without the holder, which never needs them for its own proof.
    fn without_doubtful(self) -> Self {
        let counts = |report: &&SealReport| self.stands(report) && !self.is_holder(report);
        let standing: Vec<_> = self.sealed.iter().copied().filter(counts).collect();
        let doubtful = sort(self.register, &standing).doubtful;
        let sealed = self.sealed.into_iter().filter(|report| !doubtful.contains(report)).collect();
        Self { sealed, doubtful, ..self }
    }

    /// The winner by quorum, or why there is none.
    fn with_quorum(&self) -> Result<&'a SealReport, String> {
        let holder = self.sealed.iter().copied().find(|report| self.is_holder(report));
        let voters_prove =
            self.register.sets_to_prove().all(|set| proves(set.voters.len(), set.acks, self.sealed_of(set)));
        if holder.is_none() && !voters_prove {
            return Err(self.why_unproven());
        }
        // The holder has failed at its duty: it is taken back only if nobody else can prove that nothing is missing.
        let all = self.sealed.iter().copied().filter(|report| self.stands(report));
        let mut standing: Vec<_> = all.clone().filter(|report| !(voters_prove && self.is_holder(report))).collect();
        if standing.is_empty() {
            standing.extend(all);
        }
        self.furthest(&standing).ok_or_else(|| "no registered voter has answered, and nobody else may stand".to_owned())
    }

    /// The winner without a quorum, or why there is none.
    fn without_quorum(&self, rules: ElectionRules) -> Result<&'a SealReport, String> {
        let standing = sort(self.register, &self.sealed).on_history;
        let (idle, others): (Vec<_>, Vec<_>) = standing.into_iter().partition(|report| self.is_idle(report));
        let winner = self.within_lag(&others, rules);
        // It would win again and again by what it is ahead, and never serve.
        if idle.is_empty() { winner } else { winner.or_else(|_| self.within_lag(&idle, rules)) }
    }

    /// The furthest of these, if it is not too far behind.
    fn within_lag(&self, standing: &[&'a SealReport], rules: ElectionRules) -> Result<&'a SealReport, String> {
        let best = self.furthest(standing).ok_or_else(|| "no member has answered".to_owned())?;
        let lag = rules.last.flushed.bytes_since(reach(best));
        match rules.max_lag {
            Some(bound) if lag > bound && !self.is_holder(best) => Err(format!(
                "the furthest member, {}, is {} behind the last position of the primary, more than failover.maxLag ({}) allows",
                best.pod,
                render_bytes(lag),
                render_bytes(bound)
            )),
            _ => Ok(best),
        }
    }

    /// The furthest of those on the cluster's history.
    fn furthest(&self, standing: &[&'a SealReport]) -> Option<&'a SealReport> {
        sort(self.register, standing)
            .on_history
            .into_iter()
            .max_by(|a, b| rank(self.register, a).cmp(&rank(self.register, b)))
    }

    /// How many of the set have sealed. The former holder is not counted, though it is a voter of the set that it was
    /// itself elected by: whether the others can do without it is the question.
    fn sealed_of(&self, set: &VoterSet) -> usize {
        let votes = |report: &&&SealReport| {
            !self.is_holder(report) && set.voters.iter().any(|voter| voter.member == report.member)
        };
        self.sealed.iter().filter(votes).count()
    }

    fn is_holder(&self, report: &SealReport) -> bool {
        is_holder(self.register, &report.member)
    }

    /// It is the holder, and did not become primary in its term.
    fn is_idle(&self, report: &SealReport) -> bool {
        came_to_nothing(self.register, &report.member, report.history.timeline)
    }

    fn is_target(&self, report: &SealReport) -> bool {
        let target = self.register.handover.as_ref().and_then(|handover| handover.target.as_deref());
        target == Some(report.pod.as_str())
    }

    fn is_registered(&self, report: &SealReport) -> bool {
        self.voters().any(|voter| voter.member == report.member)
    }

    fn stands(&self, report: &SealReport) -> bool {
        self.register.quorum.acks == 0 || self.is_registered(report) || self.is_holder(report)
    }

    fn voters(&self) -> impl Iterator<Item = &'a Voter> {
        self.register.sets().flat_map(|set| &set.voters)
    }

    /// Registered voters that did not seal, each once, in order.
    fn missing(&self) -> Vec<Voter> {
        let mut missing: Vec<Voter> = self
            .voters()
            .filter(|voter| self.sealed.iter().all(|report| report.member != voter.member))
            .cloned()
            .collect();
        missing.sort_by(|a, b| (pod_order(&a.pod), a).cmp(&(pod_order(&b.pod), b)));
        missing.dedup();
        missing
    }

    fn why_unproven(&self) -> String {
        let mut sets = self.register.sets_to_prove();
        let unproven = sets.find(|set| !proves(set.voters.len(), set.acks, self.sealed_of(set)));
        let (voters, acks, sealed) =
            unproven.map_or((0, 0, 0), |set| (set.voters.len(), set.acks as usize, self.sealed_of(set)));
        let pods: Vec<String> = self.missing().into_iter().map(|voter| voter.pod).collect();
        let doubt: Vec<String> = self
            .doubtful
            .iter()
            .map(|report| format!("; {} does not count: {}", report.pod, why_doubtful(report)))
            .collect();
        format!(
            "{sealed} of {voters} registered voters have answered; with {acks} acknowledgement(s) per commit at least {} \
             must, or the former primary, else an acknowledged commit could be lost. Missing: {}{}",
            (voters + 1).saturating_sub(acks),
            pods.join(", "),
            doubt.concat()
        )
    }

    /// What became of everyone.
    fn verdicts(&self, winner: Option<&SealReport>) -> Vec<CandidateVerdict> {
        let (first, rest): (Vec<&SealReport>, Vec<&SealReport>) =
            self.sealed.iter().copied().partition(|report| Some(*report) == winner);
        let sealed = first.into_iter().chain(rest).map(|report| (report, self.why_sealed(report, winner)));
        let unsealed = self.unsealed.iter().map(|report| {
            (*report, format!("promised term {} instead of {}", report.sealed_term, self.register.seal_term))
        });
        let doubtful = self.doubtful.iter().map(|report| (*report, why_doubtful(report)));
        let mute = |voter: &Voter| self.unsealed.iter().chain(&self.doubtful).all(|r| r.member != voter.member);
        let silent = self.missing().into_iter().filter(mute);
        let silent = silent.map(|voter| {
            let copied = self.sealed.iter().any(|report| report.pod == voter.pod);
            let why =
                if copied { "its registered data directory was replaced by a new copy" } else { "did not answer" };
            CandidateVerdict { pod: voter.pod, timeline: None, lsn: None, why: why.to_owned() }
        });
        let answered = sealed.chain(doubtful).chain(unsealed).map(|(report, why)| CandidateVerdict {
            pod: report.pod.clone(),
            timeline: Some(report.history.timeline),
            lsn: Some(reach(report)),
            why,
        });
        answered.chain(silent).collect()
    }

    fn why_sealed(&self, report: &SealReport, winner: Option<&SealReport>) -> String {
        if !self.stands(report) {
            return "not a registered voter: it may miss acknowledged commits".to_owned();
        }
        let Some(winner) = winner else {
            return "answered and could stand".to_owned();
        };
        if self.is_idle(report) {
            let term = self.register.term;
            return if report == winner {
                format!("chosen again, since nobody else can be, though it did not become primary in term {term}")
            } else {
                format!("was chosen for term {term} and did not become primary; {} can be chosen instead", winner.pod)
            };
        }
        if report == winner {
            let alone = self.sealed.iter().filter(|other| self.stands(other)).count() == 1;
            return if alone { "the only candidate that answered" } else { "furthest ahead" }.to_owned();
        }
        match report.history.compare(reach(report), &winner.history, reach(winner)) {
            Relation::Ahead { bytes } | Relation::Behind { bytes }
                if self.is_holder(report) && self.register.quorum.acks > 0 =>
            {
                format!("the former primary, {} away: the voters do without it", render_bytes(bytes))
            }
            Relation::Same if self.is_target(winner) => {
                format!("level with {}, which the switchover asks for", winner.pod)
            }
            Relation::Same => format!("level with {}, which comes first by its name", winner.pod),
            Relation::Behind { bytes: 0 } => format!("level with {}, but on an older timeline", winner.pod),
            Relation::Behind { bytes } => format!("{} behind {}", render_bytes(bytes), winner.pod),
            Relation::Diverged { at } => format!("left the history of {} at {at}", winner.pod),
            Relation::Ahead { .. } => {
                format!(
                    "on a branch that was left: its timeline {} is not that of term {}",
                    report.history.timeline.0, self.register.term
                )
            }
        }
    }
}

/// The order of candidates on one history, the greatest wins: the timeline, how far it reaches; then anyone before the
/// holder that is being replaced, then whom a handover asks for, then the lowest ordinal.
type Rank<'a> = (TimelineId, Lsn, bool, bool, Reverse<(u64, &'a str)>);

fn rank<'a>(register: &Register, report: &'a SealReport) -> Rank<'a> {
    let holder = is_holder(register, &report.member);
    let target = register.handover.as_ref().and_then(|handover| handover.target.as_deref());
    let preferred = target == Some(report.pod.as_str());
    (report.history.timeline, reach(report), !holder, preferred, Reverse(pod_order(&report.pod)))
}

fn why_doubtful(report: &SealReport) -> String {
    let timeline = report.history.timeline.0;
    format!(
        "it is ahead on timeline {timeline}, and it is not remembered any more whether that is the one that others were on after \
         term {}",
        report.term
    )
}

/// Pods in the order of people: `shop-2` before `shop-10`.
pub(crate) fn pod_order(pod: &str) -> (u64, &str) {
    let ordinal = pod.rsplit_once('-').and_then(|(_, digits)| digits.parse().ok());
    (ordinal.unwrap_or(u64::MAX), pod)
}
