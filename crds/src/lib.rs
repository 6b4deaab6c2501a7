//! The API of pgherd: `PostgresCluster`, `BackupSchedule` and `Backup` in group `pgherd.dev`, version `v1alpha1`.
//!
//! Types only: no client and no decision. The schema carries no defaults, because a GitOps tool shows them as drift:
//! the operator publishes the values in effect in `status`. The manifests in this folder are generated from these
//! types by `make crds`.
#![forbid(unsafe_code)]
#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]

pub mod manifest;
pub mod names;
pub mod reference;
pub mod v1alpha1;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use v1alpha1::{
    backup::{Backup, BackupSpec, BackupStatus},
    backup_schedule::{BackupSchedule, BackupScheduleSpec, BackupScheduleStatus},
    postgres_cluster::{PostgresCluster, PostgresClusterSpec, PostgresClusterStatus},
};

/// Every custom resource definition, in the order in which they are applied.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![PostgresCluster::crd(), BackupSchedule::crd(), Backup::crd()]
}
