//! Every fault by number, name and what it does. Numbers are never given again, so that results of
//! different times can be compared.

use futures::future::BoxFuture;
use pgherd_e2e::{Result, postgres::major, store_faults::StoreProxy};

use crate::{
    archive, backups, clients, control_plane, membership, network, node_faults, operator, pods, processes, recoveries,
    register, run::NAMESPACE, scene::Scene, succession, volumes,
};

/// Does something to a cluster, undoes it, and claims what the fault alone can claim.
pub(crate) type Inject = for<'a> fn(&'a Scene) -> BoxFuture<'a, Result<()>>;

/// The cluster that a fault needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A commit waits for one of two replicas.
    Required,
    /// A commit waits for nobody.
    Off,
    /// As `Required`, each instance on a disk of its own.
    OwnDisk,
    /// As `Required`, with an archive and backups in an object store to which the way is a proxy.
    Backed,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Required, Self::Off, Self::OwnDisk, Self::Backed];

    /// The cluster's name.
    pub(crate) fn cluster(self) -> &'static str {
        match self {
            Self::Required => "f",
            Self::Off => "async",
            Self::OwnDisk => "disk",
            Self::Backed => "backed",
        }
    }

    pub(crate) fn manifest(self) -> String {
        let mode = if self == Self::Off { "{mode: \"Off\"}" } else { "{mode: Required, replicas: 1}" };
        let class = if self == Self::OwnDisk { ", storageClassName: faults-disk" } else { "" };
        let store = format!("  backup:\n{}", StoreProxy::object_store_yaml(NAMESPACE, 4));
        let backup = if self == Self::Backed { store.as_str() } else { "" };
        format!(
            "apiVersion: pgherd.dev/v1alpha1\nkind: PostgresCluster\nmetadata: {{name: {}}}\nspec:\n  version: {}\n  instances: 3\n  \
             storage: {{size: 1Gi{class}}}\n  synchronous: {mode}\n{backup}",
            self.cluster(),
            major()
        )
    }
}

/// What is done about a fault.
pub(crate) enum Plan {
    /// It is injected.
    Inject { mode: Mode, short: bool, inject: Inject },
    /// It is not, for this reason.
    NotInjected(&'static str),
}

/// A fault.
pub(crate) struct Fault {
    pub(crate) number: &'static str,
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) plan: Plan,
}

impl Fault {
    pub(crate) fn is_chosen(&self, only: &[String], short: bool) -> bool {
        if short {
            return matches!(self.plan, Plan::Inject { short: true, .. });
        }
        let named = |wanted: &String| self.number == wanted || self.name.starts_with(wanted.as_str());
        only.is_empty() || only.iter().any(named)
    }

    /// The longest time without a write that the list allows, in milliseconds; a longer one is noted, not judged, since a busy
    /// machine is slow.
    pub(crate) fn goal_ms(&self) -> Option<u64> {
        match (self.number, self.name.ends_with("-off")) {
            ("1" | "5", _) => Some(5_000),
            ("41", _) if self.name.starts_with("zone") => Some(5_000),
            // It lasts as long as the cut.
            ("41", _) if self.name.starts_with("isolated") => None,
            ("41" | "10", false) => Some(10_000),
            ("44", _) if self.name.ends_with("-dies") => Some(20_000),
            ("44", _) => Some(3_000),
            ("2" | "3" | "4" | "6" | "7" | "8" | "10" | "34" | "35" | "41", _) => Some(20_000),
            ("9" | "13" | "14", _) => Some(2_000),
            ("47", _) if self.name.ends_with("-in-failover") => Some(20_000),
            ("47", _) => Some(2_000),
            _ => None,
        }
    }

    /// The fault itself promotes a second instance.
    pub(crate) fn may_overlap(&self) -> bool {
        self.name == "replica-promoted-by-hand"
    }

    /// The fault removes the cluster, so that there is nothing to check after it.
    pub(crate) fn leaves_nothing(&self) -> bool {
        self.name == "cluster-deleted"
    }
}

macro_rules! faults {
    ($($number:literal $name:literal $title:literal $what:tt $(($($argument:tt)*))?;)*) => {
        vec![$(Fault { number: $number, name: $name, title: $title, plan: faults!(@ $what $($($argument)*)?) }),*]
    };
    (@ short $inject:path) => { faults!(@@ Mode::Required, true, $inject) };
    (@ required $inject:path) => { faults!(@@ Mode::Required, false, $inject) };
    (@ off $inject:path) => { faults!(@@ Mode::Off, false, $inject) };
    (@ disk $inject:path) => { faults!(@@ Mode::OwnDisk, false, $inject) };
    (@ backed $inject:path) => { faults!(@@ Mode::Backed, false, $inject) };
    (@ not $reason:literal) => { Plan::NotInjected($reason) };
    (@@ $mode:expr, $short:literal, $inject:path) => {
        Plan::Inject { mode: $mode, short: $short, inject: |scene| Box::pin($inject(scene)) }
    };
}

/// All of them.
pub(crate) fn all() -> Vec<Fault> {
    [faults_of_primaries(), faults_of_decisions(), faults_of_surroundings(), faults_of_stores()]
        .into_iter()
        .flatten()
        .collect()
}

/// Numbers 1 to 13: what happens to the primary, and between it and others.
#[rustfmt::skip]
fn faults_of_primaries() -> Vec<Fault> {
    faults! {
        "1" "postmaster-killed" "kill -9 of the primary's postmaster" short (processes::postmaster_killed);
        "1" "postmaster-killed-off" "the same in mode Off" off (processes::postmaster_killed);
        "2" "supervisor-killed" "kill -9 of PID 1 of the primary's container" short (processes::supervisor_killed);
        "3" "agent-stopped" "SIGSTOP of the primary's agent alone" short (processes::agent_stopped);
        "3" "agent-stopped-off" "the same in mode Off" off (processes::agent_stopped);
        "4" "postgres-stopped" "SIGSTOP of the primary's postmaster and its sessions" required (processes::postgres_stopped);
        "5" "pod-deleted" "the primary's pod is deleted" short (pods::deleted);
        "5" "pod-deleted-by-force" "the primary's pod is deleted without grace" required (pods::deleted_by_force);
        "6" "pod-twin" "the pod is forgotten while its container hangs, and a twin starts" required (pods::twin);
        "7" "node-dead" "the primary's node dies" required (node_faults::node_dead);
        "7" "node-dead-off" "the same in mode Off" off (node_faults::node_dead);
        "8" "node-dead-with-leader" "the node of the primary and of the leading operator dies" required (node_faults::node_dead_with_leader);
        "9" "primary-without-api" "the primary is cut from the API server for 40 s" short (network::without_api);
        "10" "primary-isolated" "the primary is cut from API, peers and operator; clients stay" short (network::isolated);
        "10" "primary-isolated-off" "the same in mode Off" off (network::isolated);
        "11" "primary-without-peers" "the primary is cut from its replicas for 20 s" required (network::without_peers);
        "12" "one-way-peers-in" "packets from the replicas to the primary vanish" required (network::peers_in);
        "12" "one-way-peers-out" "packets from the primary to the replicas vanish" required (network::peers_out);
        "12" "one-way-api-in" "packets from the API server to the primary vanish" required (network::api_in);
        "12" "one-way-api-out" "packets from the primary to the API server vanish" required (network::api_out);
        "13" "primary-without-operator" "the operators are cut from the primary for 40 s" required (network::without_operator);
    }
}

/// Numbers 14 to 30: the API server, the register, and one fault after another.
#[rustfmt::skip]
fn faults_of_decisions() -> Vec<Fault> {
    faults! {
        "14" "api-stopped-2s" "the API server hangs for 2 s" required (control_plane::stopped_2);
        "14" "api-stopped-10s" "the API server hangs for 10 s" short (control_plane::stopped_10);
        "14" "api-stopped-60s" "the API server hangs for 60 s" required (control_plane::stopped_60);
        "14" "api-stopped-300s" "the API server hangs for 5 min" required (control_plane::stopped_300);
        "14" "api-killed-60s" "the API server is gone for 60 s" required (control_plane::killed_60);
        "15" "api-stopped-replica-dead" "the API server and one replica hang for 30 s" required (control_plane::stopped_and_a_replica_dead);
        "16" "api-slow-1s" "every request to the API server arrives 1 s late" required (control_plane::slow_1);
        "16" "api-slow-3s" "every request to the API server arrives 3 s late" required (control_plane::slow_3);
        "16" "api-slow-10s" "every request to the API server arrives 10 s late" required (control_plane::slow_10);
        "16" "api-errors" "a quarter of all requests to the API server is answered with 500 or 429" required (control_plane::errors);
        "17" "watch-stuck" "watches say nothing and end with 410 Gone while the primary hangs" required (control_plane::stuck_watches);
        "18" "stale-read-off" "the operators read the Lease and all else of the cluster as it was 40 s ago" off (control_plane::stale_reads);
        "19" "lease-deleted" "the Lease is deleted by hand" required (register::deleted);
        "19" "lease-malformed" "the register becomes malformed JSON by hand" required (register::malformed);
        "19" "lease-other-holder" "another pod is written into the register by hand" required (register::other_holder);
        "19" "lease-contended" "a foreign writer changes the Lease without pause" required (register::contended);
        "20" "replica-without-operator" "a replica streams but the operator can't reach it; the primary dies" required (network::replica_without_operator);
        "21" "voter-dies-after-decision" "the other voter hangs as soon as the register names the winner" required (succession::voter_dies_after_decision);
        "22" "successor-dies" "the primary dies, then its successor" required (succession::successor_dies);
        "23" "outdated-returns-alone" "a replica that missed commits is the only one up" required (succession::outdated_returns_alone);
        "24" "candidate-killed" "the winner is killed as soon as the register names it" required (succession::candidate_killed);
        "24" "candidate-killed-at-promotion" "the winner is killed as soon as it has written down that it leads" required (succession::candidate_killed_at_promotion);
        "24" "candidate-killed-at-history" "the winner is killed as soon as its new timeline has a history" required (succession::candidate_killed_at_history);
        "25" "one-timeline-twice-off" "two promotions that don't know of each other take the same timeline" off (succession::one_timeline_twice);
        "26" "replica-promoted-by-hand" "a replica is promoted by hand and written to" required (succession::promoted_by_hand);
        "27" "old-primary-ahead" "the old primary returns with WAL that nobody acknowledged" required (succession::old_primary_ahead);
        "28" "ahead-replica-returns" "a replica that is ahead of the promoted one returns" off (succession::ahead_replica_returns);
        "29" "replica-wiped" "a replica loses its volume, then the primary dies" required (succession::wiped_replica);
        "30" "copy-killed" "a new copy of a replica is killed midway" required (succession::copy_killed);
    }
}

/// Numbers 31 to 46, and 56: disks, processors, clocks, networks, clients, changes.
#[rustfmt::skip]
fn faults_of_surroundings() -> Vec<Fault> {
    faults! {
        "31" "disk-full" "the primary's disk is full for 60 s" disk (volumes::full);
        "31" "disk-full-on-replica" "a replica's disk is full for 40 s" disk (volumes::full_on_replica);
        "32" "disk-errors" "every read, write and fsync on the primary's disk fails with EIO" disk (volumes::errors);
        "32" "disk-read-only" "the primary's file system becomes read-only" disk (volumes::read_only);
        "33" "disk-slow-500ms" "every write to the primary's disk waits up to 0.5 s" disk (volumes::slow_500ms);
        "33" "disk-slow-5s" "every write to the primary's disk waits up to 5 s" disk (volumes::slow_5s);
        "33" "disk-slow-30s" "every write to the primary's disk waits up to 30 s" disk (volumes::slow_30s);
        "34" "disk-dead" "writes to the primary's disk never end, its network lives" disk (volumes::dead);
        "35" "backend-killed" "kill -9 of a session's process" required (processes::backend_killed);
        "35" "out-of-memory" "a session takes more memory than the primary's container may have" required (processes::out_of_memory);
        "35" "agent-killed" "kill -9 of the primary's agent" required (processes::agent_killed);
        "36" "starved" "the primary's container gets 2 % of a processor for 60 s" required (processes::starved);
        "37" "clock-steps" "clocks step by an hour, drift, differ between pods" not ("all nodes share this machine's clock; pgherd decides by CLOCK_BOOTTIME, which nobody can set, and compares no time of one machine with another's; in the simulation a paused machine's clock stands still");
        "38" "node-paused-5s" "the primary's node hangs for 5 s" required (pods::paused_5);
        "38" "node-paused-12s" "the primary's node hangs for 12 s" required (pods::paused_12);
        "38" "node-paused-40s" "the primary's node hangs for 40 s" required (pods::paused_40);
        "39" "packets-lost" "5 % of the primary's packets vanish for 30 s" required (network::packets_lost);
        "39" "packets-late" "200 ms of latency, reordering, a small MTU" not ("the kernel of this machine has no netem");
        "40" "dns-down" "without DNS the primary's PostgreSQL dies, then its successor's container" required (network::dns_down);
        "40" "address-reused" "another cluster's pod gets an old pod's address" not ("addresses are given out by the node in order and can't be chosen; certificates name the pod and its namespace");
        "41" "node-cut" "the primary's node is cut from everything" short (node_faults::node_cut);
        "41" "node-cut-off" "the same in mode Off" off (node_faults::node_cut);
        "41" "node-cut-with-leader" "the node of the primary and of the leading operator is cut off" required (node_faults::node_cut_with_leader);
        "41" "zone-without-api" "the primary and one replica are cut from the other replica, the operators and the API server" required (network::zone_without_api);
        "41" "zones-without-api" "the same, and the other replica is cut from the API server as well" required (network::zones_without_api);
        "41" "isolated-and-nobody-has-api" "the primary is cut from everybody, and the replicas from the API server" required (network::isolated_and_nobody_has_api);
        "42" "query-on-replica" "the replay of both replicas is held up by open transactions while the primary hangs" required (clients::query_on_replica);
        "42" "wait-cancelled" "waits for replicas are cancelled" required (clients::wait_cancelled);
        "42" "wait-terminated" "sessions that wait for replicas are ended" required (clients::wait_terminated);
        "43" "acknowledgements-changed" "W 1, 2, 1 under load, then the primary dies" required (membership::acknowledgements_changed);
        "43" "scaled" "3, 5, 2, 3 instances under load" required (membership::scaled);
        "44" "switchover" "a switchover is asked for" short (membership::switchover);
        "44" "switchover-target-dies" "the target of a switchover dies midway" required (membership::switchover_target_dies);
        "44" "node-drained" "the primary's node is drained" required (membership::drained);
        "45" "operator-killed-in-a-loop" "all operators are killed every few seconds while the primary hangs" required (operator::killed_in_a_loop);
        "46" "two-operators" "a second operator that knows nothing of the first" required (operator::two);
        "56" "cluster-deleted" "the cluster is deleted during a failover" required (membership::deleted_in_failover);
    }
}

/// Numbers 47 to 53: the object store, while WAL is archived, a backup is made, and one is read.
#[rustfmt::skip]
fn faults_of_stores() -> Vec<Fault> {
    faults! {
        "47" "store-down" "the store closes every connection while WAL is archived" backed (archive::down);
        "47" "store-slow" "the store takes 3 s for every request, for 40 s" backed (archive::slow);
        "47" "store-busy" "the store answers everything with 503 SlowDown" backed (archive::busy);
        "47" "store-denies" "the store answers everything with 403 AccessDenied" backed (archive::denies);
        "47" "store-credentials-expired" "the store answers everything with 403 ExpiredToken" backed (archive::expired);
        "47" "store-down-in-failover" "the store is down, and the primary hangs" backed (archive::down_in_failover);
        "47" "store-expired-in-failover" "the credentials have expired, and the primary hangs" backed (archive::expired_in_failover);
        "47" "store-silent-in-failover" "the store goes with the primary, without a word" not ("covered by the end-to-end test store_outage, which cuts the node of both off");
        "48" "answers-cut" "answers of the store break off while a cluster is made from it" backed (recoveries::answers_cut);
        "48" "objects-damaged" "a bit is another one in each kind of object that a cluster is made from" backed (recoveries::objects_damaged);
        "48" "uploads-damaged" "a bit of what is uploaded is another one when the store gets it" backed (backups::uploads_damaged);
        "48" "completion-fails" "the end of each upload is answered with 200 and an error inside, or its answer lost" backed (backups::completion_fails);
        "48" "list-late" "a listing lacks what was written a moment ago" not ("MinIO, as S3, lists what it has written; nothing here trusts a listing to prove an absence of WAL or of backup.json");
        "49" "idle-backup" "an idle database is backed up and restored at once" backed (backups::idle);
        "50" "failover-in-backup" "the primary hangs in the middle of a base backup" backed (backups::failover_meanwhile);
        "50" "backup-source-dies" "the instance that a base backup is read from dies in its middle" backed (backups::source_dies);
        "50" "backup-job-killed" "the Job's pod is killed at the begin, in the data, and at the end" backed (backups::job_killed);
        "50" "backups-at-once" "two backups are asked for at once" backed (backups::two_at_once);
        "51" "old-primary-archives" "an isolated primary archives a segment that its successor knows by the same name" backed (archive::old_primary_archives);
        "52" "deleted-while-read" "a backup is deleted while a cluster is made from it" backed (backups::deleted_while_read);
        "52" "last-backup-expires" "the last good backup is beyond the retention, or to be deleted" not ("covered by the end-to-end test retention, and by property tests of the plan");
        "52" "clock-wrong" "the clock of whoever deletes is wrong by a year" not ("all nodes share one kernel's clock; a property test of the plan moves its clock, and the newest good backup stays at any time");
        "53" "recovery-into-own-path" "a living cluster is made anew elsewhere, with its own path in the store" backed (recoveries::into_own_path);
        "53" "recovery-segment-missing" "a WAL segment before the target is gone from the archive" backed (recoveries::segment_missing);
        "53" "recovery-before-base" "the target is older than the oldest backup" backed (recoveries::before_base);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_of_the_list_is_there_and_every_name_is_used_once() {
        let all = all();
        let numbers: BTreeSet<u32> = all.iter().filter_map(|fault| fault.number.parse().ok()).collect();
        assert_eq!(numbers, (1..=53).chain([56]).collect());
        let names: BTreeSet<&str> = all.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn names_of_clusters_survive_yaml() {
        for mode in Mode::ALL {
            let object: serde_json::Value = yaml_serde::from_str(&mode.manifest()).expect("YAML");
            assert_eq!(object["metadata"]["name"], mode.cluster());
        }
    }
}
