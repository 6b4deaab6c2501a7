//! Which namespaces are watched.

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};

/// All namespaces or one. An operator that watches several runs its controllers once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Cluster,
    /// One.
    Namespace(String),
}

impl Scope {
    /// The scopes of a list of namespaces; an empty list means all.
    #[must_use]
    pub fn of(namespaces: &[String]) -> Vec<Self> {
        let mut namespaces: Vec<_> = namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        if namespaces.is_empty() {
            return vec![Self::Cluster];
        }
        namespaces.into_iter().map(Self::Namespace).collect()
    }

    /// The namespace, if it is one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Cluster => None,
            Self::Namespace(name) => Some(name),
        }
    }

    /// The API of a kind in this scope, for lists and watches.
    #[must_use]
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::Cluster => Api::all(client.clone()),
            Self::Namespace(name) => Api::namespaced(client.clone(), name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespaces_means_all_of_them() {
        assert_eq!(Scope::of(&[]), [Scope::Cluster]);
        assert_eq!(Scope::of(&[String::new()]), [Scope::Cluster]);
    }

    #[test]
    fn each_namespace_is_watched_once() {
        let scopes = Scope::of(&["b".into(), "a".into(), "b".into()]);
        assert_eq!(scopes, [Scope::Namespace("a".into()), Scope::Namespace("b".into())]);
    }
}
