//! Clients: writers and a reader through `shop-rw`, which hold their session until it breaks, and a writer pinned to each
//! container, whatever its role. All they learn goes to the ledger.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    instance::Instance,
    postgres::Outcome,
    random::Random,
    scope::{CLIENTS, elapsed},
    world::World,
};

/// A client gives an answer up after this long.
const PATIENCE: Duration = Duration::from_secs(6);

/// Somebody with chances of its own, so that the order in which clients are polled decides nothing.
struct Client {
    world: Arc<World>,
    random: Random,
    first: u64,
    inserted: AtomicU64,
}

impl Client {
    fn new(world: &Arc<World>, name: String) -> Self {
        let first = (world.next_client() << 32) + 1;
        Self { world: Arc::clone(world), random: world.random.fork(&name), first, inserted: AtomicU64::new(0) }
    }
}

/// Starts everybody.
pub(crate) fn start(world: &Arc<World>) {
    for number in 0..2 {
        tokio::spawn(write_through_service(Client::new(world, format!("writer {number}"))));
    }
    tokio::spawn(read_through_service(Client::new(world, "reader".to_owned())));
    tokio::spawn(use_everywhere(Arc::clone(world)));
}

/// The container that `shop-rw` leads to, as seen a moment ago.
async fn connect(client: &Client) -> Option<Arc<Instance>> {
    let routed = client.world.routed();
    sleep(Duration::from_millis(client.random.between(5, 300))).await;
    client.world.instance_of(routed.first()?)
}

async fn write_through_service(client: Client) {
    let world = &client.world;
    while !world.is_quiet() {
        let Some(session) = connect(&client).await else { continue };
        while !world.is_quiet() {
            if insert(&client, &session).await != Outcome::Acknowledged {
                break;
            }
            sleep(Duration::from_millis(client.random.between(40, 120))).await;
        }
        sleep(Duration::from_millis(client.random.between(100, 300))).await;
    }
}

/// As a poll of every pod for writability, and a reader that asks whoever takes writes.
async fn use_everywhere(world: Arc<World>) {
    let mut known = BTreeSet::new();
    while !world.is_quiet() {
        for instance in world.running() {
            if known.insert(instance.number) {
                let client = Client::new(&world, format!("user of container {}", instance.number));
                tokio::spawn(async move {
                    while !instance.is_over() && !client.world.is_quiet() {
                        insert(&client, &instance).await;
                        sleep(Duration::from_millis(client.random.between(100, 250))).await;
                        read(&client, &instance).await;
                        sleep(Duration::from_millis(client.random.between(100, 250))).await;
                    }
                });
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
}

async fn insert(client: &Client, to: &Arc<Instance>) -> Outcome {
    let id = client.first + client.inserted.fetch_add(1, Ordering::SeqCst);
    let outcome = ask(client, to, id).await;
    let mut ledger = client.world.ledger.lock().unwrap();
    match outcome {
        Outcome::Acknowledged => {
            let now = elapsed();
            ledger.longest_gap = ledger.longest_gap.max(now.saturating_sub(ledger.last_acknowledged_at));
            ledger.last_acknowledged_at = now;
            ledger.acknowledged.insert(id, now);
        }
        Outcome::Refused => {
            ledger.failed.insert(id);
        }
        Outcome::Unknown => {
            ledger.unknown.insert(id);
        }
    }
    outcome
}

async fn ask(client: &Client, to: &Arc<Instance>, id: u64) -> Outcome {
    let (world, random) = (&client.world, &client.random);
    let there = to.scope.node;
    if timeout(PATIENCE, world.net.travel(random, CLIENTS, there)).await.is_err() {
        return Outcome::Unknown;
    }
    let Some(server) = to.server() else { return Outcome::Refused };
    let (answer, answered) = oneshot::channel();
    to.scope.spawn(async move {
        // The client may have given up.
        let _ = answer.send(server.insert(id).await);
    });
    let Ok(Ok(outcome)) = timeout(PATIENCE, answered).await else { return Outcome::Unknown };
    if timeout(PATIENCE, world.net.travel(random, there, CLIENTS)).await.is_err() {
        return Outcome::Unknown;
    }
    outcome
}

async fn read_through_service(client: Client) {
    while !client.world.is_quiet() {
        sleep(Duration::from_millis(client.random.between(200, 500))).await;
        if let Some(instance) = connect(&client).await {
            read(&client, &instance).await;
        }
    }
}

async fn read(client: &Client, from: &Arc<Instance>) {
    let (world, random) = (&client.world, &client.random);
    let there = from.scope.node;
    let trip = async {
        world.net.travel(random, CLIENTS, there).await;
        let server = from.server().filter(|server| server.is_primary())?;
        let (answer, answered) = oneshot::channel();
        from.scope.spawn(async move {
            // The client may have given up.
            let _ = answer.send(server.read());
        });
        let seen = answered.await.ok()??;
        world.net.travel(random, there, CLIENTS).await;
        Some(seen)
    };
    if let Ok(Some(seen)) = timeout(PATIENCE, trip).await {
        world.ledger.lock().unwrap().seen.extend(seen);
    }
}
