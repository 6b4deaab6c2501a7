//! Streams of pgherd: the replication protocol, base backups, zstd frames, the object store, restore, the WAL archive.
//!
//! Nothing in this crate knows Kubernetes, reads the environment, or keeps a secret anywhere but in the file it came from.
#![forbid(unsafe_code)]

pub mod age;
pub mod backup;
pub mod base_backup;
pub mod catalogue;
pub mod clone;
pub mod encryption;
pub mod frames;
pub mod import;
pub mod index;
pub mod local;
pub mod manifest;
pub mod process;
pub mod proof;
pub mod prune;
pub mod replication;
pub mod restore;
mod spool;
pub mod store;
pub mod tar;
pub mod tls;
pub mod wal;
