//! The operator's settings, parsed once from flags, the pod's name and namespace, and the map of images. Nothing else in
//! the operator reads the command line, the environment or a settings file.

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;

/// PostgreSQL major version to image.
pub type ImageMap = BTreeMap<u32, String>;

/// Flags of `pgherd operator`.
#[derive(Clone, Debug, Args)]
pub struct OperatorArgs {
    /// Namespaces to watch, separated by commas. Without it: all.
    #[arg(long, value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// This program's own image, used for init containers and Jobs.
    #[arg(long)]
    pub image: String,
    /// YAML or JSON file that maps PostgreSQL major versions to images.
    #[arg(long)]
    pub postgres_images: PathBuf,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Name of the Lease by which the operator's pods elect their leader.
    #[arg(long, default_value = "pgherd-operator")]
    pub leader_lease: String,
}

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces to watch; empty for all.
    pub namespaces: Vec<String>,
    /// The image with the `pgherd` binary, for init containers and Jobs.
    pub image: String,
    /// PostgreSQL images by major version.
    pub postgres_images: ImageMap,
    /// Address of the operator's HTTP server.
    pub listen: SocketAddr,
    /// Name of the leader Lease.
    pub leader_lease: String,
    /// The operator's own pod; `pgherd` outside of one.
    pub pod_name: String,
    /// The operator's own namespace; `default` outside of a pod.
    pub pod_namespace: String,
}

/// Settings that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("failed to read {path}")]
    ReadImages {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no YAML or JSON.
    #[error("failed to parse {path}")]
    ParseImages {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: yaml_serde::Error,
    },
    /// A key is no PostgreSQL major version.
    #[error("{path}: {key:?} is not a PostgreSQL major version such as 17")]
    Version {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
}

impl Settings {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn load(args: OperatorArgs) -> Result<Self, SettingsError> {
        let path = &args.postgres_images;
        let text =
            std::fs::read_to_string(path).map_err(|source| SettingsError::ReadImages { path: path.clone(), source })?;
        Ok(Self {
            postgres_images: parse_images(&text, path)?,
            namespaces: args.namespaces,
            image: args.image,
            listen: args.listen,
            leader_lease: args.leader_lease,
            pod_name: env::var("POD_NAME").unwrap_or_else(|_| "pgherd".to_owned()),
            pod_namespace: env::var("POD_NAMESPACE").unwrap_or_else(|_| "default".to_owned()),
        })
    }
}

/// A version as people write it: `17:` or `"17":`.
#[derive(serde::Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(untagged)]
enum Version {
    Number(u32),
    Text(String),
}

fn parse_images(text: &str, path: &Path) -> Result<ImageMap, SettingsError> {
    let map: BTreeMap<Version, String> =
        yaml_serde::from_str(text).map_err(|source| SettingsError::ParseImages { path: path.to_owned(), source })?;
    map.into_iter()
        .map(|(version, image)| match version {
            Version::Number(number) => Ok((number, image)),
            Version::Text(key) => match key.parse() {
                Ok(number) => Ok((number, image)),
                Err(_) => Err(SettingsError::Version { path: path.to_owned(), key }),
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageMap, SettingsError> {
        parse_images(text, Path::new("images.yaml"))
    }

    #[test]
    fn versions_may_be_quoted_or_not() {
        let images = parse("17: localhost/pg:17\n\"18\": localhost/pg:18\n").unwrap();
        assert_eq!(images, [(17, "localhost/pg:17".into()), (18, "localhost/pg:18".into())].into());
        assert_eq!(parse("{\"17\": \"a\"}").unwrap().len(), 1);
    }

    #[test]
    fn a_key_that_is_no_version_is_named() {
        let error = parse("latest: a\n").unwrap_err().to_string();
        assert!(error.contains("latest"), "{error}");
    }
}
