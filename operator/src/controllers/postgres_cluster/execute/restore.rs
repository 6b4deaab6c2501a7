//! A restore in place: asking an instance whether it can be done, and the Backup that follows it.

use kube::{Api, api::PostParams};
use pgherd_core::{failover::RestoreRequest, instance::RestoreAnswer};
use pgherd_crds::{
    Backup, BackupSpec,
    names::{self, keys},
    v1alpha1::shared::LocalReference,
};

use super::{AT_ONCE_MS, ExecuteError, Round};
use crate::{
    controllers::postgres_cluster::decide::{Memory, RestoreAction, RestoreMemory},
    kubernetes::agent_client::AgentCallError,
    telemetry::error_chain,
};

impl Round<'_> {
    pub(super) async fn restore(&mut self, action: &RestoreAction, memory: &mut Memory) -> Result<(), ExecuteError> {
        match action {
            RestoreAction::Check { pod, request } => {
                self.check_restore(pod, request, memory).await;
                Ok(())
            }
            RestoreAction::BackUp { name } => self.back_up(name).await,
        }
    }

    async fn check_restore(&mut self, pod: &str, request: &RestoreRequest, memory: &mut Memory) {
        let Some(address) = self.observed.pod(pod).and_then(|pod| pod.address(self.cluster)) else { return };
        let answer = match self.agents.check_restore(&address, &request.question).await {
            Ok(answer) => answer,
            // An instance whose pod was not restarted since pgherd was upgraded.
            Err(AgentCallError::Refused { status: 404, .. }) => {
                RestoreAnswer::Refused(format!("{pod} runs an earlier version of pgherd: restart its pod"))
            }
            Err(error) => {
                tracing::warn!(cluster = self.cluster.name, pod, error = %error_chain(&error), "no answer about a restore");
                return;
            }
        };
        if answer == RestoreAnswer::Checking {
            return;
        }
        let at_ms = self.context.clock.now().monotonic_ms;
        memory.restore = Some(RestoreMemory { request: request.clone(), answer, at_ms });
        self.done.requeue_after_ms = AT_ONCE_MS;
    }

    /// One that is there was made by an earlier round.
    async fn back_up(&mut self, name: &str) -> Result<(), ExecuteError> {
        let api: Api<Backup> = Api::namespaced(self.context.client.clone(), &self.cluster.namespace);
        let backup = build_backup(name, &self.cluster.name, &self.cluster.namespace);
        self.context.metrics.api_writes.inc();
        match api.create(&PostParams::default(), &backup).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            outcome => {
                outcome.map_err(|source| ExecuteError::Backup { name: name.to_owned(), source: Box::new(source) })?;
            }
        }
        self.done.restore_backup = Some(name.to_owned());
        Ok(())
    }
}

/// It has no owner: a backup outlives its cluster.
fn build_backup(name: &str, cluster: &str, namespace: &str) -> Backup {
    let spec = BackupSpec {
        cluster_ref: LocalReference { name: cluster.to_owned() },
        target: None,
        incremental: None,
        method: None,
        deletion_policy: None,
    };
    let mut backup = Backup::new(name, spec);
    backup.metadata.namespace = Some(namespace.to_owned());
    backup.metadata.labels = Some(
        [(keys::MANAGED_BY, names::MANAGER), (keys::CLUSTER, cluster)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    backup
}
