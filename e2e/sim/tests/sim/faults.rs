//! What goes wrong, drawn from the seed: when, what, to whom and for how long; and how it is healed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    control::{cordon, delete_pod, evict, force_delete_pod, wipe},
    operators::Operator,
    random::Random,
    run::Mode,
    scope::{API, CLIENTS, NODES, Node, OPERATORS, hold_clock_back, node_of},
    trace::note,
    world::World,
};

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Primary,
    Replica,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillPostmaster(Whom),
    KillContainer(Whom),
    DeletePod(Whom),
    ForceDelete(Whom),
    Freeze(Whom),
    /// The node's CLOCK_BOOTTIME stands still as well: a virtual machine that was paused from outside.
    FreezeWithClock(Whom),
    /// The processes of PostgreSQL are stopped, the agent goes on.
    Halt(Whom),
    /// The node's links to the API server, the other instances, the operators and the clients.
    Cut {
        whom: Whom,
        api: bool,
        peers: bool,
        operators: bool,
        clients: bool,
        from: bool,
        to: bool,
    },
    SlowLinks(Whom),
    SlowDisk(Whom, u64),
    Wipe,
    ApiDown,
    ApiSlow(u64),
    ApiErrors,
    Conflicts,
    StaleWatches,
    OperatorDies {
        n: u64,
        before: bool,
    },
    OperatorKilled,
    /// The node of the primary and that of the operator at once.
    FreezeWithOperator,
    TwoLeaders,
    Scale(u32),
    Acks(u32),
    /// Somebody asks for another primary: this ordinal, or the best one.
    Switchover(Option<u32>),
    /// The node is cordoned, and the instance is evicted as soon as its budget lets it go.
    Drain(Whom),
    /// An old manifest that forces a promotion in an earlier term: refused, whatever is blocked.
    StaleForce(u32),
}

/// A fault with its time.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) fault: Fault,
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
}

/// Draws one.
pub(crate) fn draw(random: &Random, mode: Mode) -> Planned {
    let whom = if random.percent(70) { Whom::Primary } else { Whom::Replica };
    let coin = || random.percent(50);
    let fault = match random.between(0, 31) {
        0 => Fault::KillPostmaster(whom),
        1 => Fault::KillContainer(whom),
        2 => Fault::DeletePod(whom),
        3 => Fault::ForceDelete(whom),
        4 => Fault::Freeze(whom),
        // Without a quorum nothing but clocks keeps two primaries apart.
        5 if mode == Mode::Required => Fault::FreezeWithClock(whom),
        5 => Fault::Freeze(whom),
        6 => Fault::Halt(whom),
        7..=10 => {
            let (from, to) = match random.between(0, 4) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            Fault::Cut { whom, api: coin(), peers: coin(), operators: coin(), clients: random.percent(25), from, to }
        }
        11 => Fault::SlowLinks(whom),
        12 => Fault::SlowDisk(whom, *random.pick(&[500, 5_000, 30_000])),
        13 => Fault::Wipe,
        14 => Fault::ApiDown,
        15 => Fault::ApiSlow(*random.pick(&[1_000, 3_000, 10_000])),
        16 => Fault::ApiErrors,
        17 => Fault::Conflicts,
        18 => Fault::StaleWatches,
        19 => Fault::OperatorDies { n: random.between(1, 30), before: coin() },
        20 => Fault::OperatorKilled,
        21 => Fault::FreezeWithOperator,
        22 => Fault::TwoLeaders,
        23 => Fault::Scale(*random.pick(&[2, 4, 5])),
        24 if mode != Mode::Off => Fault::Acks(*random.pick(&[1, 2])),
        24 => Fault::Scale(2),
        25 | 26 => Fault::Switchover(if coin() { None } else { Some(*random.pick(&[0, 1, 2])) }),
        27 | 28 => Fault::Drain(whom),
        29 => Fault::StaleForce(*random.pick(&[0, 1, 2])),
        _ => Fault::ApiDown,
    };
    let lasts = match random.between(0, 4) {
        0 => random.between(300, 3_000),
        1 | 2 => random.between(3_000, 20_000),
        _ => random.between(20_000, 70_000),
    };
    Planned { fault, at: Duration::from_millis(random.between(0, 20_000)), lasts: Duration::from_millis(lasts) }
}

/// Those that faults act on.
pub(crate) struct Targets {
    pub(crate) world: Arc<World>,
    pub(crate) operators: Vec<Arc<Operator>>,
}

impl Targets {
    fn ordinal(&self, whom: Whom) -> u32 {
        let holder = self.world.register().and_then(|register| register.holder);
        let holder = holder.and_then(|holder| holder.pod.trim_start_matches("shop-").parse().ok()).unwrap_or(0);
        match whom {
            Whom::Primary => holder,
            Whom::Replica => {
                let others: Vec<u32> = (0..3).filter(|ordinal| *ordinal != holder).collect();
                *self.world.random.pick(&others)
            }
        }
    }

    /// The fault comes, lasts, and goes.
    pub(crate) async fn inflict(&self, planned: &Planned) {
        sleep(planned.at).await;
        note(format!("FAULT {:?} for {:?}", planned.fault, planned.lasts));
        let ordinal = match &planned.fault {
            Fault::KillPostmaster(whom)
            | Fault::KillContainer(whom)
            | Fault::DeletePod(whom)
            | Fault::ForceDelete(whom)
            | Fault::Freeze(whom)
            | Fault::FreezeWithClock(whom)
            | Fault::Halt(whom)
            | Fault::Cut { whom, .. }
            | Fault::SlowLinks(whom)
            | Fault::Drain(whom)
            | Fault::SlowDisk(whom, _) => self.ordinal(*whom),
            Fault::Wipe => self.ordinal(Whom::Replica),
            _ => self.ordinal(Whom::Primary),
        };
        self.begin(&planned.fault, ordinal);
        sleep(planned.lasts).await;
        note(format!("HEAL {:?}", planned.fault));
        self.end(planned, ordinal);
    }

    fn begin(&self, fault: &Fault, ordinal: u32) {
        let world = &self.world;
        let (node, pod) = (node_of(ordinal), format!("shop-{ordinal}"));
        let instance = world.running().into_iter().find(|instance| instance.pod == pod);
        match fault {
            Fault::KillPostmaster(_) => {
                if let Some((instance, server)) = instance.and_then(|it| it.server().map(|server| (it, server))) {
                    server.kill();
                    // As SIGCHLD does.
                    instance.agent.wake.notify_one();
                }
            }
            Fault::KillContainer(_) => {
                if let Some(instance) = instance {
                    instance.end(137);
                }
            }
            Fault::DeletePod(_) => delete_pod(world, &pod),
            Fault::ForceDelete(_) => force_delete_pod(world, &pod),
            Fault::Freeze(_) | Fault::FreezeWithClock(_) => world.freeze(node),
            Fault::FreezeWithOperator => {
                world.freeze(node);
                world.freeze(self.operators[0].node());
            }
            Fault::Halt(_) => self.halt(&pod, true),
            Fault::Cut { api, peers, operators, clients, from, to, .. } => {
                self.cut(node, [*api, *peers, *operators, *clients], *from, *to);
            }
            Fault::SlowLinks(_) => {
                for other in (0..NODES).filter(|other| *other != node) {
                    world.net.slow_down(node, other, 1_500);
                    world.net.slow_down(other, node, 1_500);
                }
            }
            Fault::SlowDisk(_, millis) => world.volume(ordinal).slow_ms.store(*millis, Ordering::SeqCst),
            Fault::Wipe => {
                // Two copies lost at once are lost: only while everything else is well.
                let register = world.register();
                let calm = register.as_ref().is_some_and(|register| !register.is_sealing() && !register.released);
                let holder = register.and_then(|register| register.holder).map(|holder| holder.pod);
                let serves = holder.as_ref().and_then(|holder| world.server_of(holder)).is_some_and(|s| s.is_primary());
                if calm && serves && holder.is_some_and(|holder| holder != pod) {
                    wipe(world, ordinal);
                }
            }
            Fault::ApiDown => world.api.trouble.lock().unwrap().down = true,
            Fault::ApiSlow(millis) => world.api.trouble.lock().unwrap().slow_ms = *millis,
            Fault::ApiErrors => {
                let mut trouble = world.api.trouble.lock().unwrap();
                (trouble.fail_before, trouble.fail_after) = (20, 20);
            }
            Fault::Conflicts => world.api.trouble.lock().unwrap().conflicts = 60,
            Fault::StaleWatches => {
                let mut trouble = world.api.trouble.lock().unwrap();
                (trouble.watch_lag_ms, trouble.gone, trouble.stale_lists) = (4_000, 20, 15);
            }
            Fault::OperatorDies { n, before } => {
                for operator in &self.operators {
                    operator.die_at_write(*n, *before);
                }
            }
            Fault::OperatorKilled => self.operators.iter().for_each(|operator| operator.kill()),
            Fault::TwoLeaders => {
                world.two_leaders.store(true, Ordering::SeqCst);
                self.operators[1].lead_alone();
            }
            Fault::Scale(instances) => set_spec(world, json!({"spec": {"instances": instances}})),
            Fault::Acks(acks) => set_spec(world, json!({"spec": {"synchronous": {"replicas": acks}}})),
            Fault::Switchover(target) => {
                let target = target.map_or("any".to_owned(), |ordinal| format!("shop-{ordinal}"));
                set_spec(world, json!({"metadata": {"annotations": {"pgherd.dev/switchover": target}}}));
            }
            Fault::Drain(_) => {
                cordon(world, ordinal, true);
                tokio::spawn(evict(Arc::clone(world), ordinal));
            }
            Fault::StaleForce(whom) => {
                let term = world.register().map_or(0, |register| register.term.0.saturating_sub(1));
                let request = format!("shop-{whom}@{term}");
                set_spec(world, json!({"metadata": {"annotations": {"pgherd.dev/force-promote": request}}}));
            }
        }
    }

    fn halt(&self, pod: &str, halted: bool) {
        for instance in self.world.running().iter().filter(|instance| instance.pod == pod) {
            if let Some(server) = instance.server() {
                server.halted.store(halted, Ordering::SeqCst);
            }
        }
    }

    fn cut(&self, node: Node, [api, peers, operators, clients]: [bool; 4], from: bool, to: bool) {
        let instances: Vec<Node> = (4..NODES).filter(|other| *other != node).collect();
        let others = [(api, vec![API]), (peers, instances), (operators, OPERATORS.to_vec()), (clients, vec![CLIENTS])];
        for other in others.into_iter().filter(|(is_cut, _)| *is_cut).flat_map(|(_, nodes)| nodes) {
            if from {
                self.world.net.cut(node, other);
            }
            if to {
                self.world.net.cut(other, node);
            }
        }
    }

    fn end(&self, planned: &Planned, ordinal: u32) {
        let world = &self.world;
        match &planned.fault {
            Fault::Freeze(_) => world.thaw(node_of(ordinal)),
            Fault::FreezeWithClock(_) => {
                hold_clock_back(node_of(ordinal), planned.lasts);
                world.thaw(node_of(ordinal));
            }
            Fault::FreezeWithOperator => {
                world.thaw(node_of(ordinal));
                world.thaw(self.operators[0].node());
            }
            Fault::Halt(_) => self.halt(&format!("shop-{ordinal}"), false),
            Fault::Cut { .. } | Fault::SlowLinks(_) => world.net.mend(),
            Fault::SlowDisk(..) => world.volume(ordinal).slow_ms.store(0, Ordering::SeqCst),
            Fault::ApiDown | Fault::ApiSlow(_) | Fault::ApiErrors | Fault::Conflicts | Fault::StaleWatches => {
                *world.api.trouble.lock().unwrap() = crate::api::Trouble::default();
                world.api.changed.raise();
            }
            Fault::TwoLeaders => self.operators[1].lead_with_the_others(),
            Fault::OperatorDies { .. } => self.operators.iter().for_each(|operator| operator.die_at_write(0, true)),
            Fault::Scale(during) => {
                let cluster = world.cluster().unwrap_or_default();
                let alone = cluster["spec"]["synchronous"]["replicas"].as_u64().unwrap_or(0) < 2;
                let instances = if *during == 5 && alone { 2 } else { 3 };
                set_spec(world, json!({"spec": {"instances": instances}}));
            }
            Fault::Drain(_) => cordon(world, ordinal, false),
            Fault::Acks(_) => set_spec(world, json!({"spec": {"synchronous": {"replicas": 1}}})),
            _ => {}
        }
    }
}

/// A person edits the cluster.
fn set_spec(world: &World, patch: serde_json::Value) {
    let key = ("postgresclusters".to_owned(), "web".to_owned(), "shop".to_owned());
    world.api.edit(|objects| objects.patch(key, patch, false, false, ""));
}
