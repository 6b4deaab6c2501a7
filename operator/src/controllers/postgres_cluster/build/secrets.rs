//! The Secrets. Their secret values come from the caller: nothing random here.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use pgherd_crds::names;

use super::{metadata, services::POSTGRES_PORT};
use crate::controllers::postgres_cluster::{tls::SecretData, validate::ValidatedCluster};

/// The application's role and database.
pub const APP: &str = "app";

/// `<cluster>-app`: how an application connects. `password` must need no escaping in a URI or in a pgpass line.
#[must_use]
pub fn build_app_secret(cluster: &ValidatedCluster, password: &str) -> Secret {
    let host = format!("{}.{}.svc", names::rw_service(&cluster.name), cluster.namespace);
    let (user, database, port) = (APP, APP, POSTGRES_PORT);
    let values = [
        ("username", user.to_owned()),
        ("user", user.to_owned()),
        ("password", password.to_owned()),
        ("host", host.clone()),
        ("port", port.to_string()),
        ("dbname", database.to_owned()),
        ("uri", format!("postgresql://{user}:{password}@{host}:{port}/{database}?sslmode=require")),
        (
            "jdbc-uri",
            format!("jdbc:postgresql://{host}:{port}/{database}?user={user}&password={password}&sslmode=require"),
        ),
        ("pgpass", format!("{host}:{port}:{database}:{user}:{password}\n")),
    ];
    let data = values.into_iter().map(|(key, value)| (key.to_owned(), value.into_bytes())).collect();
    build_secret(cluster, names::app_secret(&cluster.name), "kubernetes.io/basic-auth", &data)
}

/// `<cluster>-ca`: never mounted.
#[must_use]
pub fn build_ca_secret(cluster: &ValidatedCluster, data: &SecretData) -> Secret {
    build_secret(cluster, names::ca_secret(&cluster.name), "Opaque", data)
}

/// `<cluster>-tls`: mounted by every instance.
#[must_use]
pub fn build_tls_secret(cluster: &ValidatedCluster, data: &SecretData) -> Secret {
    build_secret(cluster, names::tls_secret(&cluster.name), "Opaque", data)
}

fn build_secret(cluster: &ValidatedCluster, name: String, type_: &str, data: &SecretData) -> Secret {
    let data: BTreeMap<String, ByteString> =
        data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone()))).collect();
    Secret { metadata: metadata(cluster, name), type_: Some(type_.to_owned()), data: Some(data), ..Secret::default() }
}
