//! The control plane beside the API server: the StatefulSet controller and the kubelets. Pods come and go as Kubernetes
//! does it: a forced deletion leaves the old container running for a while beside its twin.

use std::{net::IpAddr, sync::Arc, time::Duration};

use pgherd_core::instance::InstanceConfig;
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use crate::{
    data::Content,
    instance::Instance,
    scope::{API, elapsed, node_name, node_of, wall},
    store::Key,
    trace::note,
    world::World,
};

fn key(plural: &str, name: &str) -> Key {
    (plural.to_owned(), "web".to_owned(), name.to_owned())
}

fn second() -> String {
    jiff::Timestamp::from_second(wall().as_second()).unwrap().to_string()
}

fn node_key(ordinal: u32) -> Key {
    ("nodes".to_owned(), String::new(), node_name(node_of(ordinal)))
}

pub(crate) fn create_nodes(world: &World) {
    for ordinal in 0..6 {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {}, "spec": {}});
        world.api.edit(|objects| objects.create(node_key(ordinal), node, &second()));
    }
}

fn is_cordoned(world: &World, ordinal: u32) -> bool {
    let (plural, namespace, name) = node_key(ordinal);
    let node = world.api.get(&plural, &namespace, &name);
    node.is_some_and(|node| node["spec"]["unschedulable"] == true)
}

pub(crate) fn cordon(world: &World, ordinal: u32, cordoned: bool) {
    let patch = json!({"spec": {"unschedulable": if cordoned { json!(true) } else { json!(null) }}});
    world.api.edit(|objects| objects.patch(node_key(ordinal), patch, false, false, ""));
}

/// What `kubectl drain` does after the cordon: it evicts the instance as soon as no budget protects it, until the node is
/// let go.
pub(crate) async fn evict(world: Arc<World>, ordinal: u32) {
    let name = format!("shop-{ordinal}");
    while is_cordoned(&world, ordinal) && !world.is_stopping() {
        sleep(Duration::from_secs(1)).await;
        let Some(pod) = world.api.get("pods", "web", &name) else { return };
        if !world.api.trouble().down && !is_protected(&world, &pod) {
            delete_pod(&world, &name);
            return;
        }
    }
}

/// One of the budgets selects the pod and leaves no disruption.
fn is_protected(world: &World, pod: &Value) -> bool {
    world.api.list("poddisruptionbudgets").iter().any(|budget| {
        let selects = |pod: &Value| matches_selector(&budget["spec"]["selector"], pod);
        let healthy = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        };
        let pods: Vec<Value> = world.api.list("pods").into_iter().filter(|pod| selects(pod)).collect();
        let healthy = pods.iter().filter(healthy).count() as u64;
        selects(pod) && healthy <= budget["spec"]["minAvailable"].as_u64().unwrap_or(0)
    })
}

fn matches_selector(selector: &Value, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    let exact = selector["matchLabels"].as_object().is_none_or(|all| all.iter().all(|(key, is)| labels[key] == *is));
    let expressions = selector["matchExpressions"].as_array();
    exact
        && expressions.is_none_or(|all| {
            all.iter().all(|one| {
                let label = &labels[one["key"].as_str().unwrap_or_default()];
                let listed = one["values"].as_array().is_some_and(|values| values.contains(label));
                match one["operator"].as_str() {
                    Some("In") => listed,
                    Some("NotIn") => !listed,
                    Some("Exists") => !label.is_null(),
                    _ => label.is_null(),
                }
            })
        })
}

/// The StatefulSet controller; never ends.
pub(crate) async fn run_stateful_sets(world: Arc<World>) {
    while !world.is_stopping() {
        sleep(Duration::from_millis(world.random.between(100, 300))).await;
        if world.api.trouble().down {
            continue;
        }
        let Some(set) = world.api.get("statefulsets", "web", "shop") else { continue };
        let replicas = u32::try_from(set["spec"]["replicas"].as_u64().unwrap_or(0)).unwrap();
        for ordinal in 0..replicas {
            if world.api.get("pods", "web", &format!("shop-{ordinal}")).is_none() {
                create_pod(&world, &set, ordinal);
            }
        }
        for pod in world.api.list("pods") {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let ordinal: u32 = name.trim_start_matches("shop-").parse().unwrap_or(0);
            if ordinal >= replicas {
                delete_pod(&world, &name);
            }
        }
    }
}

/// A graceful deletion: the kubelet ends the container and then removes the object.
pub(crate) fn delete_pod(world: &World, name: &str) {
    let patch = json!({"metadata": {"deletionTimestamp": second()}});
    let live = world.api.get("pods", "web", name);
    if live.is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
        note(format!("{name} is deleted"));
        world.api.edit(|objects| objects.patch(key("pods", name), patch, false, false, &second()));
    }
}

/// A forced deletion: the object is gone at once, whatever still runs.
pub(crate) fn force_delete_pod(world: &World, name: &str) {
    note(format!("{name} is deleted by force"));
    world.api.edit(|objects| objects.delete(&key("pods", name)));
}

fn create_pod(world: &Arc<World>, set: &Value, ordinal: u32) {
    let name = format!("shop-{ordinal}");
    let labels = set["spec"]["template"]["metadata"]["labels"].clone();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"labels": labels},
        "spec": {"resources": {"requests": {"storage": "10Gi"}}}, "status": {"phase": "Bound"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"labels": labels, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "name": "shop", "uid": set["metadata"]["uid"], "controller": true}]},
        "spec": {"nodeName": node_name(node_of(ordinal)), "containers": []}, "status": {"phase": "Pending"}});
    let (_, made) = world.api.edit(|objects| {
        let claim_key = key("persistentvolumeclaims", &format!("data-{name}"));
        objects.create(claim_key, claim, &second());
        objects.create(key("pods", &name), pod, &second())
    });
    let uid = made["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    note(format!("pod {name} is made ({uid})"));
    tokio::spawn(run_pod(Arc::clone(world), name, uid, ordinal));
}

/// The kubelet's work for one pod, until the pod is gone.
async fn run_pod(world: Arc<World>, name: String, uid: String, ordinal: u32) {
    let number = world.next_number();
    let ip: IpAddr = format!("10.0.{ordinal}.{}", number % 250 + 1).parse().unwrap();
    let mut restarts = 0_u32;
    sleep(Duration::from_millis(world.random.between(300, 2_000))).await;
    // Its volume is on this node.
    while is_cordoned(&world, ordinal) && !is_ending(&world, &name, &uid) && !world.is_stopping() {
        sleep(Duration::from_millis(300)).await;
    }
    loop {
        let Some(config) = await_config(&world, &name, &uid).await else { break };
        world.while_frozen(node_of(ordinal)).await;
        if world.is_stopping() {
            return;
        }
        let instance = Instance::start(&world, &name, &uid, ordinal, ip, config.subscribe());
        note(format!("container {} of {name} starts", instance.number));
        world.instances.lock().unwrap().push(Arc::clone(&instance));
        if world.is_frozen(instance.scope.node) {
            instance.scope.freeze();
        }
        let gone = watch_over(&world, &instance, &config, ordinal, restarts).await;
        if gone {
            break;
        }
        if instance.was_fenced() {
            // The supervisor lives on and starts an agent anew.
            continue;
        }
        show(&world, &instance, ordinal, None);
        restarts += 1;
        sleep(Duration::from_secs(u64::from(restarts.min(8)))).await;
    }
    able(&world, ordinal).await;
    if is_this(&world, &name, &uid) {
        world.api.edit(|objects| objects.delete(&key("pods", &name)));
    }
}

fn object(world: &World, name: &str, uid: &str) -> Option<Value> {
    world.api.get("pods", "web", name).filter(|pod| pod["metadata"]["uid"].as_str() == Some(uid))
}

fn is_this(world: &World, name: &str, uid: &str) -> bool {
    object(world, name, uid).is_some()
}

fn is_ending(world: &World, name: &str, uid: &str) -> bool {
    object(world, name, uid).is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
}

/// Waits until this node's kubelet runs and reaches the API server.
async fn able(world: &World, ordinal: u32) {
    let node = node_of(ordinal);
    while (world.is_frozen(node)
        || world.api.trouble().down
        || world.net.is_cut(node, API)
        || world.net.is_cut(API, node))
        && !world.is_stopping()
    {
        sleep(Duration::from_millis(500)).await;
    }
}

async fn await_config(world: &World, name: &str, uid: &str) -> Option<watch::Sender<Arc<InstanceConfig>>> {
    loop {
        if is_ending(world, name, uid) || world.is_stopping() {
            return None;
        }
        if let Some(config) = read_config(world) {
            return Some(watch::Sender::new(Arc::new(config)));
        }
        sleep(Duration::from_millis(300)).await;
    }
}

fn read_config(world: &World) -> Option<InstanceConfig> {
    let map = world.api.get("configmaps", "web", "shop-config")?;
    serde_json::from_str(map["data"]["instance.json"].as_str()?).ok()
}

/// Writes the pod's status, if the API server can be reached; if not, the next round does. `running` is the number of
/// restarts.
fn show(world: &World, instance: &Instance, ordinal: u32, running: Option<u32>) {
    let (node, name) = (node_of(ordinal), &instance.pod);
    let reaches = !world.api.trouble().down && !world.net.is_cut(node, API) && !world.net.is_cut(API, node);
    if !reaches || !is_this(world, name, &instance.uid) {
        return;
    }
    let state = match running {
        Some(_) => json!({"running": {}}),
        None => json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}),
    };
    let restarts = running.unwrap_or(0);
    let ready = if running.is_some() { "True" } else { "False" };
    let mut status = json!({"phase": "Running",
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-25T09:00:00Z"}],
        "containerStatuses": [{"name": "postgres", "image": "i", "imageID": "", "ready": running.is_some(),
            "restartCount": restarts, "state": state}]});
    if running.is_some() {
        status["podIP"] = json!(instance.ip.to_string());
    }
    let patch = json!({"status": status});
    world.api.edit(|objects| objects.patch(key("pods", name), patch, false, true, &second()));
}

/// Until the container has ended: true when the pod is to go.
async fn watch_over(
    world: &World,
    instance: &Instance,
    config: &watch::Sender<Arc<InstanceConfig>>,
    ordinal: u32,
    restarts: u32,
) -> bool {
    let mut ending_since = None;
    let mut round = 0_u32;
    loop {
        sleep(Duration::from_millis(250)).await;
        if world.is_stopping() {
            instance.end(0);
            return true;
        }
        if world.is_frozen(node_of(ordinal)) {
            continue;
        }
        let reaches = !world.api.trouble().down && !world.net.is_cut(node_of(ordinal), API);
        let ending = reaches && is_ending(world, &instance.pod, &instance.uid);
        if instance.is_over() {
            return ending;
        }
        show(world, instance, ordinal, Some(restarts));
        round += 1;
        if reaches
            && round.is_multiple_of(8)
            && let Some(now) = read_config(world)
            && **config.borrow() != now
        {
            config.send_replace(Arc::new(now));
        }
        if !ending {
            continue;
        }
        let gone = object(world, &instance.pod, &instance.uid).is_none();
        let since: Duration = *ending_since.get_or_insert_with(elapsed);
        if !gone {
            instance.agent.shutdown.cancel();
        }
        // The kubelet takes a while to notice that an object is gone; a graceful end has its time.
        let patience = Duration::from_secs(if gone { 6 } else { 60 });
        if elapsed().saturating_sub(since) > patience {
            instance.end(137);
            return true;
        }
    }
}

/// The volume is lost.
pub(crate) fn wipe(world: &World, ordinal: u32) {
    note(format!("the volume of shop-{ordinal} is wiped"));
    for instance in world.running().iter().filter(|instance| instance.pod == format!("shop-{ordinal}")) {
        instance.end(137);
    }
    world.volume(ordinal).with(|content| *content = Content::Empty);
    // What is not there need not be removed.
    let _ = std::fs::remove_dir_all(world.volume_folder(ordinal));
}
