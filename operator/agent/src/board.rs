//! What the agent shows: one status that its parts write and the server copies out. Answers at once, asks nobody.

use std::sync::{Arc, Mutex, PoisonError};

use pgherd_core::{
    instance::{ArchiveStatus, InstanceStatus, Phase},
    lsn::Lsn,
    register::Term,
};

use crate::settings::Identity;

/// The status board; clones share it.
#[derive(Clone, Debug)]
pub struct Board {
    status: Arc<Mutex<InstanceStatus>>,
}

impl Board {
    /// A board that says `Waiting`.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let status = InstanceStatus {
            pod: identity.pod.clone(),
            pod_uid: identity.pod_uid.clone(),
            boot_nonce: identity.boot_nonce.clone(),
            member: None,
            phase: Phase::Waiting,
            message: String::new(),
            system_id: None,
            server_version: None,
            postgres_up: false,
            is_primary: false,
            term: Term(0),
            sealed_term: Term(0),
            history: None,
            received_lsn: Lsn::ZERO,
            replayed_lsn: Lsn::ZERO,
            receiver: None,
            standbys: Vec::new(),
            applied_quorum: None,
            source: None,
            progress: None,
            archive: ArchiveStatus::default(),
            vouch: None,
            admits_clients: false,
            cancelled_waits: 0,
            pending_restart: Vec::new(),
            refused_parameters: Vec::new(),
            stale_collations: None,
            weak_commits: None,
            silence: None,
            divergent: None,
        };
        Self { status: Arc::new(Mutex::new(status)) }
    }

    /// A copy of the status.
    #[must_use]
    pub fn status(&self) -> InstanceStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the status.
    pub fn update<T>(&self, change: impl FnOnce(&mut InstanceStatus) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says what the agent is doing.
    pub fn say(&self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        self.update(|status| {
            if status.phase != phase || status.message != message {
                tracing::info!(phase = ?phase, message = %message, "phase");
            }
            status.phase = phase;
            status.message = message;
        });
    }
}
