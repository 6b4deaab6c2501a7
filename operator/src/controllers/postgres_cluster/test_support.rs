//! Clusters for tests: made from YAML by the real validation.

use kube::api::ObjectMeta;
use pgherd_crds::{PostgresCluster, PostgresClusterSpec};

use super::{
    references::References,
    validate::{InvalidSpec, ValidatedCluster, validate_cluster},
};
use crate::settings::ImageMap;

/// A PostgresCluster `shop` in the namespace `web` with this spec.
pub(crate) fn cluster(spec: &str) -> PostgresCluster {
    let spec: PostgresClusterSpec = yaml_serde::from_str(spec).unwrap();
    PostgresCluster {
        metadata: ObjectMeta {
            name: Some("shop".into()),
            namespace: Some("web".into()),
            uid: Some("11111111-2222-3333-4444-555555555555".into()),
            generation: Some(3),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// Images of PostgreSQL 16 and 17.
pub(crate) fn images() -> ImageMap {
    [(16, "registry/pg:16".to_owned()), (17, "registry/pg:17".to_owned())].into()
}

/// Validates it with nothing that it could refer to.
pub(crate) fn validate(spec: &str) -> Result<ValidatedCluster, InvalidSpec> {
    validate_cluster(&cluster(spec), &References::default(), &images())
}

/// The valid cluster of this spec.
pub(crate) fn validated(spec: &str) -> ValidatedCluster {
    validate(spec).unwrap()
}

/// Three instances and nothing else.
pub(crate) const MINIMAL: &str = "{instances: 3, storage: {size: 10Gi}}";

/// Everything that a user can say.
pub(crate) const FULL: &str = r#"
version: 16
instances: 3
storage: {size: 10Gi, storageClassName: fast}
resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 1Gi}}
synchronous: {mode: Required, replicas: 2}
failover: {delay: 30s, maxLag: 16Mi}
postgresql:
  parameters: {work_mem: 16MB}
  pgHba: [{database: app, user: app, address: 10.0.0.0/8, method: scram-sha-256}]
backup:
  objectStore:
    endpoint: https://minio.minio.svc:9000/
    bucket: backups
    credentialsSecretRef: {name: minio}
    caSecretRef: {name: minio-ca}
  encryption:
    recipients: [age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj]
    identitySecretRef: {name: shop-age}
replicaSource: Backup
bootstrap:
  recovery:
    from:
      objectStore: {endpoint: "https://s3.example.org", bucket: old, prefix: a/b, pathStyle: false, credentialsSecretRef: {name: old}}
      encryption: {identitySecretRef: {name: old-age}}
      cluster: shop-old
    target: {time: "2026-11-22T02:00:00Z"}
restore: {id: may-23, backupId: 20260523T020304Z-00000001-0-3000028, timeline: 1}
nodeSelector: {disk: ssd}
tolerations: [{key: db, operator: Exists}]
topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}
priorityClassName: high
imagePullSecrets: [{name: pull}]
"#;
