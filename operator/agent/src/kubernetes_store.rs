//! The register in a Kubernetes Lease. Reads are quorum reads (a GET without resourceVersion), writes are a PUT of the
//! whole Lease with the resourceVersion that was read; the watch only hints. Touches no other object.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use pgherd_core::{
    lsn::Lsn,
    register::{
        LSN_ANNOTATION, LSN_LIMIT_ANNOTATION, LeaseView, Position, REGISTER_ANNOTATION, Register, holder_identity,
    },
};
use tokio::{sync::Notify, time::timeout};

use crate::register_store::{RegisterError, RegisterStore};

/// One request must not take longer: a renewal that hangs is a renewal that failed, and two that come late still fit into
/// the fencing time (8 s, counted from before each was sent).
const REQUEST_TIMEOUT: Duration = Duration::from_millis(3_000);

/// The API server ends a watch after this many seconds, and it is begun anew.
const WATCH_SECONDS: u32 = 20;

/// The Lease of one cluster.
pub struct KubernetesRegister {
    api: Api<Lease>,
    name: String,
    /// The last Lease that was read or written, so that a renewal is one request.
    last: Mutex<Option<Lease>>,
    hint: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KubernetesRegister {
    /// The Lease `name` in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            last: Mutex::new(None),
            hint: Notify::new(),
        }
    }

    /// Watches the Lease and turns every event into a hint; never ends. The watch backs off by itself when it fails.
    pub async fn watch(&self) {
        // A watch that died without a word is noticed soon.
        let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={}", self.name));
        let mut events = Box::pin(watcher(self.api.clone(), config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => self.hint.notify_one(),
                Err(error) => tracing::debug!(error = %error, "the watch on the Lease failed; polling goes on"),
            }
        }
    }

    async fn get(&self) -> Result<LeaseView, RegisterError> {
        let lease = bounded(self.api.get(&self.name)).await?;
        let view = parse_lease(&lease)?;
        *lock(&self.last) = Some(lease);
        Ok(view)
    }

    async fn put(
        &self,
        version: String,
        register: Register,
        position: Option<Position>,
    ) -> Result<LeaseView, RegisterError> {
        let kept =
            lock(&self.last).clone().filter(|lease| lease.metadata.resource_version.as_deref() == Some(&version));
        let lease = match kept {
            Some(lease) => lease,
            None => bounded(self.api.get(&self.name)).await?,
        };
        if lease.metadata.resource_version.as_deref() != Some(&version) {
            return Err(RegisterError::Conflict);
        }
        let changed = build_lease(lease, &register, position)?;
        let written = bounded(self.api.replace(&self.name, &PostParams::default(), &changed)).await?;
        let view = parse_lease(&written)?;
        *lock(&self.last) = Some(written);
        Ok(view)
    }
}

impl RegisterStore for std::sync::Arc<KubernetesRegister> {
    fn read(&self) -> BoxFuture<'_, Result<LeaseView, RegisterError>> {
        Box::pin(self.get())
    }

    fn replace(
        &self,
        version: String,
        register: Register,
        position: Option<Position>,
    ) -> BoxFuture<'_, Result<LeaseView, RegisterError>> {
        Box::pin(self.put(version, register, position))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.hint.notified())
    }
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RegisterError> {
    let answer = timeout(REQUEST_TIMEOUT, request).await;
    answer.map_err(|_| RegisterError::Unreachable("no answer in time".to_owned()))?.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 409 => RegisterError::Conflict,
        kube::Error::Api(status) if status.code == 404 => RegisterError::NotFound,
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            RegisterError::Refused(status.message.clone())
        }
        other => RegisterError::Unreachable(other.to_string()),
    })
}

/// Reads the register out of a Lease.
///
/// # Errors
/// [`RegisterError::Malformed`] when an annotation is missing or is not what it should be.
pub fn parse_lease(lease: &Lease) -> Result<LeaseView, RegisterError> {
    let malformed = |what: &str| RegisterError::Malformed(what.to_owned());
    let annotations = lease.metadata.annotations.as_ref().ok_or_else(|| malformed("the Lease has no annotations"))?;
    let text = annotations.get(REGISTER_ANNOTATION).ok_or_else(|| malformed("the Lease has no register"))?;
    let register = serde_json::from_str(text).map_err(|error| RegisterError::Malformed(error.to_string()))?;
    let lsn = |key: &str| annotations.get(key).and_then(|lsn| lsn.parse::<Lsn>().ok()).unwrap_or_default();
    let flushed = lsn(LSN_ANNOTATION);
    let position = Position { flushed, limit: lsn(LSN_LIMIT_ANNOTATION).max(flushed) };
    let version =
        lease.metadata.resource_version.clone().ok_or_else(|| malformed("the Lease has no resourceVersion"))?;
    Ok(LeaseView { register, version, position })
}

/// The Lease with this register in it, renewed now.
fn build_lease(mut lease: Lease, register: &Register, position: Option<Position>) -> Result<Lease, RegisterError> {
    let text = serde_json::to_string(register).map_err(|error| RegisterError::Malformed(error.to_string()))?;
    let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(REGISTER_ANNOTATION.to_owned(), text);
    if let Some(position) = position {
        annotations.insert(LSN_ANNOTATION.to_owned(), position.flushed.to_string());
        annotations.insert(LSN_LIMIT_ANNOTATION.to_owned(), position.limit.to_string());
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = register.holder.as_ref().map(holder_identity);
    // Nobody compares this time: it is for people, and it makes every renewal a change.
    spec.renew_time = Some(MicroTime(jiff::Timestamp::now()));
    Ok(lease)
}

#[cfg(test)]
mod tests {
    use pgherd_core::register::{Holder, Term};

    use super::*;

    #[test]
    fn a_register_survives_the_way_through_a_lease() {
        let holder =
            Holder { pod: "c-0".into(), pod_uid: "u".into(), boot_nonce: "n".into(), address: None, member: None };
        let register = Register { term: Term(3), holder: Some(holder), ..Register::default() };
        let mut lease =
            build_lease(Lease::default(), &register, Some(Position { flushed: Lsn(16), limit: Lsn(20) })).unwrap();
        lease.metadata.resource_version = Some("5".into());
        let view = parse_lease(&lease).unwrap();
        assert_eq!(
            (view.register, view.position, view.version.as_str()),
            (register, Position { flushed: Lsn(16), limit: Lsn(20) }, "5")
        );
        assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("c-0/u/n"));
    }

    #[test]
    fn an_edited_register_is_malformed_and_not_an_empty_one() {
        let mut lease = build_lease(Lease::default(), &Register::default(), None).unwrap();
        lease.metadata.resource_version = Some("5".into());
        lease.metadata.annotations.as_mut().unwrap().insert(REGISTER_ANNOTATION.into(), "{\"term\":-1}".into());
        assert!(matches!(parse_lease(&lease), Err(RegisterError::Malformed(_))));
    }
}
