//! A pod with standard tools (psql, mc, zstd, tar, PostgreSQL's programs) and the application's Secrets as files: what a
//! user has at hand. Scripts name the files; no secret is in an argument.

use crate::{
    Result,
    kubectl::{apply, kubectl},
    postgres::major,
};

/// Before every script: `mc` knows the store as `store`.
const PRELUDE: &str = r#"
mc() {
  mkdir -p /work/mc/certs/CAs
  [ -e /work/mc/certs/CAs/ca.crt ] || cp /etc/store-ca/ca.crt /work/mc/certs/CAs/
  MC_HOST_store="https://$(cat /etc/store/accessKeyId):$(cat /etc/store/secretAccessKey)@minio.minio.svc:9000" \
    command mc --config-dir /work/mc --quiet "$@"
}
"#;

/// The pod `toolbox` of a namespace.
pub struct Toolbox {
    namespace: String,
    cluster: String,
}

impl Toolbox {
    /// Starts the pod with the Secrets of a cluster, which must exist by now.
    ///
    /// # Errors
    /// kubectl failed or the pod was not ready in time.
    pub async fn start(namespace: &str, cluster: &str) -> Result<Self> {
        let manifest = include_str!("toolbox.yaml")
            .replace("CLUSTER", cluster)
            .replace("NAMESPACE", namespace)
            .replace("MAJOR", &major());
        apply(namespace, &manifest).await?;
        kubectl(namespace, &["wait", "pod/toolbox", "--for=condition=Ready", "--timeout=120s"]).await?;
        Ok(Self { namespace: namespace.into(), cluster: cluster.into() })
    }

    /// Runs a bash script in the pod; the first command that fails ends it.
    ///
    /// # Errors
    /// A command failed; the text has what it printed.
    pub async fn bash(&self, script: &str) -> Result<String> {
        let script = format!("{PRELUDE}\n{script}");
        kubectl(&self.namespace, &["exec", "toolbox", "--", "bash", "-euo", "pipefail", "-c", &script]).await
    }

    /// Runs SQL as the application does: through a Service of the cluster, with its user and password, and these further
    /// settings of the connection.
    ///
    /// # Errors
    /// psql failed.
    pub async fn app_psql(&self, service: &str, settings: &str, sql: &str) -> Result<String> {
        let host = format!("{}-{service}.{}.svc", self.cluster, self.namespace);
        let script = format!(
            "PGPASSWORD=$(cat /etc/app/password) psql -XAtq -v ON_ERROR_STOP=1 -c \"{sql}\" \
             \"host={host} user=$(cat /etc/app/username) dbname=$(cat /etc/app/dbname) connect_timeout=10 {settings}\""
        );
        Ok(self.bash(&script).await?.trim().to_string())
    }
}
