//! The rules of the schema, once more: an API server without the current schema must not let through what would hurt.

use pgherd_crds::{PostgresClusterSpec, v1alpha1::shared::ObjectStore};
use pgherd_stream::encryption::parse_recipient;

use super::Problems;

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const DIGITS: &str = "0123456789";

pub(super) fn check_names(name: &str, spec: &PostgresClusterSpec, problems: &mut Problems) {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let well_formed =
        name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-') && name.chars().all(inner);
    if !well_formed || name.len() > 40 {
        problems.add("metadata.name", "must be 1 to 40 characters of a-z, 0-9 and '-', beginning with a letter");
    }
    if !(1..=100).contains(&spec.instances) {
        problems.add("spec.instances", format!("is {}, but must be between 1 and 100", spec.instances));
    }
    if let Some(version) = spec.version
        && !(15..=18).contains(&version)
    {
        problems.add("spec.version", format!("is {version}, but must be between 15 and 18"));
    }
    if let Some(image) = &spec.image {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._/:@-".contains(c);
        if !image.starts_with(|c: char| c.is_ascii_alphanumeric()) || !image.chars().all(allowed) || image.len() > 500 {
            problems.add("spec.image", "must be an image reference without spaces, of at most 500 characters");
        }
    }
}

pub(super) fn check_store(store: &ObjectStore, field: &str, problems: &mut Problems) {
    check_endpoint(&store.endpoint, &format!("{field}.endpoint"), problems);
    let bucket = &store.bucket;
    let edge = |c: Option<char>| c.is_some_and(|c| LOWER.contains(c) || DIGITS.contains(c));
    let inner = |c: char| LOWER.contains(c) || DIGITS.contains(c) || c == '.' || c == '-';
    if !(3..=63).contains(&bucket.len())
        || !bucket.chars().all(inner)
        || !edge(bucket.chars().next())
        || !edge(bucket.chars().last())
    {
        problems.add(format!("{field}.bucket"), "must have 3 to 63 characters of a-z, 0-9, '.' and '-'");
    }
    if let Some(prefix) = &store.prefix {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.=-".contains(c);
        let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed);
        if prefix.len() > 300 || !prefix.split('/').all(part) {
            let message = "must be path parts of A-Z a-z 0-9 _ . = - separated by single slashes, without '.' or '..'";
            problems.add(format!("{field}.prefix"), message);
        }
    }
    if store.credentials_secret_ref.name.is_empty() {
        problems.add(
            format!("{field}.credentialsSecretRef.name"),
            "must name a Secret with accessKeyId and secretAccessKey",
        );
    }
    if store.ca_secret_ref.as_ref().is_some_and(|reference| reference.name.is_empty()) {
        problems.add(format!("{field}.caSecretRef.name"), "must name a Secret with ca.crt");
    }
}

/// The checksum of each as well, which the schema can't check: what is encrypted for a mistyped key, nobody can open.
pub(super) fn check_recipients(recipients: &[String], field: &str, problems: &mut Problems) {
    if !(1..=8).contains(&recipients.len()) {
        problems.add(field, format!("has {} entries, but must have 1 to 8", recipients.len()));
    }
    for (index, recipient) in recipients.iter().enumerate() {
        problems.keep(&format!("{field}[{index}]"), parse_recipient(recipient));
    }
}

/// `http://` sends credentials' signatures and data readable for everybody, therefore only inside the cluster.
fn check_endpoint(endpoint: &str, field: &str, problems: &mut Problems) {
    let (secure, rest) = match (endpoint.strip_prefix("https://"), endpoint.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => {
            problems.add(field, "must begin with https:// (or http:// inside the Kubernetes cluster)");
            return;
        }
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let host_ok = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-');
    if !host_ok || port.is_some_and(|port| port.parse::<u16>().is_err()) || endpoint.len() > 300 {
        problems.add(field, "must look like https://host:port, without user, path or query");
    } else if !secure && !is_internal(host) {
        problems.add(field, "http:// is only accepted to a loopback or cluster-internal name; use https://");
    }
}

fn is_internal(host: &str) -> bool {
    let loopback = host == "localhost" || host.starts_with("127.");
    loopback
        || !host.contains('.')
        || host.ends_with(".svc")
        || host.contains(".svc.")
        || host.ends_with(".cluster.local")
}
