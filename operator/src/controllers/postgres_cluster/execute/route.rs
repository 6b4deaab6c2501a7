//! Role labels on pods, which decide where `<cluster>-rw` and `<cluster>-ro` lead.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use pgherd_core::instance::Phase;
use pgherd_crds::names::{ROLE_PRIMARY, keys};
use serde_json::json;

use super::{ExecuteError, Round};
use crate::controllers::postgres_cluster::decide::{Memory, RoleChange};

impl Round<'_> {
    /// Changes the labels, in this order.
    pub(super) async fn change_roles(&mut self, changes: &[RoleChange]) -> Result<(), ExecuteError> {
        for change in changes {
            self.change_role(change).await?;
        }
        Ok(())
    }

    /// Changes one label, unless this round has done so. A pod that is gone, or that was made again, has no label to change.
    pub(super) async fn change_role(&mut self, change: &RoleChange) -> Result<(), ExecuteError> {
        if self.done.roles.get(&change.pod).is_some_and(|role| role.as_deref() == change.role) {
            return Ok(());
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.cluster.namespace);
        // The UID makes the API server refuse the patch for another pod of the same name.
        let patch = json!({"metadata": {"uid": change.uid, "labels": {keys::ROLE: change.role}}});
        self.context.metrics.api_writes.inc();
        match api.patch(&change.pod, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                tracing::info!(
                    cluster = self.cluster.name,
                    pod = change.pod,
                    role = change.role,
                    "changed the role label"
                );
                self.done.roles.insert(change.pod.clone(), change.role.map(str::to_owned));
                Ok(())
            }
            // Another UID is an immutable field that changes: Invalid.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() || status.is_invalid() => {
                Ok(())
            }
            Err(source) => Err(ExecuteError::Label { pod: change.pod.clone(), source: Box::new(source) }),
        }
    }

    /// Closes the record of a failover once its winner is routed to, in this round or by what this round saw.
    pub(super) fn note_completed(&self, memory: &mut Memory) {
        let now_ms = self.context.clock.now().monotonic_ms;
        let Some(failover) = memory.failover.as_mut() else { return };
        let term = failover.term;
        let Some(claimed) = failover.claimed.as_mut() else { return };
        let serves = self
            .observed
            .admitting_holder()
            .is_some_and(|status| status.pod_uid == claimed.to_uid && status.term == term);
        let polled = self
            .done
            .statuses
            .get(&claimed.to)
            .is_some_and(|status| status.is_primary && status.phase == Phase::Primary && status.term == term);
        if serves || polled {
            claimed.promoted_at_ms.get_or_insert(now_ms);
        }
        let label = match self.done.roles.get(&claimed.to) {
            Some(role) => role.as_deref(),
            None => self.observed.pod(&claimed.to).and_then(|pod| pod.role.as_deref()),
        };
        if label != Some(ROLE_PRIMARY) {
            return;
        }
        if let Some(record) = failover.completed(now_ms) {
            self.context.metrics.failover_took(&record);
            memory.last_failover = Some(record);
            memory.failover = None;
        }
    }
}
