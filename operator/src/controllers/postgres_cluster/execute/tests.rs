//! Whole failovers by the real code against a small API server in memory and agents behind real TLS.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    runtime::events::{Recorder, Reporter},
};
use pgherd_core::{
    failover::Probe,
    instance::{AGENT_PORT, InstanceStatus, Phase},
    lsn::Lsn,
    register::{REGISTER_ANNOTATION, Register, Term},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    context::{ArchiveLooks, Clock, Memories},
    controllers::postgres_cluster::{
        decide::decide,
        observe::{
            ObservedPod,
            testing::{at, held_by_0, pod, replica, sealed, voters},
        },
        test_support::validated,
    },
    kubernetes::{
        agent_client::{AgentClients, tests::Pki},
        register::{RegisterClient, parse_lease},
        scope::Scope,
        store::Stores,
    },
    leader::Leadership,
    settings::Settings,
    telemetry::metrics::Metrics,
};

pub(super) const REQUIRED: &str = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 1}}";

/// The Lease, the requests, the roles, and every change of them in order.
#[derive(Default)]
pub(super) struct Api {
    pub(super) lease: Option<Value>,
    version: u64,
    pub(super) log: Vec<String>,
    /// Annotations of the PostgresCluster.
    pub(super) requests: BTreeMap<String, String>,
    /// Role labels of pods that were changed.
    pub(super) roles: BTreeMap<String, Option<String>>,
    /// The write with this number fails; what was meant to be written is there or not.
    pub(super) fails: Option<(usize, bool)>,
    writes: usize,
}

impl Api {
    pub(super) fn with(register: &Register) -> Arc<Mutex<Self>> {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "shop", "namespace": "web", "resourceVersion": "1",
                "annotations": {REGISTER_ANNOTATION: serde_json::to_string(register).unwrap()}}});
        Arc::new(Mutex::new(Self { lease: Some(lease), version: 1, ..Self::default() }))
    }

    pub(super) fn register(&self) -> Register {
        let lease = serde_json::from_value(self.lease.clone().unwrap()).unwrap();
        parse_lease(lease).unwrap().view.register
    }

    /// Answers, unless this is the write that fails.
    pub(super) fn ask(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let changes_nothing = body.as_array().is_some_and(|patch| patch.iter().all(|step| step["op"] == "test"));
        let counted = matches!(*method, Method::PUT | Method::PATCH) && !changes_nothing;
        self.writes += usize::from(counted);
        let failure = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "InternalError",
            "message": "crash", "code": 500});
        match self.fails {
            Some((number, false)) if counted && number == self.writes => (500, failure),
            Some((number, true)) if counted && number == self.writes => {
                self.answer(method, path, body);
                (500, failure)
            }
            _ => self.answer(method, path, body),
        }
    }

    /// The holder has stopped, as its agent would write it.
    pub(super) fn release(&mut self) {
        let register = Register { released: true, ..self.register() };
        self.version += 1;
        if let Some(lease) = &mut self.lease {
            lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
            lease["metadata"]["annotations"][REGISTER_ANNOTATION] = json!(serde_json::to_string(&register).unwrap());
        }
        self.log.push("released".to_owned());
    }

    /// What the holder's agent does every two seconds.
    pub(super) fn renew(&mut self) {
        self.version += 1;
        if let Some(lease) = &mut self.lease {
            lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        }
    }

    fn patch_requests(&mut self, body: &Value) -> bool {
        for step in body.as_array().unwrap() {
            let path = step["path"].as_str().unwrap();
            let Some(key) = path.strip_prefix("/metadata/annotations/") else { continue };
            let key = key.replace("~1", "/");
            match step["op"].as_str() {
                Some("test") if self.requests.get(&key).map(String::as_str) == step["value"].as_str() => {}
                Some("remove") if self.requests.remove(&key).is_some() => self.log.push(format!("removed {key}")),
                _ => return false,
            }
        }
        true
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let refused = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code}),
            )
        };
        let kind = path.rsplit('/').nth(1).unwrap_or_default();
        match (method, kind) {
            (&Method::GET, "leases") => {
                self.lease.clone().map_or_else(|| refused(404, "NotFound"), |lease| (200, lease))
            }
            (&Method::PUT, "leases") => {
                let current = self.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
                if current.as_ref() != Some(&body["metadata"]["resourceVersion"]) {
                    return refused(409, "Conflict");
                }
                self.version += 1;
                let mut lease = body;
                lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
                self.lease = Some(lease.clone());
                let register = self.register();
                let holder = register.holder.map(|holder| holder.pod).unwrap_or_default();
                if let Some(handover) = &register.handover
                    && register.seal_term == register.term
                {
                    self.log.push(format!("asked {holder} for {}", handover.target.clone().unwrap_or_default()));
                    return (200, lease);
                }
                self.log.push(format!("register term={} seal={} holder={holder}", register.term, register.seal_term));
                (200, lease)
            }
            (&Method::PATCH, "pods") => {
                let name = path.rsplit('/').next().unwrap_or_default();
                let role = &body["metadata"]["labels"]["pgherd.dev/role"];
                self.log.push(format!("label {name} {role}"));
                self.roles.insert(name.to_owned(), role.as_str().map(str::to_owned));
                (200, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}))
            }
            (&Method::PATCH, "postgresclusters") if self.patch_requests(&body) => {
                let spec = json!({"instances": 3, "storage": {"size": "10Gi"}});
                (
                    200,
                    json!({"apiVersion": "pgherd.dev/v1alpha1", "kind": "PostgresCluster", "metadata": {"name": "shop"}, "spec": spec}),
                )
            }
            (&Method::PATCH, "postgresclusters") => refused(422, "Invalid"),
            (&Method::POST, _) => (201, body),
            _ => refused(404, "NotFound"),
        }
    }
}

pub(super) fn client(api: &Arc<Mutex<Api>>) -> Client {
    let api = Arc::clone(api);
    let service = tower::service_fn(move |request: Request<Body>| {
        let api = Arc::clone(&api);
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let (code, answer) = api.lock().unwrap().ask(&parts.method, parts.uri.path(), body);
            let response =
                Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap();
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    Client::new(service, "web")
}

pub(super) fn context(client: &Client) -> Context {
    let scope = Scope::Namespace("web".to_owned());
    // Nobody answers these watches: what is observed is made by hand.
    let (stores, _watches) = Stores::start(client, &scope);
    Context {
        client: client.clone(),
        scope,
        settings: Settings {
            namespaces: Vec::new(),
            image: "pgherd".into(),
            postgres_images: [].into(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            leader_lease: "pgherd".into(),
            pod_name: "pgherd-0".into(),
            pod_namespace: "pgherd".into(),
        },
        recorder: Recorder::new(client.clone(), Reporter::from("test")),
        stores,
        agents: AgentClients::default(),
        leadership: Leadership::default(),
        metrics: Metrics::default(),
        clock: Clock::start(),
        memories: Memories::default(),
        archive_looks: ArchiveLooks::default(),
    }
}

/// The agent of an ordinal at 127.77.`net`.`ordinal`: seals with this LSN, and is promoted as soon as the register says so.
async fn serve_agent(pki: &Pki, api: &Arc<Mutex<Api>>, net: u8, ordinal: u32, lsn: u64) {
    let api = Arc::clone(api);
    let name = format!("shop-{ordinal}.shop-pods.web.svc");
    let address = Ipv4Addr::new(127, 77, net, ordinal as u8 + 1);
    let answer = move |path: &str| match path {
        "/v1/status" => {
            let register = api.lock().unwrap().register();
            let holds = register.holder.is_some_and(|holder| holder.pod == format!("shop-{ordinal}"));
            let mut status: InstanceStatus = replica(ordinal);
            if holds {
                (status.phase, status.is_primary, status.term) = (Phase::Primary, true, register.term);
            }
            (200, serde_json::to_string(&status).unwrap())
        }
        "/v1/seal" => (200, serde_json::to_string(&sealed(ordinal, lsn)).unwrap()),
        _ => (204, String::new()),
    };
    pki.serve_on(&name, (address, AGENT_PORT), answer).await;
}

/// As [`serve_agent`], but it takes its time to seal, and reports more than the others.
async fn serve_slowly(pki: &Pki, net: u8, ordinal: u32, delay: Duration) {
    let address = Ipv4Addr::new(127, 77, net, ordinal as u8 + 1);
    let answer = move |path: &str| match path {
        "/v1/seal" => {
            std::thread::sleep(delay);
            (200, serde_json::to_string(&sealed(ordinal, 0x300_0900)).unwrap())
        }
        "/v1/status" => (200, serde_json::to_string(&replica(ordinal)).unwrap()),
        _ => (204, String::new()),
    };
    pki.serve_on(&format!("shop-{ordinal}.shop-pods.web.svc"), (address, AGENT_PORT), answer).await;
}

pub(super) fn at_address(net: u8, mut pod: ObservedPod) -> ObservedPod {
    pod.ip = Some(Ipv4Addr::new(127, 77, net, pod.ordinal as u8 + 1).into());
    pod
}

/// What a round sees of the API, with these pods.
pub(super) async fn see(client: &Client, read_at_ms: u64, pods: Vec<ObservedPod>) -> Observed {
    let register = RegisterClient::new(client.clone(), "web").read("shop").await.unwrap();
    Observed { register, read_at_ms, pods, ..Observed::default() }
}

fn pods_without_primary(net: u8) -> Vec<ObservedPod> {
    let silent = |ordinal| {
        let mut status = replica(ordinal);
        status.receiver = None;
        pod(ordinal, Some("replica"), Some(status))
    };
    vec![at_address(net, pod(0, Some("primary"), None)), at_address(net, silent(1)), at_address(net, silent(2))]
}

#[tokio::test]
async fn a_lost_primary_is_unrouted_sealed_replaced_by_the_furthest_and_routed_in_one_round() {
    let pki = Pki::new();
    let api = Api::with(&held_by_0(voters(&[1, 2], 1)));
    serve_agent(&pki, &api, 1, 1, 0x300_0000).await;
    serve_agent(&pki, &api, 1, 2, 0x300_0100).await;
    let client = client(&api);
    let (context, cluster, mut memory) = (context(&client), validated(REQUIRED), Memory::default());
    let identity = pki.identity();
    let mut done = Executed::default();
    for second in 0..=4 {
        let seen = see(&client, second * 1_000 + 1, pods_without_primary(1)).await;
        let plan = decide(&cluster, &seen, &mut memory, at(seen.read_at_ms));
        done = execute(&context, &cluster, &identity, &seen, &plan, &mut memory).await.unwrap();
    }
    let log = api.lock().unwrap().log.clone();
    let wanted = [
        "label shop-0 null",
        "register term=1 seal=2 holder=shop-0",
        "register term=2 seal=2 holder=shop-2",
        "label shop-2 \"primary\"",
    ];
    assert_eq!(log, wanted);
    assert_eq!(done.roles.get("shop-2"), Some(&Some("primary".to_owned())));
    let record = memory.last_failover.unwrap();
    assert_eq!((record.from.as_str(), record.to.as_str(), record.possible_loss_bytes), ("shop-0", "shop-2", 0));
    assert_eq!(record.candidates.len(), 2);
    assert!(memory.failover.is_none());
}

#[tokio::test]
async fn a_quorum_that_does_not_answer_blocks_and_nobody_is_promoted() {
    let pki = Pki::new();
    let sealing = Register { seal_term: Term(2), ..held_by_0(voters(&[1, 2], 1)) };
    let api = Api::with(&sealing);
    serve_agent(&pki, &api, 2, 1, 0x300_0000).await;
    let client = client(&api);
    let (context, cluster, mut memory) = (context(&client), validated(REQUIRED), Memory::default());
    // shop-2 answered the probe and is gone when it is asked to seal.
    let mut pods = pods_without_primary(2);
    pods[0].role = None;
    let seen = see(&client, 1, pods).await;
    let plan = decide(&cluster, &seen, &mut memory, at(1));
    let done = execute(&context, &cluster, &pki.identity(), &seen, &plan, &mut memory).await.unwrap();
    let blocked = done.blocked.unwrap();
    assert_eq!(blocked.missing, ["shop-2"]);
    assert_eq!(api.lock().unwrap().register(), sealing);
}

#[tokio::test]
async fn a_holder_that_renews_between_looking_and_sealing_is_not_sealed() {
    let pki = Pki::new();
    let api = Api::with(&held_by_0(voters(&[1, 2], 0)));
    let client = client(&api);
    let (context, cluster, mut memory) =
        (context(&client), validated("{instances: 3, storage: {size: 10Gi}}"), Memory::default());
    let mut plan = Plan::default();
    let mut seen = Observed::default();
    for second in 0..=12 {
        seen = see(&client, second * 1_000 + 1, pods_without_primary(3)).await;
        plan = decide(&cluster, &seen, &mut memory, at(seen.read_at_ms));
    }
    assert!(matches!(plan.action, Action::Failover(Step::Seal { .. })), "{:?}", plan.action);
    {
        let mut api = api.lock().unwrap();
        let renewed = api.lease.clone().unwrap();
        api.answer(&Method::PUT, "/leases/shop", renewed);
    }
    execute(&context, &cluster, &pki.identity(), &seen, &plan, &mut memory).await.unwrap();
    assert!(!api.lock().unwrap().register().is_sealing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn without_a_quorum_a_replica_that_is_ahead_is_waited_for_until_it_has_replayed() {
    let pki = Pki::new();
    let sealing = Register { seal_term: Term(2), ..held_by_0(voters(&[1, 2], 0)) };
    let api = Api::with(&sealing);
    // Longer than anybody is waited for who has nothing that the others don't have.
    for (net, seconds, ahead, winner) in [(4, 4, true, "shop-2"), (5, 6, false, "shop-1")] {
        serve_agent(&pki, &api, net, 1, 0x300_0000).await;
        serve_slowly(&pki, net, 2, Duration::from_secs(seconds)).await;
        api.lock().unwrap().lease = Api::with(&sealing).lock().unwrap().lease.clone();
        let client = client(&api);
        let (context, cluster) = (context(&client), validated("{instances: 3, storage: {size: 10Gi}}"));
        let mut pods = pods_without_primary(net);
        if let (true, Probe::Reachable(status)) = (ahead, &mut pods[2].probe) {
            status.received_lsn = Lsn(0x300_0900);
        }
        let (observed, mut memory) = (see(&client, 1, pods).await, Memory::default());
        let plan = decide(&cluster, &observed, &mut memory, at(1));
        execute(&context, &cluster, &pki.identity(), &observed, &plan, &mut memory).await.unwrap();
        assert_eq!(api.lock().unwrap().register().holder.unwrap().pod, winner);
    }
}
