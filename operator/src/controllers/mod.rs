//! One module a kind.

pub mod backup;
pub mod backup_schedule;
pub mod postgres_cluster;
pub mod store_jobs;
