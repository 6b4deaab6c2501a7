//! The agent: PID 1 of every PostgreSQL container. It prepares the data directory, runs PostgreSQL, holds and renews the
//! Lease as the register says, fences itself, seals, promotes, rejoins, archives, and answers the operator.
//!
//! It never decides who is primary: it obeys the register.
#![forbid(unsafe_code)]

pub mod actions;
pub mod agent;
pub mod archive;
pub mod archive_client;
pub mod archive_window;
pub mod barrier;
pub mod board;
pub mod catalog;
pub mod clock;
pub mod failsafe;
pub mod fencer;
pub mod file_work;
pub mod gate;
pub mod install;
pub mod kept_wal;
pub mod kubernetes_store;
pub mod layout;
pub mod lease;
pub mod leftovers;
pub mod local_backup;
pub mod local_state;
pub mod machine;
pub mod parameters;
pub mod postgres;
pub mod probes;
pub mod register_store;
pub mod restore_check;
pub mod retries;
pub mod run;
pub mod server;
pub mod settings;
pub mod status;
pub mod streaming;
pub mod supervisor;
pub mod tls;
pub mod turn;
pub mod upkeep;
pub mod vouch;

pub use archive_client::{archive_wal, restore_wal};
pub use install::install;
pub use run::run_main;
pub use supervisor::supervise;
