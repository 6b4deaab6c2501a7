//! What somebody took by hand, with `pg_basebackup | mc pipe`, becomes a cluster.

use pgherd_e2e::{Result, cluster::Cluster, kubectl::apply, postgres::psql, store, toolbox::Toolbox};

use crate::{
    checks::{DIGEST, claim, fill, source_of, wait_follows},
    in_namespace, manifests,
};

/// A server that pgherd has nothing to do with. `KEY` is where its archive goes; prints the digest of its rows.
fn take_by_hand(key: &str) -> String {
    let bucket = store::BUCKET;
    let rows = fill(200_000);
    format!(
        r#"initdb -D /work/old -U postgres -A trust -k >/dev/null
pg_ctl -D /work/old -w -t 60 -l /work/old.log -o '-k /tmp -p 5434 -c listen_addresses=' start >/dev/null
sql() {{ psql -h /tmp -p 5434 -U postgres -XAtq -v ON_ERROR_STOP=1 "$@"; }}
sql -d postgres -c 'CREATE DATABASE app'
sql -d app <<'SQL' >/dev/null
{rows}
SQL
pg_basebackup -h /tmp -p 5434 -U postgres -D - --format=tar --gzip --wal-method=fetch --checkpoint=fast |
  mc pipe store/{bucket}/{key} >&2
sql -d app <<'SQL'
{DIGEST}
SQL
pg_ctl -D /work/old -w -m fast stop >/dev/null"#
    )
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn an_archive_that_was_taken_by_hand_becomes_a_cluster() -> Result<()> {
    in_namespace("e2e-import", async |client, namespace| {
        let key = format!("{namespace}/by-hand/base.tar.gz");
        let expected = Toolbox::start(namespace, "c").await?.bash(&take_by_hand(&key)).await?;
        let spec = format!(
            "{}  bootstrap:\n    recovery:\n      from:\n        archive: {key}\n{}",
            manifests::backup_to_store(),
            store::object_store_yaml(8)
        );
        apply(namespace, &manifests::cluster("c", 2, &spec)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(2).await?;
        let primary = cluster.primary().await?;
        let source = source_of(&cluster, &primary).await?;
        println!("{primary}: {}", source.reason);
        claim(source.source == "import" && source.reason.contains("checked against its manifest"), || {
            format!("{primary} was made by {}: {}", source.source, source.reason)
        })?;
        let found = psql(namespace, &primary, "app", DIGEST).await?;
        claim(found == expected.trim(), || format!("{found} instead of {expected}"))?;
        psql(namespace, &primary, "app", "CREATE TABLE later AS SELECT 1 AS id").await?;
        wait_follows(&cluster, &format!("c-{}", if primary == "c-0" { 1 } else { 0 })).await
    })
    .await
}
