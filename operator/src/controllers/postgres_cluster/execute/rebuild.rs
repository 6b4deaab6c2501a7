//! Tells an instance to build itself anew.

use kube::runtime::events::EventType;

use super::Round;
use crate::{controllers::postgres_cluster::decide::Request, telemetry::error_chain};

impl Round<'_> {
    /// Drops the request, then asks the instance. What fails after that is told, and not tried again.
    pub(super) async fn rebuild_instance(&mut self, request: &Request) {
        let pod = request.value.as_str();
        let Some(address) = self.observed.pod(pod).and_then(|pod| pod.address(self.cluster)) else { return };
        if self.drop_request(request).await != Some(true) {
            return;
        }
        match self.agents.rebuild(&address).await {
            Ok(()) => {
                tracing::info!(cluster = self.cluster.name, pod, "an instance is built anew");
                let note = format!("{pod} is built anew; its old data directory is kept until the new one streams");
                self.tell(EventType::Normal, "InstanceRebuild", note);
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(cluster = self.cluster.name, pod, error, "an instance is not built anew");
                self.tell(EventType::Warning, "RebuildRefused", format!("{pod}: {error}"));
            }
        }
    }
}
