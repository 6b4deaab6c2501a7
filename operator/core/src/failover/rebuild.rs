//! Building one instance anew because somebody asked for it: whether that may begin. Nothing is given up by it: the old data
//! directory is kept until the new one streams, and commits must not have to wait for the copy.

use std::collections::BTreeMap;

use super::{
    handover::{sent_to, serving},
    observation::PodView,
};
use crate::{instance::InstanceStatus, register::Register};

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
    let primary = observe_primary(register, pods)?;
    if primary.pod == pod {
        return Err(RebuildError::Primary(pod.to_owned()));
    }
    let status = view.status().ok_or_else(|| RebuildError::Silent(pod.to_owned()))?;
    for set in register.sets() {
        let left = set.voters.iter().filter(|voter| Some(&voter.member) != status.member.as_ref());
        let left = left.filter(|voter| sent_to(primary, Some(&voter.member))).count();
        if left < set.acks as usize {
            return Err(RebuildError::CommitsWouldWait { pod: pod.to_owned(), acks: set.acks, left });
        }
    }
    Ok(())
}

fn observe_primary<'a>(
    register: &Register,
    pods: &'a BTreeMap<String, PodView>,
) -> Result<&'a InstanceStatus, RebuildError> {
    let holder =
        register.holder.as_ref().ok_or_else(|| RebuildError::NoPrimary("the cluster has none yet".to_owned()))?;
    if register.is_sealing() || register.released || register.handover.is_some() {
        return Err(RebuildError::NoPrimary(format!("the role of {} is moving", holder.pod)));
    }
    serving(register, pods, holder).ok_or_else(|| RebuildError::NoPrimary(format!("{} does not serve", holder.pod)))
}
