//! Parts that several kinds share.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// An S3-compatible object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStore {
    /// Address of the store, `https://host:port`. `http://` is accepted only to a loopback or cluster-internal name.
    #[x_kube(validation = Rule::new("self.matches('^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?$')").message("endpoint must look like https://host:port, without user, path or query"))]
    #[schemars(length(max = 300))]
    pub endpoint: String,
    /// The bucket. It must exist.
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$')").message("bucket must have 3 to 63 characters of a-z, 0-9, '.' and '-'"))]
    pub bucket: String,
    /// Put before every key. Without it the namespace's name is used, so that namespaces don't mix.
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*$') && !self.split('/').exists(p, p == '.' || p == '..')").message("prefix must be path parts of A-Z a-z 0-9 _ . = - separated by single slashes, without '.' or '..'"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub prefix: Option<String>,
    /// Region that requests are signed for. Without it: us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// Secret with the keys `accessKeyId`, `secretAccessKey` and, for temporary credentials, `sessionToken`.
    pub credentials_secret_ref: LocalReference,
    /// Secret with the key `ca.crt`: PEM certificates to trust instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<LocalReference>,
    /// Address objects as `https://host/bucket/key`. Without it: true, which every store understands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
}

/// A condition in the standard form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about, in CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for machines.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
    /// The generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
