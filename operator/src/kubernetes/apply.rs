//! Server-side apply of one object, done only when it is needed: what was applied is remembered, and what watches show is
//! compared with it. A settled object costs no request at all.

use std::{collections::BTreeMap, fmt::Debug, hash::Hasher};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
    runtime::reflector::Store,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{owner::is_controlled_by, store};

/// How long a watch may take to show what was just applied, in milliseconds.
const WATCH_LAG_MS: u64 = 5_000;

/// An object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It could not be written as JSON.
    #[error("failed to serialize {kind} {name}")]
    Serialize {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Whether it exists could not be read.
    #[error("failed to read {kind} {name}")]
    Read {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server refused it or did not answer.
    #[error("failed to apply {kind} {name}")]
    Patch {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of this name exists that belongs to somebody else. It is left as it is.
    #[error(
        "{kind} {name} exists already and does not belong to this cluster; delete or rename it, or choose another name for the cluster"
    )]
    Foreign {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// What was applied last, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct AppliedObjects {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Of the desired object.
    hash: u64,
    /// Versions of the live object that are known to hold it.
    versions: Vec<String>,
    applied_at_ms: u64,
}

/// What is to be done about one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It is as it should be, or a watch has yet to show it.
    Nothing,
    /// It has to be applied.
    Apply,
    /// No watch shows it: look whether it exists before it is applied.
    Look,
}

/// One object's kind and name in a namespace.
struct Key {
    kind: String,
    name: String,
}

impl AppliedObjects {
    fn need(&self, key: &str, hash: u64, live_version: Option<&str>, now_ms: u64) -> Need {
        let entry = self.entries.get(key).filter(|entry| entry.hash == hash);
        match (entry, live_version) {
            (Some(entry), Some(version)) if entry.versions.iter().any(|known| known == version) => Need::Nothing,
            (Some(entry), None) if now_ms.saturating_sub(entry.applied_at_ms) < WATCH_LAG_MS => Need::Nothing,
            (_, Some(_)) => Need::Apply,
            (_, None) => Need::Look,
        }
    }

    /// `before` is what the watch showed: it shows it for a moment longer, and that is no change.
    fn record(&mut self, key: String, hash: u64, before: Option<String>, after: String, now_ms: u64) {
        let versions = before.into_iter().chain([after]).collect();
        self.entries.insert(key, Entry { hash, versions, applied_at_ms: now_ms });
    }
}

/// Applies objects of one owner.
pub struct Applier<'a> {
    /// The client.
    pub client: &'a Client,
    /// Of the controller.
    pub field_manager: &'a str,
    /// UID of the controlling owner.
    pub owner_uid: &'a str,
    /// Milliseconds of a monotonic clock.
    pub now_ms: u64,
}

impl Applier<'_> {
    /// Applies the object if needed. True if it was written.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing was written but perhaps in the case of [`ApplyError::Patch`].
    pub async fn apply<K>(&self, store: &Store<K>, desired: &K, memory: &mut AppliedObjects) -> Result<bool, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned
            + 'static,
    {
        let key = Key { kind: K::kind(&()).into_owned(), name: desired.name_any() };
        let id = format!("{}/{}", key.kind, key.name);
        let namespace = desired.namespace().unwrap_or_default();
        let hash = self.hash(desired, &key)?;
        let live = store::get(store, &namespace, &key.name);
        if live.as_ref().is_some_and(|live| !is_controlled_by(live.meta(), self.owner_uid)) {
            return Err(ApplyError::Foreign { kind: key.kind, name: key.name });
        }
        let before = live.as_ref().map(|live| version_of(live.meta()));
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        match memory.need(&id, hash, before.as_deref(), self.now_ms) {
            Need::Nothing => return Ok(false),
            Need::Apply => {}
            Need::Look => self.look(&api, &key).await?,
        }
        let params = PatchParams::apply(self.field_manager).force();
        let applied = api.patch(&key.name, &params, &Patch::Apply(desired)).await;
        let applied =
            applied.map_err(|source| ApplyError::Patch { kind: key.kind, name: key.name, source: Box::new(source) })?;
        memory.record(id, hash, before, version_of(applied.meta()), self.now_ms);
        Ok(true)
    }

    /// Watches show only what carries our label: anything else of this name belongs to somebody else.
    async fn look<K>(&self, api: &Api<K>, key: &Key) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let found = api.get_metadata_opt(&key.name).await.map_err(|source| ApplyError::Read {
            kind: key.kind.clone(),
            name: key.name.clone(),
            source: Box::new(source),
        })?;
        match found {
            Some(found) if !is_controlled_by(&found.metadata, self.owner_uid) => {
                Err(ApplyError::Foreign { kind: key.kind.clone(), name: key.name.clone() })
            }
            _ => Ok(()),
        }
    }

    fn hash<K: Serialize>(&self, desired: &K, key: &Key) -> Result<u64, ApplyError> {
        let bytes = serde_json::to_vec(desired).map_err(|source| ApplyError::Serialize {
            kind: key.kind.clone(),
            name: key.name.clone(),
            source,
        })?;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&bytes);
        Ok(hasher.finish())
    }
}

/// The generation where the kind has one, because changes of the status don't count; with the labels and owners, which do
/// not change it. Otherwise the resourceVersion.
fn version_of(meta: &ObjectMeta) -> String {
    match meta.generation {
        Some(generation) => {
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(format!("{:?}{:?}", meta.labels, meta.owner_references).as_bytes());
            format!("{generation}-{:x}-{}", hasher.finish(), meta.uid.as_deref().unwrap_or_default())
        }
        None => meta.resource_version.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Service/shop-rw";

    fn applied() -> AppliedObjects {
        let mut memory = AppliedObjects::default();
        memory.record(KEY.into(), 7, Some("10".into()), "11".into(), 1_000);
        memory
    }

    #[test]
    fn a_settled_object_is_left_alone() {
        assert_eq!(applied().need(KEY, 7, Some("11"), 900_000), Need::Nothing);
    }

    #[test]
    fn a_watch_that_still_shows_the_version_before_is_no_change() {
        assert_eq!(applied().need(KEY, 7, Some("10"), 1_200), Need::Nothing);
    }

    #[test]
    fn a_changed_wish_or_a_changed_live_object_is_applied() {
        assert_eq!(applied().need(KEY, 8, Some("11"), 2_000), Need::Apply);
        assert_eq!(applied().need(KEY, 7, Some("12"), 2_000), Need::Apply);
    }

    #[test]
    fn after_a_restart_everything_is_applied_once() {
        assert_eq!(AppliedObjects::default().need(KEY, 7, Some("11"), 0), Need::Apply);
    }

    #[test]
    fn a_missing_object_is_looked_for_once_the_watch_had_time_to_show_it() {
        assert_eq!(applied().need(KEY, 7, None, 1_500), Need::Nothing);
        assert_eq!(applied().need(KEY, 7, None, 60_000), Need::Look);
        assert_eq!(AppliedObjects::default().need(KEY, 7, None, 0), Need::Look);
    }

    #[test]
    fn a_change_of_the_status_alone_is_no_change_of_an_object_with_a_generation() {
        let meta = |generation, version: &str| ObjectMeta {
            generation,
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        assert_eq!(version_of(&meta(Some(3), "10")), version_of(&meta(Some(3), "11")));
        assert_ne!(version_of(&meta(Some(3), "10")), version_of(&meta(Some(4), "11")));
        assert_ne!(version_of(&meta(None, "10")), version_of(&meta(None, "11")));
    }
}
