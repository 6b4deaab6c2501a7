//! Carries out what [`crate::machine::decide_local`] decided, one step at a time. Each step reads the register again
//! before it changes anything that can't be taken back, and may be cut off at any point: the next decision starts from
//! what is then there.

pub mod bootstrap;
pub mod branch;
pub mod build_replica;
pub mod data_dir;
pub mod divergent;
pub mod failing;
pub mod follow;
pub mod primary;
pub mod promote;
pub mod rebuild;
pub mod rejoin;
pub mod replay_end;
pub mod restore;
pub mod seal;
pub mod stop;
mod subscriptions;
pub mod timeline_numbers;
pub mod volume;

use std::{error::Error, io, path::PathBuf};

use jiff::Timestamp;
use pgherd_core::register::Register;

use crate::{
    agent::Agent,
    lease::LeaseError,
    local_state::LocalStateError,
    machine::LocalAction,
    postgres::{
        binaries::ProgramError,
        config::ConfigError,
        control::ControlError,
        process::{ProcessError, Server},
        roles::RolesError,
        sql::SqlError,
        upstream::UpstreamError,
    },
};

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// The register.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// `pgherd.json`.
    #[error(transparent)]
    LocalState(#[from] LocalStateError),
    /// A program of PostgreSQL.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// pg_controldata.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The configuration files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The local session.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// The roles.
    #[error(transparent)]
    Roles(#[from] RolesError),
    /// The holder.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The volume.
    #[error("failed to {action} {path}")]
    Files {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A copy failed; the text holds the whole chain of causes.
    #[error("{what}: {why}")]
    Copy {
        /// What was copied.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// What the first data directory is to be made from is not there or can't be reached; nothing of it was read.
    #[error("{what}: {why}")]
    Plan {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// The first data directory could not be made.
    #[error("{what}: {why}")]
    Bootstrap {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// What reads a backup from end to end failed, and is not tried again at once.
    #[error("{}; it is tried again at {again_at:.0}", describe_chain(error))]
    Restore {
        /// Why it failed.
        error: Box<ActionError>,
        /// When it is tried again, unless something changes before.
        again_at: Timestamp,
    },
    /// The server ends right after its start, for example because of a parameter.
    #[error("PostgreSQL ended right after its start: {why}; it is tried again")]
    EndsAtOnce {
        /// The last that it said.
        why: String,
    },
    /// There is no room for a server to start; it is tried again by itself.
    #[error("the volume is full: {free} bytes free, PostgreSQL needs {needed} to start; grow it or free some space")]
    VolumeFull {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// Something that is expected to change by itself.
    #[error("{0}")]
    NotYet(String),
}

impl ActionError {
    /// The server ends right after each of its starts.
    #[must_use]
    pub fn ends_at_once(server: &Server) -> Self {
        Self::EndsAtOnce { why: last_words(server) }
    }

    /// Another instance, or the API server, is waited for: it is tried again within moments.
    #[must_use]
    pub fn passes_soon(&self) -> bool {
        matches!(self, Self::NotYet(_) | Self::Upstream(_) | Self::Lease(_) | Self::Sql(_))
    }

    /// What failed, without what differs from one time to the next.
    #[must_use]
    pub fn name_cause(&self) -> &'static str {
        match self {
            Self::Plan { what, .. } | Self::Bootstrap { what, .. } | Self::Copy { what, .. } => what,
            _ => "",
        }
    }
}

/// What the server ended with, as far as its log says it.
fn last_words(server: &Server) -> String {
    server.log().last_fatal().unwrap_or_else(|| "its log says why".to_owned())
}

/// Settings as the server takes them on its command line.
fn render_options(settings: &[(&str, u64)]) -> Vec<String> {
    settings.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The causes of an error in one line, for a status or a log.
#[must_use]
pub fn describe_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// Carries out one step.
///
/// # Errors
/// [`ActionError`]; the same step will be decided again.
pub async fn execute(agent: &Agent, register: &Register, action: LocalAction) -> Result<(), ActionError> {
    match action {
        LocalAction::Wait(why) => {
            stop::show_waiting(agent, &why);
            Ok(())
        }
        LocalAction::Fail(why) => {
            agent.board.say(pgherd_core::instance::Phase::Failed, why);
            Ok(())
        }
        LocalAction::StopNow(why) => {
            stop::stop_now(agent, &why).await;
            Ok(())
        }
        LocalAction::Release(why) => stop::release(agent, register.term, &why).await,
        LocalAction::HandOver(why) => stop::hand_over(agent, register.term, &why).await,
        LocalAction::Bootstrap => {
            let source = agent.config().bootstrap.clone();
            Box::pin(bootstrap::bootstrap(agent, register, source)).await
        }
        LocalAction::Restore(order) => Box::pin(restore::restore(agent, register, &order)).await,
        LocalAction::StartPrimary => primary::start(agent, register).await,
        LocalAction::KeepPrimary => primary::keep(agent, register).await,
        LocalAction::Promote => promote::promote(agent, register).await,
        LocalAction::StartStandby { upstream } => follow::start(agent, register, upstream.as_deref()).await,
        LocalAction::SetUpstream { upstream } => follow::set_upstream(agent, register, upstream.as_deref()).await,
        LocalAction::KeepReplica { upstream } => follow::keep(agent, register, &upstream).await,
        LocalAction::BuildReplica { upstream } => Box::pin(build_replica::build(agent, register, &upstream)).await,
        LocalAction::Rejoin { upstream } => Box::pin(rejoin::rejoin(agent, register, &upstream)).await,
        LocalAction::Seal => seal::promise(agent, register.seal_term).await.map(drop),
    }
}
