//! Building one instance anew because somebody asked for it: whether that may begin. Nothing is given up by it: the old data
//! directory is kept until the new one streams, and commits must not have to wait for the copy.

use std::collections::BTreeMap;

use super::observation::PodView;
use crate::{
    instance::{InstanceStatus, Phase},
    register::{MemberId, Register},
};

/// Why an instance is not built anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// There is no such pod.
    #[error("{0} is not an instance of this cluster that exists")]
    NoInstance(String),
    /// It holds the primary role.
    #[error("{0} is the primary: ask for a switchover first")]
    Primary(String),
    /// The primary's role is moving, or nobody serves.
    #[error("there is no primary to copy from: {0}")]
    NoPrimary(String),
    /// It can't be told to.
    #[error("{0} does not answer")]
    Silent(String),
    /// Commits would have to wait for the copy.
    #[error("commits wait for {acks} of the voters, and without {pod} only {left} of them stream")]
    CommitsWouldWait {
        /// The pod.
        pod: String,
        /// W.
        acks: u32,
        /// Voters left.
        left: usize,
    },
}

/// Whether the instance in `pod` may be built anew now. `pods` are all that exist.
///
/// # Errors
/// [`RebuildError`] says why not.
pub fn decide_rebuild(register: &Register, pods: &BTreeMap<String, PodView>, pod: &str) -> Result<(), RebuildError> {
    let view = pods.get(pod).ok_or_else(|| RebuildError::NoInstance(pod.to_owned()))?;
    let primary = serving(register, pods)?;
    if primary.pod == pod {
        return Err(RebuildError::Primary(pod.to_owned()));
    }
    let status = view.status().ok_or_else(|| RebuildError::Silent(pod.to_owned()))?;
    for set in register.sets() {
        let left = set.voters.iter().filter(|voter| Some(&voter.member) != status.member.as_ref());
        let left = left.filter(|voter| streams(primary, &voter.member)).count();
        if left < set.acks as usize {
            return Err(RebuildError::CommitsWouldWait { pod: pod.to_owned(), acks: set.acks, left });
        }
    }
    Ok(())
}

fn streams(primary: &InstanceStatus, member: &MemberId) -> bool {
    primary.standbys.iter().any(|standby| standby.member == *member && standby.state == "streaming")
}

fn serving<'a>(register: &Register, pods: &'a BTreeMap<String, PodView>) -> Result<&'a InstanceStatus, RebuildError> {
    let none = |why: &str| RebuildError::NoPrimary(why.to_owned());
    let holder = register.holder.as_ref().ok_or_else(|| none("the cluster has none yet"))?;
    if register.is_sealing() || register.released || register.handover.is_some() {
        return Err(RebuildError::NoPrimary(format!("the role of {} is moving", holder.pod)));
    }
    let status = pods.get(&holder.pod).filter(|view| view.uid == holder.pod_uid).and_then(PodView::status);
    status
        .filter(|status| status.is_primary && status.phase == Phase::Primary && status.term == register.term)
        .ok_or_else(|| RebuildError::NoPrimary(format!("{} does not serve", holder.pod)))
}
