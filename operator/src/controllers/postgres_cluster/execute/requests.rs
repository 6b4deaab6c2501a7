//! Requests by annotation on the PostgresCluster: asked about once more before they are carried out, because what was read
//! comes from a watch, and removed when they are dealt with.

use std::time::Duration;

use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use pgherd_crds::{PostgresCluster, names::keys};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Round;
use crate::{
    controllers::postgres_cluster::decide::{Answer, Request},
    telemetry::error_chain,
};

/// How often a removal is tried before the next round has to.
const TRIES: u32 = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

impl Round<'_> {
    /// True if the request is there now, and can be removed. Asked by a patch that changes nothing: a request that could
    /// not be removed would be carried out again and again.
    pub(super) async fn request_stands(&self, request: &Request) -> bool {
        self.patch_request(request, false).await == Some(true)
    }

    /// Removes the annotation, unless somebody has written another request meanwhile. True if it was removed now; None if
    /// that is not known, after a few tries.
    pub(super) async fn drop_request(&self, request: &Request) -> Option<bool> {
        for _ in 0..TRIES {
            self.context.metrics.api_writes.inc();
            if let Some(removed) = self.patch_request(request, true).await {
                return Some(removed);
            }
            sleep(PAUSE).await;
        }
        None
    }

    /// Removes what is dealt with; a refusal is told once.
    pub(super) async fn answer(&mut self, answers: &[Answer]) {
        for Answer { request, refused } in answers {
            if self.drop_request(request).await != Some(true) {
                continue;
            }
            let Some(why) = refused else { continue };
            let reason = if request.key == keys::FORCE_PROMOTE { "ForcePromotionRefused" } else { "SwitchoverRefused" };
            tracing::warn!(cluster = self.cluster.name, request = request.value, why, "a request is refused");
            self.tell(EventType::Warning, reason, format!("{}: {}: {why}", request.key, request.value));
        }
    }

    /// True if the request was there, false if it is gone or another one by now; None if the API server can't or won't say.
    async fn patch_request(&self, request: &Request, remove: bool) -> Option<bool> {
        let path = format!("/metadata/annotations/{}", request.key.replace('~', "~0").replace('/', "~1"));
        let mut operations = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": self.cluster.uid}),
            json!({"op": "test", "path": path, "value": request.value}),
        ];
        if remove {
            operations.push(json!({"op": "remove", "path": path}));
        }
        let patch: Patch<()> = match serde_json::from_value(Value::Array(operations)) {
            Ok(patch) => Patch::Json(patch),
            Err(error) => {
                tracing::error!(error = error_chain(&error), "a patch can't be made");
                return None;
            }
        };
        let api: Api<PostgresCluster> = Api::namespaced(self.context.client.clone(), &self.cluster.namespace);
        match api.patch(&self.cluster.name, &PatchParams::default(), &patch).await {
            Ok(_) => Some(true),
            // The test failed.
            Err(kube::Error::Api(status)) if status.is_invalid() || status.is_not_found() || status.is_conflict() => {
                Some(false)
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(cluster = self.cluster.name, key = request.key, error, "a request can't be answered");
                None
            }
        }
    }
}
