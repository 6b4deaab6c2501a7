//! Version `v1alpha1` of the API.

pub mod backup;
pub mod backup_schedule;
pub mod conditions;
pub mod postgres_cluster;
pub mod shared;
pub mod verification;
