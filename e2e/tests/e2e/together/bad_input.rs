//! Bad input is rejected with a sentence, or ends in a condition that says what is wrong; nothing crashes in a loop.

use kube::{Api, Client};
use pgherd_crds::{
    Backup, BackupSchedule,
    v1alpha1::{backup::BackupPhase, shared::Condition},
};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, OPERATOR_NAMESPACE, PATIENCE},
    kubectl::{apply, kubectl},
    postgres::psql,
    wait::{Look, until},
};

use crate::{
    checks::{claim, restarts},
    in_namespace, manifests,
};

const INSTANCES: &str = "app.kubernetes.io/name=postgresql";
const OPERATOR: &str = "app.kubernetes.io/name=pgherd";

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_bad_spec_is_rejected_with_a_sentence() -> Result<()> {
    in_namespace("e2e-rejected", async |_, namespace| {
        let required = "  synchronous: {mode: Required, replicas: 2}\n";
        let owned = "  postgresql: {parameters: {archive_command: \"cp %p /mnt/%f\"}}\n";
        let suspended = |size: &str| manifests::cluster("c", 1, "  suspend: true\n").replace("1Gi", size);
        apply(namespace, &suspended("2Gi")).await?;
        let cases = [
            (manifests::cluster("none", 0, ""), "spec.instances"),
            (suspended("1Gi"), "size cannot shrink"),
            (manifests::schedule("s", "c", "0 0 3 * * *"), "schedule must have exactly 5 fields"),
            (manifests::cluster("strict", 2, required), "synchronous.replicas must be less than instances"),
            (manifests::cluster("owned", 1, owned), "this parameter is set by pgherd"),
        ];
        for (manifest, expected) in cases {
            match apply(namespace, &manifest).await {
                Ok(_) => return Err(format!("accepted: {manifest}").into()),
                Err(error) => {
                    claim(error.to_string().contains(expected), || format!("\"{expected}\" is not said: {error}"))?
                }
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_store_that_does_not_work_is_said_in_conditions_and_the_database_runs() -> Result<()> {
    in_namespace("e2e-bad-store", async |client, namespace| {
        let restarted = restarts(OPERATOR_NAMESPACE, OPERATOR).await?;
        let literal = [
            "create",
            "secret",
            "generic",
            "wrong",
            "--from-literal=accessKeyId=nobody",
            "--from-literal=secretAccessKey=notthekey",
        ];
        kubectl(namespace, &literal).await?;
        let working = manifests::backup_to_store();
        let cases = [
            ("credentials", working.replace("{name: minio}", "{name: wrong}"), "refuses the credentials"),
            (
                "bucket",
                working.replace("bucket: backups", "bucket: no-such-bucket"),
                "\"no-such-bucket\" does not exist",
            ),
            ("unreachable", working.replace("minio.minio.svc:9000", "nothing.minio.svc:9000"), "cannot be reached"),
        ];
        for (name, more, _) in &cases {
            apply(namespace, &manifests::cluster(name, 1, more)).await?;
            apply(namespace, &manifests::backup(name, name)).await?;
        }
        for (name, _, expected) in &cases {
            check_bad_store(client, namespace, name, expected).await?;
        }
        let restarts_of_instances = restarts(namespace, INSTANCES).await?;
        claim(restarts_of_instances == 0, || format!("instances were restarted {restarts_of_instances} times"))?;
        check_operator(restarted).await
    })
    .await
}

async fn check_bad_store(client: &Client, namespace: &str, name: &str, expected: &str) -> Result<()> {
    let cluster = Cluster::new(client, namespace, name);
    cluster.wait_ready(1).await?;
    psql(namespace, &cluster.primary().await?, "postgres", "SELECT pg_switch_wal()").await?;
    let backups: Api<Backup> = Api::namespaced(client.clone(), namespace);
    let error = until(&format!("backup {name} to fail"), PATIENCE, async || {
        let status = backups.get(name).await?.status.unwrap_or_default();
        let failed = status.phase == Some(BackupPhase::Failed);
        Ok(if failed {
            Look::Done(status.error.unwrap_or_default())
        } else {
            Look::NotYet(format!("{:?} {}", status.phase, say(&status.conditions)))
        })
    })
    .await?;
    claim(error.contains(expected), || format!("backup {name} does not say \"{expected}\": {error}"))?;
    for type_ in ["Archiving", "BackupHealthy"] {
        let (reason, message) = cluster.wait_condition(type_, "False").await?;
        println!("{name}: {type_}=False {reason}: {message}");
        claim(message.contains(expected), || {
            format!("{type_} of {name} does not say \"{expected}\": {reason}: {message}")
        })?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_parameter_that_postgresql_does_not_take_is_named_and_stops_no_start() -> Result<()> {
    in_namespace("e2e-bad-parameters", async |client, namespace| {
        let bad =
            "  postgresql: {parameters: {work_mem: 12 potatoes, no_such_thing: \"1\", log_temp_files: \"250\"}}\n";
        apply(namespace, &manifests::cluster("c", 1, bad)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        cluster.wait_ready(1).await?;
        let (reason, message) = cluster.wait_condition("InstancesCurrent", "False").await?;
        println!("InstancesCurrent=False {reason}: {message}");
        for expected in ["spec.postgresql.parameters.work_mem: invalid value", "parameters.no_such_thing: unrecognized"]
        {
            claim(message.contains(expected), || format!("\"{expected}\" is not said: {message}"))?;
        }
        let shown = psql(namespace, &cluster.primary().await?, "postgres", "SHOW log_temp_files").await?;
        claim(shown == "250kB", || format!("the good one is not in effect: {shown}"))?;
        let good =
            serde_json::json!({"spec": {"postgresql": {"parameters": {"work_mem": "8MB", "no_such_thing": null}}}});
        cluster.patch(good).await?;
        cluster.wait_condition("InstancesCurrent", "True").await?;
        let shown = psql(namespace, &cluster.primary().await?, "postgres", "SHOW work_mem").await?;
        claim(shown == "8MB", || format!("the corrected one is not in effect: {shown}"))
    })
    .await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_cluster_that_does_not_exist_and_a_day_that_never_comes_are_said_in_conditions() -> Result<()> {
    in_namespace("e2e-bad-names", async |client, namespace| {
        let restarted = restarts(OPERATOR_NAMESPACE, OPERATOR).await?;
        apply(namespace, &manifests::cluster("c", 1, "  suspend: true\n")).await?;
        apply(namespace, &manifests::schedule("lost", "nobody", "0 3 * * *")).await?;
        apply(namespace, &manifests::schedule("never", "c", "0 0 30 2 *")).await?;
        apply(namespace, &manifests::backup("lost", "nobody")).await?;
        let schedules: Api<BackupSchedule> = Api::namespaced(client.clone(), namespace);
        for (name, expected) in [("lost", "no PostgresCluster nobody"), ("never", "never fires")] {
            let look = async || Ok(schedules.get(name).await?.status.unwrap_or_default().conditions);
            wait_stalled(&format!("schedule {name}"), expected, look).await?;
        }
        let backups: Api<Backup> = Api::namespaced(client.clone(), namespace);
        let look = async || Ok(backups.get("lost").await?.status.unwrap_or_default().conditions);
        wait_stalled("backup lost", "no PostgresCluster nobody", look).await?;
        check_operator(restarted).await
    })
    .await
}

/// `Stalled` with a message that says what is wrong, and not `Ready`.
async fn wait_stalled(what: &str, expected: &str, look: impl AsyncFn() -> Result<Vec<Condition>>) -> Result<()> {
    until(&format!("{what} to be stalled: {expected}"), PATIENCE, async || {
        let conditions = look().await?;
        let is = |type_: &str, status: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == status);
        let said =
            conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True" && c.message.contains(expected));
        Ok(if said && is("Ready", "False") { Look::Done(()) } else { Look::NotYet(say(&conditions)) })
    })
    .await
}

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn an_image_without_postgres_is_said_in_a_condition_without_a_crash_loop() -> Result<()> {
    in_namespace("e2e-bad-image", async |client, namespace| {
        let restarted = restarts(OPERATOR_NAMESPACE, OPERATOR).await?;
        let manifest = manifests::cluster("c", 1, "").replace(&manifests::version(), "image: localhost/pgherd-minio:1");
        apply(namespace, &manifest).await?;
        let cluster = Cluster::new(client, namespace, "c");
        let (reason, message) = cluster.wait_condition("Stalled", "True").await?;
        println!("Stalled {reason}: {message}");
        claim(message.contains("PostgreSQL") || message.contains("postgres"), || {
            format!("it is not said what is wrong: {message}")
        })?;
        let (_, message) = cluster.wait_condition("Ready", "False").await?;
        claim(!message.is_empty(), || "Ready=False says nothing".to_string())?;
        // Long enough for a crash loop to show: the kubelet starts a container again at once, then after 10 s.
        tokio::time::sleep(std::time::Duration::from_secs(15)).await;
        let count = restarts(namespace, INSTANCES).await?;
        claim(count <= 1, || format!("the instance was restarted {count} times"))?;
        check_operator(restarted).await
    })
    .await
}

/// The operator runs as it ran before.
async fn check_operator(before: u32) -> Result<()> {
    let now = restarts(OPERATOR_NAMESPACE, OPERATOR).await?;
    claim(now == before, || format!("the operator was restarted {} times", now - before))
}

fn say(conditions: &[Condition]) -> String {
    let each = conditions.iter().map(|c| format!("{}={} ({}: {})", c.type_, c.status, c.reason, c.message));
    each.collect::<Vec<_>>().join("; ")
}
