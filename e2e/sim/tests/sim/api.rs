//! The API server as its clients see it: a tower service that a real `kube::Client` talks to, with everything that goes
//! wrong on the way: latency, cut links, outages, requests that fail before or after they took effect, late watches, 410,
//! and a caller that dies at its n-th write.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    scope::{API, Node, elapsed, wall},
    signal::{Signal, Waiter},
    store::{Answer, Key, Objects, matches_fields, matches_labels, refusal},
    trace::note,
    world::World,
};

/// What is wrong with the API server at the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    /// It is stopped.
    pub(crate) down: bool,
    /// Requests take up to so many milliseconds more.
    pub(crate) slow_ms: u64,
    /// Percent of the requests that fail before they take effect.
    pub(crate) fail_before: u64,
    /// Percent of the writes that take effect and answer with an error all the same.
    pub(crate) fail_after: u64,
    /// Percent of the replacements that are told to be conflicts.
    pub(crate) conflicts: u64,
    /// Watches are late by up to so many milliseconds.
    pub(crate) watch_lag_ms: u64,
    /// Percent of the events that end their watch with 410 Gone instead.
    pub(crate) gone: u64,
    /// Lists that start a watch are up to so many versions old.
    pub(crate) stale_lists: u64,
}

/// One write, for I9.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) at: Duration,
    pub(crate) by: String,
    pub(crate) what: String,
    pub(crate) plural: String,
}

pub(crate) struct Api {
    pub(crate) objects: Mutex<Objects>,
    pub(crate) trouble: Mutex<Trouble>,
    pub(crate) writes: Mutex<Vec<Write>>,
    pub(crate) changed: Signal,
}

/// Somebody who may be told to die at its n-th write.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) node: Node,
    /// Writes left until it dies; 0: never.
    pub(crate) dies_after: AtomicU64,
    /// It dies before (true) or after the write took effect.
    pub(crate) dies_before: AtomicBool,
    pub(crate) died: Notify,
    pub(crate) dead: AtomicBool,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self {
            objects: Mutex::default(),
            trouble: Mutex::default(),
            writes: Mutex::default(),
            changed: Signal::default(),
        }
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.trouble.lock().unwrap().clone()
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.objects.lock().unwrap().live.get(&key).cloned()
    }

    pub(crate) fn list(&self, plural: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        objects.live.iter().filter(|(key, _)| key.0 == plural).map(|(_, object)| object.clone()).collect()
    }

    /// A change by somebody inside of the control plane, or by a person.
    pub(crate) fn edit<T>(&self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let outcome = change(&mut self.objects.lock().unwrap());
        self.changed.raise();
        outcome
    }
}

/// A real client for this caller.
pub(crate) fn client(world: &Arc<World>, caller: &Arc<Caller>) -> Client {
    let (world, caller) = (Arc::clone(world), Arc::clone(caller));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (world, caller) = (Arc::clone(&world), Arc::clone(&caller));
        async move { serve(world, caller, request).await }
    });
    Client::new(service, "web")
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why.to_owned())
}

async fn serve(world: Arc<World>, caller: Arc<Caller>, request: Request<Body>) -> Result<Reply, io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    // A connection that gets no answer is given up in the end, as kube's client does by default.
    let exchange = timeout(Duration::from_secs(30), exchange(&world, &caller, &parts, &body));
    let answer = exchange.await.map_err(|_| broken("no connection"))??;
    match answer {
        Outcome::Plain((code, value)) => {
            let text = serde_json::to_vec(&value).map_err(io::Error::other)?;
            let body = Full::new(Bytes::from(text)).boxed_unsync();
            Response::builder()
                .status(code)
                .header("content-type", "application/json")
                .body(body)
                .map_err(io::Error::other)
        }
        Outcome::Watch(watch) => {
            let frames = stream::unfold(watch, |mut watch| async move {
                let line = watch.next().await?;
                Some((Ok(Frame::data(line)), watch))
            });
            Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).map_err(io::Error::other)
        }
    }
}

enum Outcome {
    Plain(Answer),
    Watch(Watching),
}

async fn exchange(
    world: &Arc<World>,
    caller: &Arc<Caller>,
    parts: &http::request::Parts,
    body: &Bytes,
) -> Result<Outcome, io::Error> {
    // The names of Events are drawn from the machine's clock.
    let named = parts.uri.path().split_once("/events/").map_or(parts.uri.path(), |(before, _)| before);
    let query = parts.uri.query().unwrap_or_default();
    let random = &world.random.fork(&format!("{} {} {named} {query}", caller.name, parts.method));
    let api = &world.api;
    if caller.dead.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    world.while_frozen(caller.node).await;
    world.net.travel(random, caller.node, API).await;
    if api.trouble().down {
        if random.percent(50) {
            return Err(broken("connection refused"));
        }
        while api.trouble().down {
            sleep(Duration::from_millis(random.between(100, 900))).await;
        }
    }
    let trouble = api.trouble();
    let slow = if trouble.slow_ms > 0 { random.between(0, trouble.slow_ms) } else { 0 };
    sleep(Duration::from_millis(random.between(1, 5) + slow)).await;
    let is_write = parts.method != Method::GET;
    let path = Path::parse(parts.uri.path(), parts.uri.query().unwrap_or_default());
    if trouble.fail_before > 0 && random.percent(trouble.fail_before) {
        return match random.between(0, 4) {
            0 => Err(broken("reset before")),
            1 => Ok(Outcome::Plain(refusal(429, "TooManyRequests"))),
            2 => Ok(Outcome::Plain(refusal(503, "ServiceUnavailable"))),
            _ => Ok(Outcome::Plain(refusal(500, "InternalError"))),
        };
    }
    if path.query.get("watch").is_some_and(|watch| watch == "true") {
        return Ok(start_watch(world, caller, path));
    }
    if is_write {
        die_if_due(caller, true).await;
    }
    let answer = if trouble.conflicts > 0 && parts.method == Method::PUT && random.percent(trouble.conflicts) {
        refusal(409, "Conflict")
    } else {
        carry_out(world, caller, parts, &path, body)
    };
    if is_write {
        world.check_api(&caller.name);
        die_if_due(caller, false).await;
    }
    if is_write && trouble.fail_after > 0 && random.percent(trouble.fail_after) {
        return if random.percent(50) {
            Err(broken("reset after"))
        } else {
            Ok(Outcome::Plain(refusal(504, "Timeout")))
        };
    }
    world.net.travel(random, API, caller.node).await;
    world.while_frozen(caller.node).await;
    Ok(Outcome::Plain(answer))
}

/// The caller dies at this write; it never gets an answer.
async fn die_if_due(caller: &Caller, before: bool) {
    if caller.dies_before.load(Ordering::SeqCst) != before || caller.dies_after.load(Ordering::SeqCst) == 0 {
        return;
    }
    if caller.dies_after.fetch_sub(1, Ordering::SeqCst) == 1 {
        note(format!("{} dies {} its write", caller.name, if before { "before" } else { "after" }));
        caller.dead.store(true, Ordering::SeqCst);
        caller.died.notify_one();
        std::future::pending::<()>().await;
    }
}

/// `/apis/<group>/<version>/namespaces/<ns>/<plural>/<name>/<subresource>`.
struct Path {
    plural: String,
    namespace: String,
    name: Option<String>,
    status: bool,
    group_version: String,
    query: BTreeMap<String, String>,
}

impl Path {
    fn parse(path: &str, query: &str) -> Self {
        let mut parts = path.trim_start_matches('/').split('/').peekable();
        let group_version = match parts.next() {
            Some("apis") => format!("{}/{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default()),
            _ => parts.next().unwrap_or_default().to_owned(),
        };
        let mut namespace = String::new();
        if parts.peek() == Some(&"namespaces") {
            parts.next();
            namespace = parts.next().unwrap_or_default().to_owned();
        }
        let plural = parts.next().unwrap_or_default().to_owned();
        let name = parts.next().map(str::to_owned);
        let status = parts.next() == Some("status");
        let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| {
            (key.to_owned(), value.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",").replace("%21", "!"))
        });
        Self { plural, namespace, name, status, group_version, query: query.collect() }
    }

    fn key(&self, name: &str) -> Key {
        (self.plural.clone(), self.namespace.clone(), name.to_owned())
    }

    fn selects(&self, object: &Value) -> bool {
        matches_labels(object, self.query.get("labelSelector").map(String::as_str))
            && matches_fields(object, self.query.get("fieldSelector").map(String::as_str))
    }
}

fn carry_out(world: &World, caller: &Caller, parts: &http::request::Parts, path: &Path, body: &Bytes) -> Answer {
    let sent: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let wall = jiff::Timestamp::from_second(wall().as_second()).unwrap().to_string();
    let content = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let mut objects = world.api.objects.lock().unwrap();
    let before = objects.version;
    let answer = match (&parts.method, &path.name) {
        (&Method::GET, Some(name)) => match objects.live.get(&path.key(name)) {
            Some(object) => (200, object.clone()),
            None => refusal(404, "NotFound"),
        },
        (&Method::GET, None) => list(world, &objects, path),
        (&Method::POST, _) => {
            let name = sent["metadata"]["name"].as_str().map_or_else(|| format!("generated-{before}"), str::to_owned);
            objects.create(path.key(&name), sent, &wall)
        }
        (&Method::PUT, Some(name)) => objects.replace(path.key(name), sent),
        (&Method::PATCH, Some(name)) if content.contains("json-patch") => objects.json_patch(path.key(name), &sent),
        (&Method::PATCH, Some(name)) => {
            objects.patch(path.key(name), sent, content.contains("apply-patch"), path.status, &wall)
        }
        (&Method::DELETE, Some(name)) => objects.delete(&path.key(name)),
        _ => refusal(405, "MethodNotAllowed"),
    };
    let changed = objects.version != before;
    drop(objects);
    if changed {
        world.api.changed.raise();
    }
    if parts.method != Method::GET {
        let name = path.name.as_deref().filter(|_| path.plural != "events").unwrap_or_default();
        let what = format!("{} {}/{name} {}", parts.method, path.plural, answer.0);
        if path.plural != "leases" {
            note(format!("{} {what}", caller.name));
        }
        let write = Write { at: elapsed(), by: caller.name.clone(), what, plural: path.plural.clone() };
        world.api.writes.lock().unwrap().push(write);
    }
    answer
}

fn list(world: &World, objects: &Objects, path: &Path) -> Answer {
    let stale = world.api.trouble().stale_lists;
    let starts_watch = path.query.contains_key("limit");
    let version = match stale {
        0 => objects.version,
        _ if starts_watch => objects.version.saturating_sub(world.random.between(0, stale)),
        _ => objects.version,
    };
    let items: Vec<Value> = objects
        .at(version)
        .into_iter()
        .filter(|(key, object)| {
            key.0 == path.plural && (path.namespace.is_empty() || key.1 == path.namespace) && path.selects(object)
        })
        .map(|(_, object)| object)
        .collect();
    let kind = items.first().and_then(|item| item["kind"].as_str()).unwrap_or("Object");
    let body = json!({"kind": format!("{kind}List"), "apiVersion": path.group_version,
        "metadata": {"resourceVersion": version.to_string()}, "items": items});
    (200, body)
}

/// A watch that is served.
struct Watching {
    world: Arc<World>,
    caller: Arc<Caller>,
    path: Path,
    /// The last version that was sent or passed over.
    version: u64,
    changes: Waiter,
    ends_at: Duration,
    over: bool,
}

fn start_watch(world: &Arc<World>, caller: &Arc<Caller>, path: Path) -> Outcome {
    let version = path.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let seconds = path.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(290);
    Outcome::Watch(Watching {
        world: Arc::clone(world),
        caller: Arc::clone(caller),
        path,
        version,
        changes: world.api.changed.subscribe(),
        ends_at: elapsed() + Duration::from_secs(seconds),
        over: false,
    })
}

impl Watching {
    /// The next line, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let world = Arc::clone(&self.world);
            if self.over || elapsed() >= self.ends_at || world.api.trouble().down {
                return None;
            }
            self.changes.mark_seen();
            let Some(change) = self.next_change() else {
                // Also without a change: an outage ends a watch.
                let _ = timeout(Duration::from_secs(1), self.changes.changed()).await;
                continue;
            };
            let trouble = world.api.trouble();
            let random = world.random.fork(&format!("{} {} {}", self.caller.name, self.path.plural, change.version));
            if trouble.watch_lag_ms > 0 {
                sleep(Duration::from_millis(random.between(0, trouble.watch_lag_ms))).await;
            }
            world.net.travel(&random, API, self.caller.node).await;
            world.while_frozen(self.caller.node).await;
            let gone = trouble.gone > 0 && random.percent(trouble.gone);
            if gone || change.version <= world.api.objects.lock().unwrap().compacted {
                self.over = true;
                return Some(line(&json!({"type": "ERROR", "object": refusal(410, "Expired").1})));
            }
            self.version = change.version;
            return Some(line(&json!({"type": change.kind, "object": change.object})));
        }
    }

    fn next_change(&mut self) -> Option<crate::store::Change> {
        let objects = self.world.api.objects.lock().unwrap();
        let from = objects.log.partition_point(|change| change.version <= self.version);
        let path = &self.path;
        let found = objects.log[from..].iter().find(|change| {
            let (plural, namespace, _) = &change.key;
            *plural == path.plural
                && (path.namespace.is_empty() || *namespace == path.namespace)
                && path.selects(&change.object)
        });
        found.cloned()
    }
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}
