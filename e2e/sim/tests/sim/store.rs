//! The API server's objects: get, list, create, replace, patch and delete with resource versions, uids and generations, and
//! a log of every change, from which watches are served and stale lists are made. Server-side apply is a merge: all that
//! pgherd applies is pgherd's own. Knows nothing of time or of who asks.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Plural, namespace, name.
pub(crate) type Key = (String, String, String);

/// One change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: &'static str,
    pub(crate) key: Key,
    pub(crate) object: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) live: BTreeMap<Key, Value>,
    pub(crate) version: u64,
    pub(crate) log: Vec<Change>,
    /// Changes before this version are forgotten: a watch from there is answered with 410.
    pub(crate) compacted: u64,
    uids: u64,
}

/// An HTTP status and the body.
pub(crate) type Answer = (u16, Value);

pub(crate) fn refusal(code: u16, reason: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": format!("simulated: {reason}"), "code": code});
    (code, body)
}

impl Objects {
    fn commit(&mut self, kind: &'static str, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if kind == "DELETED" {
            self.live.remove(&key);
        } else {
            self.live.insert(key.clone(), object.clone());
        }
        self.log.push(Change { version: self.version, kind, key, object: object.clone() });
        object
    }

    pub(crate) fn create(&mut self, key: Key, mut object: Value, wall: &str) -> Answer {
        if self.live.contains_key(&key) {
            return refusal(409, "AlreadyExists");
        }
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{:04}", self.uids));
        object["metadata"]["name"] = json!(key.2);
        if !key.1.is_empty() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        object["metadata"]["creationTimestamp"] = json!(wall);
        if has_generation(&key.0) {
            object["metadata"]["generation"] = json!(1);
        }
        (201, self.commit("ADDED", key, object))
    }

    pub(crate) fn replace(&mut self, key: Key, mut object: Value) -> Answer {
        let Some(live) = self.live.get(&key) else { return refusal(404, "NotFound") };
        let sent = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !sent.is_empty() && live["metadata"]["resourceVersion"].as_str() != Some(sent) {
            return refusal(409, "Conflict");
        }
        for field in ["uid", "creationTimestamp", "generation"] {
            object["metadata"][field] = live["metadata"][field].clone();
        }
        self.write(key, object)
    }

    /// A merge patch, or server-side apply; `status` patches the status alone.
    pub(crate) fn patch(&mut self, key: Key, patch: Value, apply: bool, status: bool, wall: &str) -> Answer {
        let Some(live) = self.live.get(&key).cloned() else {
            return if apply && !status { self.create(key, patch, wall) } else { refusal(404, "NotFound") };
        };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != live["metadata"]["uid"] {
            return if apply { refusal(409, "Conflict") } else { refusal(422, "Invalid") };
        }
        let mut object = live;
        if status {
            object["status"] = patch["status"].clone();
        } else {
            let patch = if apply { without(patch, "status") } else { patch };
            merge(&mut object, &patch);
        }
        self.write(key, object)
    }

    /// RFC 6902, as far as it is used: test, and remove. All or nothing.
    pub(crate) fn json_patch(&mut self, key: Key, operations: &Value) -> Answer {
        let Some(mut object) = self.live.get(&key).cloned() else { return refusal(404, "NotFound") };
        for operation in operations.as_array().into_iter().flatten() {
            let path = operation["path"].as_str().unwrap_or_default();
            let (parent, last) = path.rsplit_once('/').unwrap_or_default();
            let last = last.replace("~1", "/").replace("~0", "~");
            let found = object.pointer_mut(parent).and_then(Value::as_object_mut);
            let done = found.is_some_and(|found| match operation["op"].as_str() {
                Some("test") => found.get(&last) == Some(&operation["value"]),
                Some("remove") => found.remove(&last).is_some(),
                _ => false,
            });
            if !done {
                return refusal(422, "Invalid");
            }
        }
        self.write(key, object)
    }

    fn write(&mut self, key: Key, mut object: Value) -> Answer {
        let live = self.live.get(&key).cloned().unwrap_or_default();
        object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        if object == live {
            return (200, object);
        }
        if has_generation(&key.0) && object["spec"] != live["spec"] {
            object["metadata"]["generation"] = json!(live["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        (200, self.commit("MODIFIED", key, object))
    }

    pub(crate) fn delete(&mut self, key: &Key) -> Answer {
        match self.live.get(key).cloned() {
            Some(object) => (200, self.commit("DELETED", key.clone(), object)),
            None => refusal(404, "NotFound"),
        }
    }

    /// The objects as they were at a version, and that version.
    pub(crate) fn at(&self, version: u64) -> BTreeMap<Key, Value> {
        if version >= self.version {
            return self.live.clone();
        }
        let mut then = BTreeMap::new();
        for change in self.log.iter().take_while(|change| change.version <= version) {
            if change.kind == "DELETED" {
                then.remove(&change.key);
            } else {
                then.insert(change.key.clone(), change.object.clone());
            }
        }
        then
    }
}

fn has_generation(plural: &str) -> bool {
    matches!(plural, "postgresclusters" | "statefulsets" | "networkpolicies" | "poddisruptionbudgets")
}

fn without(mut object: Value, field: &str) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
    object
}

/// RFC 7386: null removes, objects merge, everything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// True when the object carries every label of `a=b,c=d`.
pub(crate) fn matches_labels(object: &Value, selector: Option<&str>) -> bool {
    selector.unwrap_or_default().split(',').filter(|part| !part.is_empty()).all(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        object["metadata"]["labels"][key].as_str() == Some(value.trim_start_matches('='))
    })
}

/// True when the object has the name of `metadata.name=x`.
pub(crate) fn matches_fields(object: &Value, selector: Option<&str>) -> bool {
    let name = selector.and_then(|selector| selector.strip_prefix("metadata.name="));
    name.is_none_or(|name| object["metadata"]["name"].as_str() == Some(name))
}
