//! Reads and writes the cluster's Secrets, each by its name: the operator has no right to list them. What exists and is
//! valid is never written again; a password is generated once.

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::PostParams};
use pgherd_crds::names;

use super::{
    apply::{ApplyProblem, FIELD_MANAGER},
    build::secrets::{build_app_secret, build_ca_secret, build_tls_secret},
    tls::{OperatorIdentity, SecretData, TlsError, plan_certificates},
    validate::ValidatedCluster,
};
use crate::{
    context::{Context, Now},
    kubernetes::owner::is_controlled_by,
};

/// Between two looks at the Secrets, in milliseconds: no watch tells that one was deleted.
const RECHECK_MS: u64 = 30_000;
/// Characters of a password, each of 62.
const PASSWORD_LENGTH: usize = 32;

/// A Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A read failed.
    #[error("failed to read the Secret {name}")]
    Read {
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// A write failed.
    #[error("failed to write the Secret {name}")]
    Write {
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The system gave no random bytes.
    #[error("failed to get random bytes for a password")]
    Random,
    /// Certificates.
    #[error("failed to make the certificates of the cluster")]
    Certificates(#[source] TlsError),
    /// Somebody has to change something first.
    #[error("{}", .0.message)]
    Blocked(ApplyProblem),
}

/// What is remembered of the Secrets.
#[derive(Debug, Default)]
pub struct SecretsMemory {
    known: Option<Secured>,
    checked_at_ms: u64,
}

/// What the cluster can be worked on with.
#[derive(Clone, Debug)]
pub struct Secured {
    /// The operator's identity towards the agents.
    pub identity: OperatorIdentity,
    /// What somebody has to change about a Secret. No reason to leave the instances alone.
    pub problem: Option<ApplyProblem>,
}

/// Makes sure that the three Secrets are there. Looks at them every 30 s only, and goes on with what it knows when one has become
/// unusable: a running cluster must not lose its failover.
///
/// # Errors
/// [`SecretsError`]; without the identity no agent can be asked.
pub async fn apply_secrets(
    context: &Context,
    cluster: &ValidatedCluster,
    memory: &mut SecretsMemory,
    now: Now,
) -> Result<Secured, SecretsError> {
    let is_recent = cluster.suspended || now.monotonic_ms.saturating_sub(memory.checked_at_ms) < RECHECK_MS;
    if let Some(known) = memory.known.as_ref().filter(|_| is_recent) {
        return Ok(known.clone());
    }
    let secured = match (ensure_secrets(context, cluster, now.wall).await, memory.known.take()) {
        (Ok(secured), _) => secured,
        (Err(error), None) => return Err(error),
        (Err(SecretsError::Blocked(problem)), Some(known)) => Secured { problem: Some(problem), ..known },
        (Err(error), Some(known)) => {
            tracing::warn!(error = crate::telemetry::error_chain(&error), "failed to look at the Secrets");
            known
        }
    };
    *memory = SecretsMemory { known: Some(secured.clone()), checked_at_ms: now.monotonic_ms };
    Ok(secured)
}

async fn ensure_secrets(
    context: &Context,
    cluster: &ValidatedCluster,
    now: Timestamp,
) -> Result<Secured, SecretsError> {
    let secrets =
        Secrets { api: Api::namespaced(context.client.clone(), &cluster.namespace), context, uid: &cluster.uid };
    // The application's password is not what the instances are reached by.
    let (app, problem) = match secrets.read(&names::app_secret(&cluster.name)).await {
        // Of a new cluster it is what the application's role is made from.
        Err(SecretsError::Blocked(problem)) if cluster.status.system_id.is_some() => (None, Some(problem)),
        read => (read?, None),
    };
    let ca = secrets.read(&names::ca_secret(&cluster.name)).await?;
    let tls = secrets.read(&names::tls_secret(&cluster.name)).await?;
    if app.is_none() && problem.is_none() {
        secrets.create(&build_app_secret(cluster, &random_password()?)).await?;
    }
    let (ca_data, tls_data) = (ca.as_ref().map(data_of), tls.as_ref().map(data_of));
    let planned = plan_certificates(&cluster.name, &cluster.namespace, ca_data.as_ref(), tls_data.as_ref(), now)
        .map_err(|error| unusable_or_failed(cluster, error))?;
    secrets.put(ca, ca_data.as_ref() == Some(&planned.ca), build_ca_secret(cluster, &planned.ca)).await?;
    secrets.put(tls, tls_data.as_ref() == Some(&planned.tls), build_tls_secret(cluster, &planned.tls)).await?;
    Ok(Secured { identity: planned.identity(), problem })
}

fn unusable_or_failed(cluster: &ValidatedCluster, error: TlsError) -> SecretsError {
    match error {
        TlsError::UnusableCa { .. } => SecretsError::Blocked(ApplyProblem {
            reason: "UnusableCertificateAuthority".to_owned(),
            message: format!("the Secret {} cannot be used: {error}", names::ca_secret(&cluster.name)),
        }),
        TlsError::Generate(_) => SecretsError::Certificates(error),
    }
}

struct Secrets<'a> {
    api: Api<Secret>,
    context: &'a Context,
    uid: &'a str,
}

impl Secrets<'_> {
    /// The Secret if there is one and it is ours.
    async fn read(&self, name: &str) -> Result<Option<Secret>, SecretsError> {
        let read = |source| SecretsError::Read { name: name.to_owned(), source: Box::new(source) };
        let secret = self.api.get_opt(name).await.map_err(read)?;
        match secret {
            Some(secret) if !is_controlled_by(&secret.metadata, self.uid) => {
                Err(SecretsError::Blocked(ApplyProblem::foreign("Secret", name)))
            }
            other => Ok(other),
        }
    }

    /// Creates it. If somebody was faster, the next round finds theirs.
    async fn create(&self, secret: &Secret) -> Result<(), SecretsError> {
        self.context.metrics.api_writes.inc();
        self.api.create(&params(), secret).await.map(|_| ()).map_err(|source| write_error(secret, source))
    }

    /// Creates it or replaces exactly what was read.
    async fn put(&self, live: Option<Secret>, unchanged: bool, mut desired: Secret) -> Result<(), SecretsError> {
        let Some(live) = live else { return self.create(&desired).await };
        if unchanged {
            return Ok(());
        }
        desired.metadata.resource_version = live.metadata.resource_version;
        let name = desired.metadata.name.clone().unwrap_or_default();
        self.context.metrics.api_writes.inc();
        self.api.replace(&name, &params(), &desired).await.map(|_| ()).map_err(|source| write_error(&desired, source))
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn write_error(secret: &Secret, source: kube::Error) -> SecretsError {
    SecretsError::Write { name: secret.metadata.name.clone().unwrap_or_default(), source: Box::new(source) }
}

fn data_of(secret: &Secret) -> SecretData {
    secret.data.iter().flatten().map(|(key, ByteString(value))| (key.clone(), value.clone())).collect()
}

/// Letters and digits only: they need no escaping in a URI, a pgpass line or a shell.
fn random_password() -> Result<String, SecretsError> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = rustls::crypto::ring::default_provider().secure_random;
    let mut password = String::with_capacity(PASSWORD_LENGTH);
    let mut bytes = [0_u8; 64];
    while password.len() < PASSWORD_LENGTH {
        random.fill(&mut bytes).map_err(|_| SecretsError::Random)?;
        // Bytes above the last multiple of 62 would make some characters likelier than others.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        let characters = fair.filter_map(|byte| ALPHABET.get(usize::from(byte % 62)));
        password.extend(characters.take(PASSWORD_LENGTH - password.len()).map(|byte| char::from(*byte)));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_plain_and_differ() {
        let (one, other) = (random_password().unwrap(), random_password().unwrap());
        assert_eq!(one.len(), 32);
        assert!(one.chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(one, other);
    }
}
