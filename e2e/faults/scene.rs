//! What a fault finds: a cluster that is Ready, clients that write to it, and a client in each instance's network.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pgherd_crds::{PostgresClusterStatus, v1alpha1::postgres_cluster::LastFailover};
use pgherd_e2e::{
    Result,
    cluster::{Cluster, PATIENCE, describe},
    containers::{self, Container, Kind},
    kubectl::kubectl,
    overlap::{last_acknowledged, last_before_silence},
    probes::Probes,
    wait::{Look, until},
    writer::WriterPod,
};

use crate::backed::Backed;

/// Everything that a fault works on.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) writer: WriterPod,
    pub(crate) probes: Probes,
    /// `pgherd-e2e`, built for this machine.
    pub(crate) program: String,
    /// The status before the fault.
    pub(crate) before: PostgresClusterStatus,
    /// The object store, where the mode has one.
    pub(crate) backed: Option<Backed>,
    restarts_before: Vec<(String, i32)>,
    /// The postmasters before the fault.
    postmasters_before: BTreeSet<u32>,
    /// How many instances the cluster is to have in the end.
    pub(crate) instances: Mutex<u32>,
    notes: Mutex<Vec<String>>,
}

/// Fails a fault with a sentence unless the claim holds.
pub(crate) fn claim(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn postmasters(namespace: &str) -> Result<BTreeSet<u32>> {
    Ok(containers::observe(namespace)?.iter().flat_map(|container| container.pids(&[Kind::Postmaster])).collect())
}

impl Scene {
    pub(crate) async fn new(
        cluster: Cluster,
        writer: WriterPod,
        probes: Probes,
        program: String,
        before: PostgresClusterStatus,
        backed: Option<Backed>,
    ) -> Result<Self> {
        let instances = Mutex::new(before.instances);
        let notes = Mutex::default();
        let (restarts_before, postmasters_before) = (Vec::new(), postmasters(&cluster.namespace)?);
        let mut scene = Self {
            cluster,
            writer,
            probes,
            program,
            before,
            backed,
            restarts_before,
            postmasters_before,
            instances,
            notes,
        };
        scene.restarts_before = scene.restarts().await?;
        Ok(scene)
    }

    /// Says something that the result is to hold.
    pub(crate) fn note(&self, text: String) {
        println!("   {text}");
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn expect_instances(&self, count: u32) {
        *self.instances.lock().unwrap_or_else(PoisonError::into_inner) = count;
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.cluster.namespace
    }

    /// The primary before the fault.
    pub(crate) fn primary(&self) -> Result<String> {
        self.before.primary.clone().ok_or_else(|| "there was no primary".into())
    }

    /// The replicas before the fault.
    pub(crate) fn replicas(&self) -> Vec<String> {
        let others = self.before.members.iter().filter(|member| Some(&member.pod) != self.before.primary.as_ref());
        others.map(|member| member.pod.clone()).collect()
    }

    /// The container of a pod.
    pub(crate) fn container(&self, pod: &str) -> Result<Container> {
        containers::of_pod(self.namespace(), pod)
    }

    /// The container of the primary.
    pub(crate) fn primary_container(&self) -> Result<Container> {
        self.container(&self.primary()?)
    }

    /// The addresses of pods.
    pub(crate) async fn addresses(&self, pods: &[String]) -> Result<Vec<String>> {
        let all = self.cluster.pods().await?;
        let wanted = all.into_iter().filter(|pod| pod.metadata.name.as_ref().is_some_and(|name| pods.contains(name)));
        Ok(wanted.filter_map(|pod| pod.status.and_then(|status| status.pod_ip)).collect())
    }

    /// The register as the Lease has it now.
    pub(crate) async fn register(&self) -> Result<serde_json::Value> {
        let text = kubectl(self.namespace(), &["get", "lease", &self.cluster.name, "-o", "json"]).await?;
        let lease: serde_json::Value = serde_json::from_str(&text)?;
        let register = &lease["metadata"]["annotations"][pgherd_core::register::REGISTER_ANNOTATION];
        Ok(serde_json::from_str(register.as_str().unwrap_or("{}"))?)
    }

    /// Waits for a later term with a primary, and notes how it came about.
    pub(crate) async fn wait_failover(&self) -> Result<LastFailover> {
        self.wait_term_after(self.before.term.unwrap_or_default()).await
    }

    /// Waits for a term after this one, with a primary and its record.
    pub(crate) async fn wait_term_after(&self, term: u64) -> Result<LastFailover> {
        let failover = until(&format!("a term after {term}"), PATIENCE, async || {
            let status = self.cluster.status().await?;
            let later = status.term > Some(term) && status.primary.is_some();
            let recorded = status.last_failover.clone().filter(|failover| later && failover.term > term);
            Ok(recorded.map_or_else(|| Look::NotYet(describe(&status)), Look::Done))
        })
        .await?;
        self.note(format!(
            "{} -> {} because {} (detect {} ms, seal {} ms, promote {} ms, route {} ms)",
            failover.from,
            failover.to,
            failover.reason,
            failover.detect_ms,
            failover.seal_ms,
            failover.promote_ms,
            failover.route_ms
        ));
        Ok(failover)
    }

    /// Waits until the primary was given up for another, or its container or PostgreSQL alone was restarted and clients
    /// write again.
    pub(crate) async fn wait_failover_or_restart(&self, primary: &str) -> Result<()> {
        let count = |all: &[(String, i32)]| all.iter().find(|(pod, _)| pod == primary).map_or(0, |(_, count)| *count);
        let before = count(&self.restarts_before);
        let moved = until(&format!("{primary} to be replaced or restarted"), PATIENCE, async || {
            let status = self.cluster.status().await?;
            if status.term > self.before.term && status.primary.is_some() {
                return Ok(Look::Done(true));
            }
            let postmaster = self.container(primary).map(|container| container.pids(&[Kind::Postmaster]));
            let anew = postmaster.is_ok_and(|pids| pids.iter().any(|pid| !self.postmasters_before.contains(pid)));
            let restarted = anew || count(&self.restarts().await?) > before;
            let writing = self.writer.ledger().await?.since_last_ack_ms < 500;
            Ok(if restarted && writing { Look::Done(false) } else { Look::NotYet(describe(&status)) })
        })
        .await?;
        if moved {
            return self.wait_failover().await.map(drop);
        }
        self.note(format!("{primary} came back by itself in its term"));
        Ok(())
    }

    /// Waits until an instance has acknowledged nothing for two seconds, as the client in its own network hears it.
    pub(crate) async fn wait_silent(&self, container: &Container, limit: Duration) -> Result<()> {
        let name = format!("{}/{}", container.pod, container.uid);
        until(&format!("{name} to take no more writes"), limit, async || {
            let last = self.probes.heard().get(&name).and_then(|looks| last_acknowledged(looks, 0)).unwrap_or_default();
            let silent = unix_ms() - last;
            Ok(if silent > 2_000 { Look::Done(()) } else { Look::NotYet(format!("silent for {silent} ms")) })
        })
        .await
    }

    /// Watches for a while that the term stays as it was; looks that get no answer count for nothing.
    ///
    /// # Errors
    /// There was a failover.
    pub(crate) async fn watch_no_failover(&self, span: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < span {
            let look = tokio::time::timeout(Duration::from_secs(2), self.cluster.status()).await;
            if let Ok(Ok(status)) = look {
                self.check_same_term(&status)?;
            }
            // A span to watch, not a wait for something.
            tokio::time::sleep(Duration::from_millis(500).min(span)).await;
        }
        Ok(())
    }

    fn check_same_term(&self, status: &PostgresClusterStatus) -> Result<()> {
        let reason = || status.last_failover.as_ref().map(|failover| failover.reason.clone()).unwrap_or_default();
        claim(status.term == self.before.term, || {
            format!(
                "failover from {} to {} although the primary was not to be given up: {}",
                self.before.primary.clone().unwrap_or_default(),
                status.primary.clone().unwrap_or_default(),
                reason()
            )
        })
    }

    /// How often the containers of the instances were restarted, by pod.
    pub(crate) async fn restarts(&self) -> Result<Vec<(String, i32)>> {
        let pods = self.cluster.pods().await?.into_iter();
        let mut all: Vec<_> = pods
            .map(|pod| {
                let statuses = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
                (pod.metadata.name.unwrap_or_default(), statuses.iter().map(|container| container.restart_count).sum())
            })
            .collect();
        all.sort();
        Ok(all)
    }

    /// Does the work, and afterwards claims that neither the primary nor its term changed, and neither a container nor a PostgreSQL
    /// was restarted: a primary that was fenced is started again in its container.
    pub(crate) async fn nothing_moves(&self, work: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let (restarts, running) = (self.restarts().await?, postmasters(self.namespace())?);
        work().await?;
        self.writer.wait_progress(50).await?;
        self.check_same_term(&self.cluster.status().await?)?;
        let now = self.restarts().await?;
        claim(restarts == now, || format!("containers were restarted: {restarts:?} before, {now:?} now"))?;
        let now = postmasters(self.namespace())?;
        claim(running == now, || format!("a PostgreSQL was stopped: postmasters {running:?} before, {now:?} now"))
    }

    /// When this pod (not a later one of its name) acknowledged last before the next silence of two seconds, in
    /// milliseconds after a point in time; notes it.
    pub(crate) fn note_last_ack_of(&self, container: &Container, since_ms: i64) -> i64 {
        let name = format!("{}/{}", container.pod, container.uid);
        let heard = self.probes.heard().remove(&name).unwrap_or_default();
        let last = last_before_silence(&heard, since_ms).map_or(0, |at| at - since_ms);
        self.note(format!("{} acknowledged until {last} ms after the fault", container.pod));
        last
    }
}
