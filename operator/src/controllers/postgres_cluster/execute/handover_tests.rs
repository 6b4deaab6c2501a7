//! Switchovers, drains and forced promotions by the real code, against the API server in memory and agents behind real
//! TLS, also with an operator that dies at any of its writes.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use pgherd_core::{
    failover::Probe,
    instance::{AGENT_PORT, InstanceStatus, Phase, Receiver},
    lineage::{Fork, register_forked},
    lsn::Lsn,
    register::{FailoverKind, FailoverNote, Register, Term, VoterSet},
    timeline::TimelineId,
};
use pgherd_crds::names::keys;

use super::{
    tests::{Api, REQUIRED, at_address, client, context, see},
    *,
};
use crate::{
    controllers::postgres_cluster::{
        decide::decide,
        observe::{
            ObservedPod,
            testing::{at, held_by_0, pod, primary, replica, sealed, voters},
        },
        test_support::validated,
    },
    kubernetes::agent_client::tests::Pki,
};

const OFF: &str = "{instances: 3, storage: {size: 10Gi}}";

/// A cluster of three whose agents do as the register says.
struct Shop {
    pki: Pki,
    api: Arc<Mutex<Api>>,
    spec: &'static str,
    net: u8,
    now_ms: u64,
}

/// How an agent behaves.
#[derive(Clone, Copy)]
struct Manners {
    /// It stops when it is asked to.
    hands_over: bool,
    /// It says so, and stops once nobody is led to it any more.
    announces: bool,
    /// It answers at all.
    answers: bool,
    /// Where its WAL ends.
    lsn: u64,
}

const WELL: Manners = Manners { hands_over: true, announces: false, answers: true, lsn: 0x300_0000 };

/// What the agent of this pod says under this register.
fn says(register: &Register, ordinal: u32) -> InstanceStatus {
    let holder = register.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default();
    let quorum = register.quorum_to_apply();
    let others: Vec<u32> = (0..3).filter(|other| *other != ordinal).collect();
    let mut status = if holder != format!("shop-{ordinal}") {
        let receiver = (!register.released).then_some(Receiver { streaming: true, silent_ms: 1, upstream: holder });
        InstanceStatus { receiver, ..replica(ordinal) }
    } else if register.released {
        InstanceStatus { phase: Phase::Stopped, postgres_up: false, receiver: None, ..replica(ordinal) }
    } else {
        primary(ordinal, &others, quorum)
    };
    status.term = register.term;
    status
}

impl Shop {
    async fn new(net: u8, spec: &'static str, quorum: VoterSet, manners: [Manners; 3]) -> Self {
        let (pki, api) = (Pki::new(), Api::with(&held_by_0(quorum)));
        api.lock().unwrap().roles.insert("shop-0".into(), Some("primary".into()));
        for (ordinal, manners) in (0..).zip(manners) {
            serve(&pki, &api, net, ordinal, manners).await;
        }
        Self { pki, api, spec, net, now_ms: 0 }
    }

    fn ask(&self, key: &str, value: &str) {
        self.api.lock().unwrap().requests.insert(key.to_owned(), value.to_owned());
    }

    fn register(&self) -> Register {
        self.api.lock().unwrap().register()
    }

    fn log(&self) -> Vec<String> {
        self.api.lock().unwrap().log.clone()
    }

    fn pods(&self, gone: &[u32]) -> Vec<ObservedPod> {
        let (register, roles) = (self.register(), self.api.lock().unwrap().roles.clone());
        let view = |ordinal: u32| {
            let role = roles.get(&format!("shop-{ordinal}")).cloned().flatten();
            let status = (!gone.contains(&ordinal)).then(|| says(&register, ordinal));
            at_address(self.net, pod(ordinal, role.as_deref().or((ordinal > 0).then_some("replica")), status))
        };
        (0..3).map(view).collect()
    }

    /// One round of an operator with this memory, a second after the last one.
    async fn round(&mut self, memory: &mut Memory, change: impl FnOnce(&mut Observed)) -> Option<Executed> {
        self.now_ms += 1_000;
        let client = client(&self.api);
        let (context, mut cluster) = (context(&client), validated(self.spec));
        let requests = self.api.lock().unwrap().requests.clone();
        cluster.requests.switchover = requests.get(keys::SWITCHOVER).cloned();
        cluster.requests.force_promote = requests.get(keys::FORCE_PROMOTE).cloned();
        let mut seen = see(&client, self.now_ms, self.pods(&[])).await;
        change(&mut seen);
        let plan = decide(&cluster, &seen, memory, at(self.now_ms));
        execute(&context, &cluster, &self.pki.identity(), &seen, &plan, memory).await.ok()
    }

    /// A few rounds of a new operator.
    async fn settle(&mut self) -> Memory {
        let mut memory = Memory::default();
        for _ in 0..8 {
            self.round(&mut memory, |_| {}).await;
        }
        memory
    }
}

async fn serve(pki: &Pki, api: &Arc<Mutex<Api>>, net: u8, ordinal: u32, manners: Manners) {
    let api = Arc::clone(api);
    let name = format!("shop-{ordinal}.shop-pods.web.svc");
    let address = Ipv4Addr::new(127, 77, net, ordinal as u8 + 1);
    let answer = move |path: &str| {
        let mut api = api.lock().unwrap();
        let register = api.register();
        let holds = register.holder.as_ref().is_some_and(|holder| holder.pod == format!("shop-{ordinal}"));
        match path {
            _ if !manners.answers => (500, String::new()),
            "/v1/status" if manners.announces && holds && register.handover.is_some() && !register.released => {
                if api.roles["shop-0"].is_none() || api.roles.get("shop-2") == Some(&None) {
                    api.release();
                }
                let status = InstanceStatus { phase: Phase::HandingOver, ..says(&register, ordinal) };
                (200, serde_json::to_string(&status).unwrap())
            }
            "/v1/status" => (200, serde_json::to_string(&says(&register, ordinal)).unwrap()),
            "/v1/seal" => (200, serde_json::to_string(&sealed(ordinal, manners.lsn)).unwrap()),
            "/v1/wake" if holds && register.handover.is_some() && !register.released && manners.hands_over => {
                api.release();
                (204, String::new())
            }
            _ => (204, String::new()),
        }
    };
    pki.serve_on(&name, (address, AGENT_PORT), answer).await;
}

#[tokio::test]
async fn a_switchover_goes_from_the_request_to_the_route_in_one_round() {
    for (net, spec, acks) in [(11, REQUIRED, 1), (12, OFF, 0)] {
        let mut shop = Shop::new(net, spec, voters(&[1, 2], acks), [WELL; 3]).await;
        shop.ask(keys::SWITCHOVER, "shop-2");
        let mut memory = Memory::default();
        let done = shop.round(&mut memory, |_| {}).await.unwrap();
        let log: Vec<String> = shop.log().into_iter().filter(|line| line != "removed pgherd.dev/switchover").collect();
        let wanted = [
            "asked shop-0 for shop-2",
            "released",
            "register term=1 seal=2 holder=shop-0",
            "register term=2 seal=2 holder=shop-2",
            "label shop-0 null",
            "label shop-2 \"primary\"",
        ];
        assert_eq!(log, wanted);
        assert!(shop.api.lock().unwrap().requests.is_empty());
        assert_eq!(done.switchover.unwrap().target.as_deref(), Some("shop-2"));
        let record = memory.last_failover.unwrap();
        assert_eq!((record.from.as_str(), record.to.as_str()), ("shop-0", "shop-2"));
        assert_eq!((record.reason.as_str(), record.possible_loss_bytes), ("switchover requested", 0));
        assert_eq!(shop.register().handover, None);
    }
}

#[tokio::test]
async fn when_the_holder_is_about_to_stop_the_nodes_second_begins() {
    let announces = Manners { hands_over: false, announces: true, ..WELL };
    let both = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 2}}";
    let spared = [
        "asked shop-0 for shop-2",
        "label shop-2 null",
        "released",
        "register term=1 seal=2 holder=shop-0",
        "register term=2 seal=2 holder=shop-2",
        "label shop-0 null",
        "label shop-2 \"primary\"",
    ];
    let needed = [
        "asked shop-0 for shop-2",
        "label shop-0 null",
        "released",
        "register term=1 seal=2 holder=shop-0",
        "register term=2 seal=2 holder=shop-2",
        "label shop-2 \"primary\"",
    ];
    for (net, spec, acks, wanted) in [(47, REQUIRED, 1, &spared[..]), (48, both, 2, &needed)] {
        let mut shop = Shop::new(net, spec, voters(&[1, 2], acks), [announces, WELL, WELL]).await;
        shop.ask(keys::SWITCHOVER, "shop-2");
        shop.round(&mut Memory::default(), |_| {}).await;
        let log: Vec<String> = shop.log().into_iter().filter(|line| line != "removed pgherd.dev/switchover").collect();
        assert_eq!(log, wanted);
    }
}

/// The register, the requests and the labels after one operator died at its write `number`, and another one went on.
async fn after_a_crash(net: u8, number: usize, written: bool) -> (Shop, Memory) {
    let mut shop = Shop::new(net, REQUIRED, voters(&[1, 2], 1), [WELL; 3]).await;
    shop.ask(keys::SWITCHOVER, "any");
    shop.api.lock().unwrap().fails = Some((number, written));
    shop.round(&mut Memory::default(), |_| {}).await;
    shop.api.lock().unwrap().fails = None;
    let memory = shop.settle().await;
    (shop, memory)
}

#[tokio::test]
async fn an_operator_that_dies_at_any_write_leaves_a_switchover_that_another_one_completes_once() {
    for number in 1..=7 {
        for written in [false, true] {
            let (shop, memory) = after_a_crash(20 + number as u8 * 2 + u8::from(written), number, written).await;
            let register = shop.register();
            let holder = register.holder.as_ref().map(|holder| holder.pod.as_str());
            let case = format!("write {number}, written: {written}: {:?}", shop.log());
            assert_eq!((register.term, holder), (Term(2), Some("shop-1")), "{case}");
            assert_eq!((register.is_sealing(), register.released, &register.handover), (false, false, &None), "{case}");
            let api = shop.api.lock().unwrap();
            assert!(api.requests.is_empty(), "{case}");
            assert_eq!(api.roles["shop-1"].as_deref(), Some("primary"), "{case}");
            assert_ne!(api.roles["shop-0"].as_deref(), Some("primary"), "{case}");
            let record = memory.last_failover.unwrap_or_else(|| panic!("no record: {case}"));
            assert_eq!((record.reason.as_str(), record.term), ("switchover requested", 2), "{case}");
            assert_eq!(record.candidates.len(), 2, "{case}");
        }
    }
}

#[tokio::test]
async fn a_request_that_is_gone_when_it_is_to_be_carried_out_is_left_alone() {
    let mut shop = Shop::new(13, REQUIRED, voters(&[1, 2], 1), [WELL; 3]).await;
    let client = client(&shop.api);
    let (context, mut cluster, mut memory) = (context(&client), validated(REQUIRED), Memory::default());
    cluster.requests.switchover = Some("any".into());
    let seen = see(&client, 1, shop.pods(&[])).await;
    let plan = decide(&cluster, &seen, &mut memory, at(1));
    assert!(matches!(plan.action, Action::HandOver(_)), "{:?}", plan.action);
    execute(&context, &cluster, &shop.pki.identity(), &seen, &plan, &mut memory).await.unwrap();
    assert_eq!(shop.register(), held_by_0(voters(&[1, 2], 1)));
    shop.round(&mut memory, |_| {}).await;
    assert!(shop.log().is_empty(), "{:?}", shop.log());
}

#[tokio::test]
async fn a_target_that_is_behind_is_waited_for_and_refused_after_a_minute() {
    let mut shop = Shop::new(14, REQUIRED, voters(&[1, 2], 1), [WELL; 3]).await;
    shop.ask(keys::SWITCHOVER, "shop-2");
    let behind = |seen: &mut Observed| {
        let mut status = seen.pods[2].status().unwrap().clone();
        let mut primary = seen.pods[0].status().unwrap().clone();
        (status.replayed_lsn, primary.received_lsn) = (Lsn(0x100_0000), Lsn(0x300_0000));
        seen.pods[2].probe = Probe::Reachable(Box::new(status));
        seen.pods[0].probe = Probe::Reachable(Box::new(primary));
    };
    let mut memory = Memory::default();
    for _ in 0..60 {
        shop.api.lock().unwrap().renew();
        shop.round(&mut memory, behind).await;
    }
    assert!(shop.log().is_empty(), "{:?}", shop.log());
    shop.api.lock().unwrap().renew();
    shop.round(&mut memory, behind).await;
    assert_eq!(shop.log(), ["removed pgherd.dev/switchover"]);
    assert_eq!(shop.register(), held_by_0(voters(&[1, 2], 1)));
}

#[tokio::test]
async fn a_target_that_makes_no_sense_is_refused_at_once() {
    for (net, target) in [(15, "shop-0"), (16, "shop-9")] {
        let mut shop = Shop::new(net, REQUIRED, voters(&[1, 2], 1), [WELL; 3]).await;
        shop.ask(keys::SWITCHOVER, target);
        shop.round(&mut Memory::default(), |_| {}).await;
        assert_eq!(shop.log(), ["removed pgherd.dev/switchover"]);
        assert!(!shop.register().is_sealing());
    }
}

#[tokio::test]
async fn when_the_target_dies_midway_another_one_takes_over_or_the_old_primary_goes_on() {
    let silent = Manners { answers: false, ..WELL };
    let behind = Manners { lsn: 0x2ff_0000, ..WELL };
    // With two acknowledgements each of the two replicas has everything.
    let spec = "{instances: 3, storage: {size: 10Gi}, synchronous: {mode: Required, replicas: 2}}";
    let cases = [
        (17, spec, 2, WELL, "shop-1"),
        (18, REQUIRED, 1, behind, "shop-0"),
        (19, OFF, 0, WELL, "shop-1"),
        (46, REQUIRED, 1, WELL, "shop-1"),
    ];
    for (net, spec, acks, other, winner) in cases {
        let mut shop = Shop::new(net, spec, voters(&[1, 2], acks), [WELL, other, silent]).await;
        shop.ask(keys::SWITCHOVER, "shop-2");
        shop.round(&mut Memory::default(), |_| {}).await;
        let register = shop.register();
        let holder = register.holder.as_ref().map(|holder| holder.pod.as_str());
        assert_eq!((register.term, holder, register.handover), (Term(2), Some(winner), None), "{:?}", shop.log());
    }
}

#[tokio::test]
async fn a_primary_that_does_not_stop_goes_on_after_thirty_seconds() {
    let stubborn = Manners { hands_over: false, ..WELL };
    let mut shop = Shop::new(40, REQUIRED, voters(&[1, 2], 1), [stubborn, WELL, WELL]).await;
    shop.ask(keys::SWITCHOVER, "shop-1");
    let mut memory = Memory::default();
    shop.round(&mut memory, |_| {}).await;
    assert!(shop.register().handover.is_some());
    // The clock of the decisions is the test's own.
    memory.handover_since_ms = Some(0);
    shop.now_ms = 30_000;
    let done = shop.round(&mut memory, |_| {}).await.unwrap();
    assert_eq!(shop.register(), held_by_0(voters(&[1, 2], 1)));
    assert_eq!(done.switchover.unwrap().phase, "Withdrawn");
    assert_eq!(shop.api.lock().unwrap().roles["shop-0"].as_deref(), Some("primary"), "it never stopped serving");
}

#[tokio::test]
async fn the_primary_of_a_node_that_is_drained_moves_to_a_node_that_is_not() {
    let mut shop = Shop::new(41, REQUIRED, voters(&[1, 2], 1), [WELL; 3]).await;
    let drained = |seen: &mut Observed| seen.draining = Some(["node-0".to_owned(), "node-1".to_owned()].into());
    let mut memory = Memory::default();
    shop.round(&mut memory, drained).await;
    let record = memory.last_failover.clone().unwrap();
    assert_eq!((record.to.as_str(), record.reason.as_str()), ("shop-2", "node node-0 is being drained"));
    for _ in 0..3 {
        shop.round(&mut memory, drained).await;
    }
    assert_eq!(shop.register().term, Term(2), "it stays there");
}

#[tokio::test]
async fn a_scale_down_below_the_primary_moves_the_role_to_a_lower_ordinal_first() {
    let spec = "{instances: 2, storage: {size: 10Gi}}";
    let mut shop = Shop::new(42, spec, voters(&[0, 1], 0), [WELL; 3]).await;
    {
        let mut register = held_by_0(voters(&[0, 1], 0));
        let holder = register.holder.as_mut().unwrap();
        (holder.pod, holder.pod_uid) = ("shop-2".into(), "u2".into());
        holder.member = Some(pgherd_core::register::MemberId("m2".into()));
        let api = Api::with(&register);
        let lease = api.lock().unwrap().lease.clone();
        let mut api = shop.api.lock().unwrap();
        api.lease = lease;
        api.roles = [("shop-2".to_owned(), Some("primary".to_owned()))].into();
    }
    let mut memory = Memory::default();
    shop.round(&mut memory, |_| {}).await;
    let record = memory.last_failover.unwrap();
    assert_eq!((record.from.as_str(), record.to.as_str()), ("shop-2", "shop-0"));
    assert!(record.reason.contains("scaled down to 2"), "{}", record.reason);
}

#[tokio::test]
async fn a_forced_promotion_needs_a_blocked_failover_and_the_present_term() {
    let silent = Manners { answers: false, ..WELL };
    let sealing = Register { seal_term: Term(2), ..held_by_0(voters(&[1, 2], 1)) };
    for (net, request, term) in [(43, "shop-2@7", 1), (44, "shop-1@1", 1), (45, "shop-2@1", 2)] {
        let mut shop = Shop::new(net, REQUIRED, voters(&[1, 2], 1), [silent, silent, WELL]).await;
        let lease = Api::with(&sealing).lock().unwrap().lease.clone();
        shop.api.lock().unwrap().lease = lease;
        shop.ask(keys::FORCE_PROMOTE, request);
        let mut memory = Memory::default();
        let blocked = |seen: &mut Observed| {
            for pod in &mut seen.pods[..2] {
                pod.probe = Probe::Unreachable;
            }
        };
        let done = shop.round(&mut memory, blocked).await.unwrap();
        assert_eq!(shop.register().term, Term(term), "{request}: {:?}", shop.log());
        assert!(shop.api.lock().unwrap().requests.is_empty(), "{request}");
        assert_eq!(done.blocked.is_some(), term == 1, "{request}");
        if term == 2 {
            let record = memory.last_failover.unwrap();
            assert_eq!((record.to.as_str(), record.forced), ("shop-2", Some(true)));
            assert!(record.reason.contains("forced"), "{}", record.reason);
        }
    }
}

#[tokio::test]
async fn where_too_few_answer_to_begin_an_election_a_forced_promotion_begins_one() {
    let silent = Manners { answers: false, ..WELL };
    for (net, request, term) in
        [(48, None, 1), (49, Some("shop-2@7"), 1), (50, Some("shop-1@1"), 1), (51, Some("shop-2@1"), 2)]
    {
        let mut shop = Shop::new(net, REQUIRED, voters(&[1, 2], 1), [silent, silent, WELL]).await;
        let lease =
            Api::with(&Register { released: true, ..held_by_0(voters(&[1, 2], 1)) }).lock().unwrap().lease.clone();
        shop.api.lock().unwrap().lease = lease;
        if let Some(request) = request {
            shop.ask(keys::FORCE_PROMOTE, request);
        }
        let two_are_away = |seen: &mut Observed| {
            for pod in &mut seen.pods[..2] {
                pod.probe = Probe::Unreachable;
            }
        };
        let mut memory = Memory::default();
        let done = shop.round(&mut memory, two_are_away).await.unwrap();
        assert_eq!(shop.register().term, Term(term), "{request:?}: {:?}", shop.log());
        assert!(shop.api.lock().unwrap().requests.is_empty(), "{request:?}");
        // Only a request of this term begins one; that for a pod which does not answer is refused then.
        assert_eq!(shop.register().is_sealing(), request == Some("shop-1@1"), "{request:?}");
        assert_eq!(done.blocked.map(|blocked| blocked.reason), (term == 1).then_some(QUORUM_MISSING), "{request:?}");
    }
}

#[tokio::test]
async fn where_the_same_instance_is_chosen_in_vain_a_forced_promotion_waits_for_the_election_and_is_granted() {
    let note = FailoverNote {
        from: "shop-0".into(),
        reason: "the Lease ran out".into(),
        detect_ms: 1,
        began_at_ms: 1,
        claimed_at_ms: Some(2),
        kind: FailoverKind::LeaseExpired,
        candidates: Vec::new(),
        possible_loss_bytes: None,
        again: true,
    };
    let fork = Fork { term: Term(1), parent_term: Term(0), parent_timeline: TimelineId(1) };
    let chosen = Register { timeline: None, failover: Some(note), ..held_by_0(voters(&[1, 2], 1)) };
    let chosen = register_forked(chosen, fork);
    let silent = Manners { answers: false, ..WELL };
    let ahead = Manners { lsn: WELL.lsn + 0x200, ..WELL };
    let mut shop = Shop::new(47, REQUIRED, voters(&[1, 2], 1), [ahead, silent, WELL]).await;
    shop.ask(keys::FORCE_PROMOTE, "shop-2@1");
    let mut memory = Memory::default();
    let stuck = |seen: &mut Observed| {
        seen.pods[0].probe = Probe::Reachable(Box::new(InstanceStatus { phase: Phase::Sealed, ..replica(0) }));
        seen.pods[1].probe = Probe::Unreachable;
    };
    let put = |shop: &Shop, register: &Register| {
        let lease = Api::with(register).lock().unwrap().lease.clone();
        shop.api.lock().unwrap().lease = lease;
    };
    put(&shop, &chosen);
    shop.round(&mut memory, stuck).await.unwrap();
    assert!(shop.api.lock().unwrap().requests.contains_key(keys::FORCE_PROMOTE), "{:?}", shop.log());
    put(&shop, &Register { seal_term: Term(2), ..chosen });
    shop.round(&mut memory, stuck).await.unwrap();
    let holder = shop.register().holder.unwrap().pod;
    assert_eq!((holder.as_str(), shop.register().term), ("shop-2", Term(2)), "{:?}", shop.log());
    assert!(shop.api.lock().unwrap().requests.is_empty());
    assert_eq!(memory.last_failover.unwrap().forced, Some(true));
}
