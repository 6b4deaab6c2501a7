//! ServiceAccount, Role and RoleBinding of the instances: their own Lease and nothing else.

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use pgherd_crds::names::instance_account;

use super::metadata;
use crate::controllers::postgres_cluster::validate::ValidatedCluster;

/// The account that instances run under. Its token is mounted by the pod, which needs it, and by nobody else.
#[must_use]
pub fn build_account(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, instance_account(&cluster.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The register, by its name. `list` and `watch` work with a field selector on that name.
#[must_use]
pub fn build_role(cluster: &ValidatedCluster) -> Role {
    let rule = PolicyRule {
        api_groups: Some(vec!["coordination.k8s.io".to_owned()]),
        resources: Some(vec!["leases".to_owned()]),
        resource_names: Some(vec![cluster.name.clone()]),
        verbs: ["get", "list", "watch", "update", "patch"].map(str::to_owned).to_vec(),
        ..PolicyRule::default()
    };
    Role { metadata: metadata(cluster, instance_account(&cluster.name)), rules: Some(vec![rule]) }
}

/// Binds the two.
#[must_use]
pub fn build_role_binding(cluster: &ValidatedCluster) -> RoleBinding {
    let name = instance_account(&cluster.name);
    RoleBinding {
        metadata: metadata(cluster, name.clone()),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    }
}
