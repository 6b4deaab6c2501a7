//! The object store of the tests: MinIO in namespace `minio`, whose credentials are copied where they are needed.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use std::collections::BTreeMap;

use crate::{
    Result,
    cluster::PATIENCE,
    kubectl::kubectl,
    wait::{Look, until},
};

/// Address of the store inside the cluster.
pub const ENDPOINT: &str = "https://minio.minio.svc:9000";
/// The bucket of all tests.
pub const BUCKET: &str = "backups";

/// Puts Secret `minio` (credentials) and `minio-ca` (the store's CA) into a namespace.
///
/// # Errors
/// MinIO is not installed or the API server did not answer.
pub async fn provide_credentials(client: &Client, namespace: &str) -> Result<()> {
    let source: Api<Secret> = Api::namespaced(client.clone(), "minio");
    let field = |secret: &Secret, key: &str| -> Result<ByteString> {
        let found = secret.data.as_ref().and_then(|data| data.get(key)).cloned();
        found.ok_or_else(|| {
            format!("Secret minio/{} has no key {key}", secret.metadata.name.clone().unwrap_or_default()).into()
        })
    };
    let root = source.get("minio-root").await?;
    let tls = source.get("minio-tls").await?;
    let target: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let credentials = [("accessKeyId", field(&root, "user")?), ("secretAccessKey", field(&root, "password")?)];
    for (name, data) in [("minio", credentials.to_vec()), ("minio-ca", vec![("ca.crt", field(&tls, "ca.crt")?)])] {
        let data: BTreeMap<String, ByteString> =
            data.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        let metadata = kube::core::ObjectMeta { name: Some(name.into()), ..Default::default() };
        target.create(&PostParams::default(), &Secret { metadata, data: Some(data), ..Default::default() }).await?;
    }
    Ok(())
}

/// The `objectStore` of a spec, indented as the lines of a YAML block by `indent` spaces.
#[must_use]
pub fn object_store_yaml(indent: usize) -> String {
    let lines = [
        "objectStore:".to_string(),
        format!("  endpoint: {ENDPOINT}"),
        format!("  bucket: {BUCKET}"),
        "  credentialsSecretRef: {name: minio}".to_string(),
        "  caSecretRef: {name: minio-ca}".to_string(),
    ];
    lines.map(|line| format!("{:indent$}{line}\n", "")).concat()
}

/// Runs MinIO's client beside the server, which knows the credentials; the store is `local`. Several run at a time, and none may
/// find half of the CA.
const MC: &str = r#"mkdir -p /tmp/mc/certs/CAs && cp /certs/CAs/ca.crt /tmp/mc/ca.$$ && mv /tmp/mc/ca.$$ /tmp/mc/certs/CAs/ca.crt
export MC_HOST_local="https://$(cat /credentials/user):$(cat /credentials/password)@localhost:9000"
exec /mc --config-dir /tmp/mc --quiet "$@""#;

/// Runs MinIO's client in the store's pod against the store, which is called `local`.
///
/// # Errors
/// kubectl or mc failed.
pub async fn mc(arguments: &[&str]) -> Result<String> {
    let mut all = vec!["exec", "deploy/minio", "--", "sh", "-c", MC, "mc"];
    all.extend_from_slice(arguments);
    kubectl("minio", &all).await
}

/// Waits until the store answers: its node may have been cut off a moment ago.
///
/// # Errors
/// It did not in time.
pub async fn await_answer() -> Result<()> {
    let bucket = format!("local/{BUCKET}");
    until("the store to answer", PATIENCE, async || mc(&["stat", &bucket]).await.map(|_| Look::Done(()))).await
}

/// The node that the store's pod runs on.
///
/// # Errors
/// kubectl failed.
pub async fn node() -> Result<String> {
    let node = ["get", "pod", "-l", "app=minio", "-o", "jsonpath={.items[0].spec.nodeName}"];
    kubectl("minio", &node).await.map(|node| node.trim().to_string())
}

/// The keys under a prefix of the tests' bucket, sorted.
///
/// # Errors
/// As [`mc`].
pub async fn keys(prefix: &str) -> Result<Vec<String>> {
    let root = format!("local/{BUCKET}/");
    let listed = mc(&["ls", "--recursive", "--json", &format!("{root}{prefix}")]).await?;
    let mut keys = Vec::new();
    for line in listed.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        let key = entry["key"].as_str().ok_or_else(|| format!("mc listed an entry without a key: {line}"))?;
        keys.push(format!("{prefix}{key}"));
    }
    keys.sort();
    Ok(keys)
}

/// Removes everything under a prefix, so that a test does not find what an earlier run left.
///
/// # Errors
/// As [`mc`].
pub async fn forget(prefix: &str) -> Result<()> {
    mc(&["rm", "--recursive", "--force", &format!("local/{BUCKET}/{prefix}")]).await.map(drop)
}

/// The multipart uploads that are open in the whole store. MinIO lists uploads only by exact key, therefore its own
/// folder is read: `<hash of bucket and key>/<upload>`.
///
/// # Errors
/// kubectl failed.
pub async fn open_uploads() -> Result<std::collections::BTreeSet<String>> {
    let find = ["exec", "deploy/minio", "--", "find", "/data/.minio.sys/multipart", "-mindepth", "2", "-maxdepth", "2"];
    Ok(kubectl("minio", &find).await?.lines().map(str::to_string).collect())
}
