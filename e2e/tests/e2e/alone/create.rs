//! A new cluster: Ready, its Services lead to the right instances, TLS or nothing, and then silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE},
    kubectl::{apply, kubectl, run},
    toolbox::Toolbox,
    wait::{Look, until},
    writer::WriterPod,
};

use crate::{
    alone_in_namespace,
    checks::{claim, endpoints},
    manifests, secrecy,
};

/// How long a settled cluster is watched.
const SILENCE: Duration = Duration::from_secs(20);

#[tokio::test]
#[ignore = "needs a Kubernetes: make e2e"]
async fn a_cluster_of_three_becomes_ready_serves_over_tls_alone_and_settles() -> Result<()> {
    alone_in_namespace("e2e-create", async |client, namespace| {
        let more = format!("{}{}", manifests::REQUIRED, manifests::backup_to_store());
        apply(namespace, &manifests::cluster("c", 3, &more)).await?;
        let cluster = Cluster::new(client, namespace, "c");
        let status = cluster.wait_ready(3).await?;
        let nodes: BTreeSet<_> = status.members.iter().filter_map(|member| member.node.clone()).collect();
        claim(nodes.len() == 3, || format!("three instances run on {nodes:?}"))?;
        check_services(&cluster).await?;
        check_connections(&cluster).await?;
        let primary = cluster.primary().await?;
        // Under load, since a busy cluster is settled as well.
        let writer = WriterPod::start(client, namespace, "c", &cluster.node_of(&primary).await?).await?;
        check_silence(namespace).await?;
        writer.wait_progress(10).await?;
        secrecy::check(client, &cluster).await
    })
    .await
}

async fn check_services(cluster: &Cluster) -> Result<()> {
    let primary = cluster.primary().await?;
    let all: BTreeSet<String> = ["c-0", "c-1", "c-2"].map(str::to_string).into();
    let replicas: BTreeSet<String> = all.iter().filter(|pod| **pod != primary).cloned().collect();
    let expected = [("c-rw", BTreeSet::from([primary])), ("c-ro", replicas), ("c-r", all.clone()), ("c-pods", all)];
    for (service, pods) in expected {
        until(&format!("{service} to lead to {pods:?}"), PATIENCE, async || {
            let found = endpoints(&cluster.namespace, service).await?;
            Ok(if found == pods { Look::Done(()) } else { Look::NotYet(format!("{found:?}")) })
        })
        .await?;
    }
    Ok(())
}

async fn check_connections(cluster: &Cluster) -> Result<()> {
    let toolbox = Toolbox::start(&cluster.namespace, &cluster.name).await?;
    let strict = "sslmode=verify-full sslrootcert=/etc/ca/ca.crt";
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for service in ["rw", "ro", "r"] {
        let ssl = toolbox.app_psql(service, strict, encrypted).await?;
        claim(ssl == "t", || format!("the connection through c-{service} is not encrypted: {ssl}"))?;
    }
    for (service, expected) in [("rw", "f"), ("ro", "t")] {
        let recovering = toolbox.app_psql(service, strict, "SELECT pg_is_in_recovery()").await?;
        claim(recovering == expected, || format!("pg_is_in_recovery() through c-{service} is {recovering}"))?;
    }
    match toolbox.app_psql("rw", "sslmode=disable", "SELECT 1").await {
        Ok(_) => Err("a connection without TLS is let in".into()),
        Err(error) => claim(error.to_string().contains("pg_hba.conf"), || {
            format!("a connection without TLS fails otherwise: {error}")
        }),
    }
}

/// Every object's version but those of Leases and of events that are not pgherd's.
async fn observe_versions(namespace: &str) -> Result<BTreeMap<String, String>> {
    let kinds = "pgc,pgb,pgbs,sts,pods,svc,cm,secrets,pvc,pdb,netpol,sa,roles,rolebindings,jobs,endpointslices,events";
    let list: serde_json::Value = serde_json::from_str(&kubectl(namespace, &["get", kinds, "-o", "json"]).await?)?;
    let mut versions = BTreeMap::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let component =
            item["reportingComponent"].as_str().or(item["source"]["component"].as_str()).unwrap_or_default();
        // The test's own pods are written to by their kubelet while they start.
        let ours = match item["kind"].as_str() {
            Some("Event") => component.contains("pgherd"),
            Some("Pod") => item["metadata"]["labels"]["pgherd.dev/cluster"].is_string(),
            _ => true,
        };
        if ours {
            let name = format!(
                "{} {}",
                item["kind"].as_str().unwrap_or_default(),
                item["metadata"]["name"].as_str().unwrap_or_default()
            );
            versions.insert(name, item["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string());
        }
    }
    Ok(versions)
}

/// Requests that ask for a change of objects which are pgherd's, by the API server's own count. A change that changes
/// nothing leaves the version as it is but is counted here. None while other clusters would be counted too.
async fn count_writes(namespace: &str) -> Result<Option<BTreeMap<String, String>>> {
    let clusters = run("kubectl", &["get", "pgc", "-A", "-o", "jsonpath={.items[*].metadata.namespace}"], None).await?;
    if clusters.split_whitespace().any(|other| other != namespace) {
        return Ok(None);
    }
    let metrics = run("kubectl", &["get", "--raw", "/metrics"], None).await?;
    let label = |line: &str, name: &str| -> String {
        line.split_once(&format!("{name}=\""))
            .and_then(|(_, rest)| rest.split('"').next())
            .unwrap_or_default()
            .to_string()
    };
    let ours = |line: &&str| {
        let (group, resource, sub) = (label(line, "group"), label(line, "resource"), label(line, "subresource"));
        let verb = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&label(line, "verb").as_str());
        let kinds = [
            "configmaps",
            "secrets",
            "services",
            "pods",
            "persistentvolumeclaims",
            "statefulsets",
            "roles",
            "rolebindings",
            "serviceaccounts",
            "poddisruptionbudgets",
            "networkpolicies",
            "jobs",
        ];
        line.starts_with("apiserver_request_total{")
            && verb
            && (group == "pgherd.dev" || (sub.is_empty() && kinds.contains(&resource.as_str())))
    };
    let counts = metrics.lines().filter(ours).filter_map(|line| line.rsplit_once(' '));
    Ok(Some(counts.map(|(series, count)| (series.to_string(), count.to_string())).collect()))
}

async fn check_silence(namespace: &str) -> Result<()> {
    let observe = async || -> Result<_> { Ok((observe_versions(namespace).await?, count_writes(namespace).await?)) };
    let before = until("a moment of silence", PATIENCE, async || {
        let first = observe().await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let second = observe().await?;
        Ok(if first == second { Look::Done(second) } else { Look::NotYet(describe_changes(&first, &second)) })
    })
    .await?;
    // A span to watch, not a wait for something.
    tokio::time::sleep(SILENCE).await;
    let after = observe().await?;
    claim(before == after, || {
        format!(
            "a settled cluster was written to within {} s: {}",
            SILENCE.as_secs(),
            describe_changes(&before, &after)
        )
    })?;
    println!(
        "settled: no writes within {} s ({} objects, requests counted: {})",
        SILENCE.as_secs(),
        after.0.len(),
        after.1.is_some()
    );
    Ok(())
}

type Seen = (BTreeMap<String, String>, Option<BTreeMap<String, String>>);

fn describe_changes(before: &Seen, after: &Seen) -> String {
    let changed = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| -> Vec<String> {
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        names
            .into_iter()
            .filter(|name| a.get(*name) != b.get(*name))
            .map(|name| format!("{name}: {:?} -> {:?}", a.get(name), b.get(name)))
            .collect()
    };
    let mut all = changed(&before.0, &after.0);
    if let (Some(a), Some(b)) = (&before.1, &after.1) {
        all.extend(changed(a, b));
    }
    all.join("; ")
}
