//! Turns samples and the local state into what the status shows. Shows only what was observed: a server that does not
//! answer is shown as down, not as it last was.

use pgherd_core::{
    instance::{AppliedQuorum, Receiver},
    timeline::{TimelineHistory, TimelineId},
};

use crate::{
    agent::Agent,
    local_state::LocalState,
    postgres::{
        config::Role,
        probe::{ReceiverSample, Sample},
        wal_dir,
    },
};

/// The history of the WAL that a running server holds.
#[must_use]
pub fn observe_history(agent: &Agent, sample: &Sample) -> Option<TimelineHistory> {
    let named = sample.wal_file.as_deref().and_then(|name| wal_dir::parse_segment_name(name, sample.segment_bytes));
    let timeline = match named {
        Some((timeline, _)) => timeline,
        None => wal_dir::timeline_at(&agent.layout.pgdata, sample.received, sample.segment_bytes)?,
    };
    (timeline > TimelineId(0)).then(|| wal_dir::observe_history(&agent.layout.pgdata, timeline))
}

/// Shows a sample.
pub fn show_sample(agent: &Agent, sample: &Sample) {
    let history = observe_history(agent, sample);
    let receiver = sample.receiver.as_ref().map(|receiver| build_receiver(agent, receiver));
    let quorum = agent.quorum();
    // Only what the server runs with is shown: the names in its own setting are those that were written.
    let in_effect = !sample.in_recovery && sample.synchronous_standby_names == quorum.names && quorum.barrier.is_some();
    let applied = in_effect.then(|| AppliedQuorum {
        voters: quorum.members.clone(),
        acks: quorum.acks,
        barrier_passed: quorum.passed,
    });
    agent.board.update(|status| {
        status.postgres_up = true;
        status.is_primary = !sample.in_recovery;
        status.admits_clients = !sample.in_recovery && agent.gate.is_open(sample.generation);
        status.server_version = Some(sample.server_version);
        status.system_id = Some(sample.system_id.clone());
        status.received_lsn = sample.received;
        status.replayed_lsn = sample.replayed;
        status.history = history;
        status.receiver = receiver;
        status.silence = agent.silence();
        status.standbys.clone_from(&sample.standbys);
        status.applied_quorum = applied;
        status.pending_restart.clone_from(&sample.pending_restart);
        status.cancelled_waits = if sample.in_recovery { 0 } else { agent.server.log().cancelled_waits() };
    });
}

/// Shows that the server does not answer. What is known of its data stays.
pub fn show_silence(agent: &Agent) {
    agent.board.update(|status| {
        status.postgres_up = false;
        status.is_primary = false;
        status.admits_clients = false;
        status.receiver = None;
        status.silence = None;
        status.standbys.clear();
        status.applied_quorum = None;
        status.pending_restart.clear();
    });
}

/// Shows what the data directory knows of itself.
pub fn show_local(agent: &Agent, local: Option<&LocalState>, system_id: Option<&str>) {
    agent.board.update(|status| {
        status.member = local.map(|local| local.member.clone());
        status.term = local.map(|local| local.term).unwrap_or_default();
        status.sealed_term = local.map(|local| local.sealed_term).unwrap_or_default();
        status.system_id = system_id.map(str::to_owned);
        if local.is_none() {
            status.history = None;
        }
    });
}

fn build_receiver(agent: &Agent, receiver: &ReceiverSample) -> Receiver {
    let configured = match agent.role() {
        Some(Role::Standby { upstream: Some(upstream), .. }) if upstream.host == receiver.host => Some(upstream.pod),
        _ => None,
    };
    let first_label = || receiver.host.split('.').next().unwrap_or_default().to_owned();
    Receiver {
        streaming: receiver.streaming,
        silent_ms: receiver.silent_ms,
        upstream: configured.unwrap_or_else(first_label),
    }
}
