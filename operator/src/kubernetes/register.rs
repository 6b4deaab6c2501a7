//! Reads and writes the register of a cluster: the Lease of its name. Every read is a quorum GET and every write replaces
//! exactly what was read, so that of two writers one gets [`WriteOutcome::Conflict`].
//!
//! It decides nothing, and it never overwrites a register that it could not parse.

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use pgherd_core::{
    instance::Timings,
    lsn::Lsn,
    register::{
        LSN_ANNOTATION, LSN_LIMIT_ANNOTATION, LeaseView, Position, REGISTER_ANNOTATION, Register, holder_identity,
    },
};

/// The register could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The Lease could not be read.
    #[error("the Lease {lease} could not be read")]
    Read {
        /// Its name.
        lease: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The write failed, or its outcome is unknown: read again before deciding anything.
    #[error("the Lease {lease} could not be written")]
    Write {
        /// Its name.
        lease: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// A Lease of this name exists, but it holds no register that can be understood. Somebody has to look at it.
    #[error(
        "the Lease {lease} holds no readable register ({detail}); it is left as it is: repair its annotation, or delete the Lease so that the register is rebuilt from the instances"
    )]
    Malformed {
        /// Its name.
        lease: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A register cannot be written as JSON.
    #[error("the register cannot be written as JSON")]
    Serialize(#[source] serde_json::Error),
}

/// A register as it was read, with the Lease around it that a write has to replace.
#[derive(Clone, Debug)]
pub struct StoredRegister {
    /// The register, the Lease's version and the primary's last LSN.
    pub view: LeaseView,
    /// When the holder renewed it last, on the holder's clock: for people and events, never for a decision.
    pub renewed_at: Option<Timestamp>,
    /// When the Lease was made, on the API server's clock.
    pub created_at: Option<Timestamp>,
    lease: Lease,
}

/// What became of a write.
#[derive(Clone, Debug)]
pub enum WriteOutcome {
    /// Written; this is what the Lease holds now.
    Written(Box<StoredRegister>),
    /// Somebody else was faster: nothing was written. Read again and decide again.
    Conflict,
}

/// The Leases of one namespace.
#[derive(Clone)]
pub struct RegisterClient {
    api: Api<Lease>,
}

impl RegisterClient {
    /// A client for the registers of this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// Reads the register of a cluster; None when there is no Lease. A GET without a resourceVersion goes to etcd's
    /// quorum, not to a cache.
    ///
    /// # Errors
    /// [`RegisterError::Read`], or [`RegisterError::Malformed`] when there is a Lease without a readable register.
    pub async fn read(&self, cluster: &str) -> Result<Option<StoredRegister>, RegisterError> {
        let lease = self
            .api
            .get_opt(cluster)
            .await
            .map_err(|source| RegisterError::Read { lease: cluster.to_owned(), source: Box::new(source) })?;
        lease.map(parse_lease).transpose()
    }

    /// Creates the Lease. Fails with [`WriteOutcome::Conflict`] when there is one already.
    ///
    /// # Errors
    /// [`RegisterError::Write`] or [`RegisterError::Serialize`].
    pub async fn create(
        &self,
        cluster: &str,
        owner: OwnerReference,
        register: &Register,
        timings: &Timings,
    ) -> Result<WriteOutcome, RegisterError> {
        let lease = build_lease(cluster, owner, register, timings, Timestamp::now())?;
        let result = self.api.create(&PostParams::default(), &lease).await;
        outcome(cluster, result)
    }

    /// Replaces what was read. The LSN of the holder is kept until the next holder writes its own.
    ///
    /// # Errors
    /// [`RegisterError::Write`] or [`RegisterError::Serialize`].
    pub async fn replace(
        &self,
        cluster: &str,
        read: &StoredRegister,
        register: &Register,
        timings: &Timings,
    ) -> Result<WriteOutcome, RegisterError> {
        let lease = render_replacement(read, register, timings, Timestamp::now())?;
        let result = self.api.replace(cluster, &PostParams::default(), &lease).await;
        outcome(cluster, result)
    }
}

/// A lost Lease (404) is a conflict as well: what was read is not there any more.
fn outcome(cluster: &str, result: Result<Lease, kube::Error>) -> Result<WriteOutcome, RegisterError> {
    match result {
        Ok(lease) => Ok(WriteOutcome::Written(Box::new(parse_lease(lease)?))),
        Err(kube::Error::Api(status))
            if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
        {
            Ok(WriteOutcome::Conflict)
        }
        Err(source) => Err(RegisterError::Write { lease: cluster.to_owned(), source: Box::new(source) }),
    }
}

/// Reads the register out of a Lease.
///
/// # Errors
/// [`RegisterError::Malformed`] says what is missing or wrong.
pub fn parse_lease(lease: Lease) -> Result<StoredRegister, RegisterError> {
    let name = lease.metadata.name.clone().unwrap_or_default();
    let malformed = |detail: String| RegisterError::Malformed { lease: name.clone(), detail };
    let annotations = lease.metadata.annotations.as_ref();
    let text = annotations
        .and_then(|map| map.get(REGISTER_ANNOTATION))
        .ok_or_else(|| malformed(format!("it has no annotation {REGISTER_ANNOTATION}")))?;
    let register: Register = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    if register.seal_term < register.term {
        return Err(malformed(format!("sealTerm {} is below term {}", register.seal_term, register.term)));
    }
    let lsn = |key: &str| match annotations.and_then(|map| map.get(key)) {
        None => Ok(Lsn::ZERO),
        Some(text) => text.parse().map_err(|error: pgherd_core::lsn::ParseLsnError| malformed(error.to_string())),
    };
    let flushed = lsn(LSN_ANNOTATION)?;
    let position = Position { flushed, limit: lsn(LSN_LIMIT_ANNOTATION)?.max(flushed) };
    let version = lease
        .metadata
        .resource_version
        .clone()
        .filter(|version| !version.is_empty())
        .ok_or_else(|| malformed("it has no resourceVersion".to_owned()))?;
    let renewed_at = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    let created_at = lease.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Ok(StoredRegister { view: LeaseView { register, version, position }, renewed_at, created_at, lease })
}

fn build_lease(
    cluster: &str,
    owner: OwnerReference,
    register: &Register,
    timings: &Timings,
    now: Timestamp,
) -> Result<Lease, RegisterError> {
    use pgherd_crds::names::{MANAGER, keys};
    let mut lease = Lease {
        metadata: ObjectMeta {
            name: Some(cluster.to_owned()),
            labels: Some(
                [(keys::CLUSTER, cluster), (keys::MANAGED_BY, MANAGER)]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .into(),
            ),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    };
    render_register(&mut lease, None, register, timings, now)?;
    Ok(lease)
}

fn render_replacement(
    read: &StoredRegister,
    register: &Register,
    timings: &Timings,
    now: Timestamp,
) -> Result<Lease, RegisterError> {
    let mut lease = read.lease.clone();
    render_register(&mut lease, Some(&read.view.register), register, timings, now)?;
    Ok(lease)
}

/// Puts the register into the annotation, and into the fields that people see with `kubectl get lease`. The holder and
/// its times change only with the grant: between grants they belong to the holder.
fn render_register(
    lease: &mut Lease,
    before: Option<&Register>,
    register: &Register,
    timings: &Timings,
    now: Timestamp,
) -> Result<(), RegisterError> {
    let text = serde_json::to_string(register).map_err(RegisterError::Serialize)?;
    lease.metadata.annotations.get_or_insert_default().insert(REGISTER_ANNOTATION.to_owned(), text);
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.lease_duration_seconds = i32::try_from(timings.take_over_ms.div_ceil(1_000)).ok();
    spec.lease_transitions = i32::try_from(register.term.0).ok();
    let granted = before.is_none_or(|before| before.term != register.term || before.holder != register.holder);
    if granted {
        spec.holder_identity = register.holder.as_ref().map(holder_identity);
        let time = register.holder.as_ref().map(|_| MicroTime(now));
        spec.acquire_time.clone_from(&time);
        spec.renew_time = time;
    }
    Ok(())
}

/// A register as if it had been read, for tests of what is decided on it.
#[cfg(test)]
pub(crate) fn stored_for_test(register: &Register, version: &str, lsn: Lsn, created_at: Timestamp) -> StoredRegister {
    let view = LeaseView { register: register.clone(), version: version.to_owned(), position: Position::end(lsn) };
    StoredRegister { view, renewed_at: None, created_at: Some(created_at), lease: Lease::default() }
}

#[cfg(test)]
mod tests {
    use pgherd_core::register::{Holder, Term};

    use super::*;

    fn held(term: u64, pod: &str) -> Register {
        let holder =
            Holder { pod: pod.into(), pod_uid: "uid".into(), boot_nonce: String::new(), address: None, member: None };
        Register { term: Term(term), seal_term: Term(term), holder: Some(holder), ..Register::default() }
    }

    fn stored(register: &Register, lsn: Option<&str>) -> StoredRegister {
        let mut lease =
            build_lease("shop", OwnerReference::default(), register, &Timings::default(), Timestamp::UNIX_EPOCH)
                .unwrap();
        lease.metadata.resource_version = Some("7".into());
        if let Some(lsn) = lsn {
            lease.metadata.annotations.get_or_insert_default().insert(LSN_ANNOTATION.into(), lsn.into());
        }
        parse_lease(lease).unwrap()
    }

    #[test]
    fn a_register_is_read_as_it_was_written() {
        let read = stored(&held(1, "shop-0"), Some("0/3000060"));
        assert_eq!(read.view.register, held(1, "shop-0"));
        assert_eq!((read.view.version.as_str(), read.view.position), ("7", Position::end(Lsn(0x300_0060))));
    }

    #[test]
    fn people_see_the_holder_and_the_term_in_the_lease() {
        let read = stored(&held(3, "shop-0"), None);
        let spec = read.lease.spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("shop-0/uid/"));
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(3), Some(12)));
    }

    #[test]
    fn sealing_leaves_the_holders_renewal_alone_and_keeps_version_and_lsn() {
        let read = stored(&held(1, "shop-0"), Some("0/10"));
        let sealed = Register { seal_term: Term(2), ..held(1, "shop-0") };
        let lease = render_replacement(&read, &sealed, &Timings::default(), Timestamp::MAX).unwrap();
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(lease.metadata.annotations.as_ref().unwrap().get(LSN_ANNOTATION).map(String::as_str), Some("0/10"));
        assert_eq!(lease.spec.unwrap().renew_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
    }

    #[test]
    fn a_claim_names_the_new_holder_and_its_time() {
        let read = stored(&held(1, "shop-0"), None);
        let lease = render_replacement(&read, &held(2, "shop-1"), &Timings::default(), Timestamp::MAX).unwrap();
        let spec = lease.spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("shop-1/uid/"));
        assert_eq!(spec.renew_time, Some(MicroTime(Timestamp::MAX)));
    }

    #[test]
    fn a_lease_without_a_readable_register_is_an_error_and_not_an_empty_register() {
        let mut lease = stored(&held(1, "shop-0"), None).lease;
        lease.metadata.annotations.as_mut().unwrap().insert(REGISTER_ANNOTATION.into(), "{\"term\":".into());
        assert!(matches!(parse_lease(lease.clone()), Err(RegisterError::Malformed { .. })));
        lease.metadata.annotations = None;
        let error = parse_lease(lease).unwrap_err().to_string();
        assert!(error.contains(REGISTER_ANNOTATION), "{error}");
    }

    #[test]
    fn a_seal_below_the_term_is_malformed() {
        let lease = Register { seal_term: Term(1), ..held(2, "shop-0") };
        let mut lease =
            build_lease("shop", OwnerReference::default(), &lease, &Timings::default(), Timestamp::UNIX_EPOCH).unwrap();
        lease.metadata.resource_version = Some("7".into());
        assert!(matches!(parse_lease(lease), Err(RegisterError::Malformed { .. })));
    }
}
