//! A promotion that somebody forces while no quorum can be had: granted only for the present term, and only to who has
//! sealed in this round.

use kube::runtime::events::EventType;
use pgherd_core::{
    election::{CandidateVerdict, reach},
    failover::{decide_force, parse_force},
    instance::SealReport,
    lineage::Fork,
    register::LeaseView,
};
use pgherd_crds::names::keys;

use super::{Round, claim::Winner};
use crate::controllers::postgres_cluster::decide::{Answer, Request};

impl Round<'_> {
    /// The winner by force, if there is a request that is to be granted. One that is not is answered.
    pub(super) async fn grant_force(
        &mut self,
        seen: &LeaseView,
        reports: &[SealReport],
        candidates: &[CandidateVerdict],
    ) -> Option<Winner> {
        let request = Request { key: keys::FORCE_PROMOTE, value: self.cluster.requests.force_promote.clone()? };
        let asked = parse_force(&request.value, seen.register.term);
        let granted = asked.and_then(|asked| decide_force(&seen.register, Some(reports), &asked).cloned());
        let report = match granted {
            Ok(report) => report,
            Err(error) => {
                self.answer(&[Answer { request, refused: Some(error.to_string()) }]).await;
                return None;
            }
        };
        let pod_uid = self.observed.pod(&report.pod)?.uid.clone();
        if !self.request_stands(&request).await {
            return None;
        }
        let possible_loss_bytes = seen.lsn.bytes_since(reach(&report));
        let note = format!(
            "{} is promoted by force after term {}: acknowledged commits that only the missing voters have are lost",
            report.pod, seen.register.term
        );
        tracing::warn!(cluster = self.cluster.name, note, "a promotion is forced");
        self.tell(EventType::Warning, "PromotionForced", note);
        let fork = Fork::of(seen.register.seal_term, &report);
        let (pod, member, candidates) = (report.pod, report.member, candidates.to_vec());
        Some(Winner { pod, pod_uid, member, fork, candidates, possible_loss_bytes, forced: Some(request) })
    }
}
