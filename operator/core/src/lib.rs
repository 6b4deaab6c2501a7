//! Pure decisions of pgherd: who may be primary, which backup a replica is built from, what is kept, when a schedule runs.
//!
//! Nothing in this crate talks to Kubernetes, PostgreSQL, a clock or the environment: `now` is an argument and what
//! could not be reached is data. That is what lets a property test or a model check drive every decision.
#![forbid(unsafe_code)]

pub mod admission;
pub mod backup;
pub mod chain;
pub mod compression;
pub mod conditions;
pub mod election;
pub mod failover;
pub mod failsafe;
pub mod instance;
mod kinship;
pub mod lineage;
pub mod local_backup;
pub mod lsn;
pub mod pg;
pub mod preferred;
pub mod quantity;
pub mod quorum;
pub mod register;
pub mod replica_source;
pub mod retention;
pub mod schedule;
pub mod timeline;
pub mod wal_rate;
