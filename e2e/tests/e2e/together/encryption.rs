//! A cluster whose backups and WAL are encrypted before they leave the pods: a replica is built from its backup, another cluster is
//! recovered from it, a wrong identity ends in a condition, and neither the store sees a row nor anything but a Secret the identity.

use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl, run},
    postgres::psql,
    store,
    wait::{Look, until},
};

use super::backup_restore::check_recovered;
use crate::{
    checks::{DIGEST, archive_segment, claim, fill, source_of, take_backup, wait_follows},
    in_namespace, manifests, secrecy,
};

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn an_encrypted_cluster_backs_up_grows_and_is_recovered_and_a_wrong_identity_is_said() -> Result<()> {
    in_namespace("e2e-encryption", async |client, namespace| {
        let (recipient, identity) = make_pair(namespace, "shop-age").await?;
        let (stranger, _) = make_pair(namespace, "other-age").await?;
        let encryption =
            format!("    encryption: {{recipients: [{recipient}], identitySecretRef: {{name: shop-age}}}}\n");
        let more = format!("{}{encryption}", manifests::backup_to_store());
        apply(namespace, &manifests::cluster("c", 2, &more)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(2).await?;
        let primary = cluster.primary().await?;
        psql(namespace, &primary, "app", &fill(200_000)).await?;
        let expected = psql(namespace, &primary, "app", DIGEST).await?;
        let backup = take_backup(client, namespace, "sealed", "c").await?.status.unwrap_or_default();
        let id = backup.id.ok_or("the backup has no id")?;
        psql(namespace, &primary, "app", "CREATE TABLE later AS SELECT generate_series(1, 1000) AS id").await?;
        archive_segment(namespace, &primary).await?;
        check_store(namespace).await?;
        check_identity_is_secret(client, &cluster, &identity).await?;

        cluster.scale(3).await?;
        cluster.wait_ready(3).await?;
        wait_follows(&cluster, "c-2").await?;
        let source = source_of(&cluster, "c-2").await?;
        println!("c-2: {}", source.reason);
        claim(source.source == "backup" && source.from == id, || {
            format!("c-2 was built from {} {}: {}", source.source, source.from, source.reason)
        })?;

        let from_object = manifests::recovery_from_object("sealed");
        check_recovered(&Cluster::new(client, namespace, "from-object"), &from_object, &expected).await?;
        let bucket = manifests::recovery_from_bucket("c");
        let with = |secret: &str| format!("{bucket}        encryption: {{identitySecretRef: {{name: {secret}}}}}\n");
        check_recovered(&Cluster::new(client, namespace, "from-bucket"), &with("shop-age"), &expected).await?;
        check_wrong_identity(&Cluster::new(client, namespace, "wrong"), &with("other-age"), &recipient, &stranger).await
    })
    .await
}

/// A pair by age-keygen: the public key, and the line of the identity, which is also in a Secret.
async fn make_pair(namespace: &str, secret: &str) -> Result<(String, String)> {
    let made = run("age-keygen", &[], None).await?;
    let recipient = made.lines().find_map(|line| line.strip_prefix("# public key: ")).ok_or("no public key")?.trim();
    let identity = made.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).ok_or("no identity")?.trim();
    let manifest = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {secret}}}\nstringData:\n  identity: |\n    # of a test\n    {identity}\n"
    );
    apply(namespace, &manifest).await?;
    Ok((recipient.to_owned(), identity.to_owned()))
}

/// Nothing plain is in the store but what says what is there.
async fn check_store(namespace: &str) -> Result<()> {
    let keys = store::keys(&format!("{namespace}/")).await?;
    let readable = |key: &str| key.ends_with("/backup.json") || key.ends_with(".history") || key.contains("/locks/");
    let plain: Vec<&String> = keys.iter().filter(|key| !key.ends_with(".age") && !readable(key)).collect();
    claim(plain.is_empty(), || format!("not encrypted: {plain:?}"))?;
    let sealed: Vec<&String> = keys.iter().filter(|key| key.ends_with(".age")).collect();
    for kind in ["/base.tar.zst.0000.age", "/index.json.zst.age", "/backup_manifest.age", ".zst.age"] {
        claim(sealed.iter().any(|key| key.ends_with(kind)), || format!("no {kind} among {sealed:?}"))?;
    }
    for key in sealed.iter().take(5) {
        let head = store::mc(&["head", "--lines", "1", &format!("local/{}/{key}", store::BUCKET)]).await?;
        claim(head.starts_with("age-encryption.org/v1"), || format!("{key} is no age file"))?;
    }
    println!("{} objects are age files, {} are readable", sealed.len(), keys.len() - sealed.len());
    Ok(())
}

async fn check_identity_is_secret(client: &kube::Client, cluster: &Cluster, identity: &str) -> Result<()> {
    secrecy::check_with(client, cluster, &[("the identity".to_owned(), identity.to_owned())]).await?;
    let jobs = kubectl(&cluster.namespace, &["get", "jobs", "-o", "json"]).await?;
    claim(jobs.contains("recipients"), || "no Job was told for whom to encrypt".to_owned())?;
    claim(!jobs.contains("shop-age"), || "a backup Job was given the identity".to_owned())?;
    let listed = kubectl(
        &cluster.namespace,
        &["exec", "c-0", "-c", "postgres", "--", "stat", "-L", "-c", "%a", "/etc/pgherd/encryption/identity"],
    )
    .await?;
    claim(listed.trim() == "440", || format!("the identity has mode {}", listed.trim()))
}

/// A condition names whom the backup is encrypted for, and whose identity was given.
async fn check_wrong_identity(cluster: &Cluster, more: &str, recipient: &str, stranger: &str) -> Result<()> {
    apply(&cluster.namespace, &manifests::cluster(&cluster.name, 1, more)).await?;
    let message = until("a condition to name the wrong identity", PATIENCE, async || {
        let conditions = cluster.status().await?.conditions;
        let named = conditions.iter().find(|c| c.message.contains(recipient) && c.message.contains(stranger));
        Ok(match named {
            Some(condition) => Look::Done(format!("{}={}: {}", condition.type_, condition.status, condition.message)),
            None => Look::NotYet(format!("{conditions:?}")),
        })
    })
    .await?;
    println!("{message}");
    let ready = cluster.status().await?.conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    claim(!ready, || "it is Ready without its data".to_owned())
}
