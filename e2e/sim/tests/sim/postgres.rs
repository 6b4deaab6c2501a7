//! PostgreSQL, as far as replication and commits go: a process over a data directory. Commits wait for their flush and for
//! `synchronous_standby_names`; a receiver pulls flushed WAL from whom it is told to follow, flushes and acknowledges; a
//! promotion opens a timeline. A kill leaves what was flushed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pgherd_agent::postgres::wal_dir::is_diverged;
use pgherd_core::{lsn::Lsn, quorum::receiver_name};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    data::{Volume, What},
    random::Random,
    scope::Scope,
    signal::Signal,
    world::World,
};

/// `wal_sender_timeout` and `wal_receiver_timeout`.
const REPLICATION_TIMEOUT: Duration = Duration::from_secs(5);
/// `wal_retrieve_retry_interval`.
const RETRY: Duration = Duration::from_secs(2);

/// A standby as the primary sees it.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) flush: Lsn,
    pub(crate) session: u64,
    last_reply: Instant,
}

/// Ends a sender when its receiver's session ends, or its machine does.
struct Session {
    source: Arc<Postgres>,
    member: String,
    number: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.source.close_sender(&self.member, self.number);
    }
}

/// What the receiver of a standby shows.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    /// Its process.
    pub(crate) pid: i32,
    pub(crate) streaming: bool,
    pub(crate) last_message: Instant,
    pub(crate) upstream: String,
}

#[derive(Debug, Default)]
struct State {
    in_recovery: bool,
    answers: bool,
    names: String,
    names_read_at: Option<Instant>,
    upstream: Option<String>,
    /// One more with every change of whom to follow: a receiver of an earlier one must not write any more.
    following: u64,
    receiver: Option<Receiver>,
    senders: BTreeMap<String, Sender>,
    waiting: BTreeSet<u64>,
    sessions: u64,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Committed and acknowledged.
    Acknowledged,
    /// Refused before anything was written.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// A running server.
pub(crate) struct Postgres {
    world: Arc<World>,
    pub(crate) pod: String,
    pub(crate) scope: Arc<Scope>,
    pub(crate) volume: Arc<Volume>,
    state: Mutex<State>,
    stopped: AtomicBool,
    /// SIGSTOP of all its processes.
    pub(crate) halted: AtomicBool,
    /// pg_hba.conf lets clients in.
    pub(crate) admits: AtomicBool,
    work: Signal,
    /// Chances of each of its processes.
    own: Random,
    flushing: Random,
    receiving: Random,
}

impl Postgres {
    /// Starts it on the volume's data directory: crash recovery first, then as a primary or as a standby.
    pub(crate) fn start(
        world: &Arc<World>,
        pod: &str,
        scope: &Arc<Scope>,
        volume: &Arc<Volume>,
        standby: bool,
        upstream: Option<String>,
        names: &str,
    ) -> Arc<Self> {
        let state = State { in_recovery: true, upstream, names: names.to_owned(), ..State::default() };
        let server = Arc::new(Self {
            world: Arc::clone(world),
            pod: pod.to_owned(),
            scope: Arc::clone(scope),
            volume: Arc::clone(volume),
            state: Mutex::new(state),
            stopped: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            admits: AtomicBool::new(true),
            work: Signal::default(),
            own: world.random.fork(&format!("server of {pod}")),
            flushing: world.random.fork(&format!("flushes of {pod}")),
            receiving: world.random.fork(&format!("receiver of {pod}")),
        });
        let starting = Arc::clone(&server);
        scope.spawn(async move {
            sleep(Duration::from_millis(starting.own.between(150, 1_500))).await;
            starting.come_up(standby);
        });
        let (flushing, receiving) = (Arc::clone(&server), Arc::clone(&server));
        scope.spawn(async move { flushing.keep_flushing().await });
        scope.spawn(async move { receiving.keep_receiving().await });
        server
    }

    fn come_up(self: &Arc<Self>, standby: bool) {
        if self.is_stopped() {
            return;
        }
        let occasion = self.world.next_number();
        self.volume.with(|content| {
            let Some(data) = content.data_mut() else { return };
            if !standby {
                data.append(What::Other(occasion), 120);
            }
            data.shut_down_at = None;
            data.replayed = data.flushed;
        });
        let mut state = self.state.lock().unwrap();
        state.in_recovery = standby;
        state.answers = true;
        drop(state);
        self.poke();
    }

    fn poke(&self) {
        self.work.raise();
    }

    /// As by SIGQUIT or SIGKILL: nothing more is written or said.
    pub(crate) fn kill(&self) {
        if self.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        self.volume.with(|content| {
            if let Some(data) = content.data_mut() {
                data.crash();
            }
        });
        self.poke();
    }

    /// A fast shutdown: sessions are cut, then the standbys that follow get everything, for at most so long.
    pub(crate) async fn shut_down(&self, patience: Duration) {
        self.admits.store(false, Ordering::SeqCst);
        let is_primary = {
            let mut state = self.state.lock().unwrap();
            state.answers = false;
            !state.in_recovery
        };
        if is_primary && !self.is_stopped() {
            let occasion = self.world.next_number();
            let (begin, end) = self.volume.with(|content| {
                let ends = content
                    .data_mut()
                    .map(|data| (data.lsn_at(data.wal.len()), data.append(What::Other(occasion), 120)));
                ends.unzip()
            });
            self.poke();
            let on_disk = || {
                self.volume.with(|content| {
                    let data = content.data_mut().filter(|data| end.is_some_and(|end| data.flushed_lsn() >= end))?;
                    data.shut_down_at = begin;
                    begin
                })
            };
            let everybody_has_it = async {
                while !self.is_stopped()
                    && (on_disk().is_none()
                        || end.is_some_and(|end| self.senders().values().any(|sender| sender.flush < end)))
                {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let _ = timeout(patience, everybody_has_it).await;
        }
        self.kill();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || self.scope.is_dead()
    }

    /// It runs and its processes are scheduled.
    fn runs(&self) -> bool {
        !self.is_stopped() && !self.halted.load(Ordering::SeqCst) && !self.scope.is_frozen()
    }

    /// It answers a query.
    pub(crate) fn answers(&self) -> bool {
        self.runs() && self.state.lock().unwrap().answers
    }

    pub(crate) fn is_primary(&self) -> bool {
        !self.is_stopped() && !self.state.lock().unwrap().in_recovery
    }

    pub(crate) fn receiver(&self) -> Option<Receiver> {
        self.state.lock().unwrap().receiver.clone()
    }

    pub(crate) fn senders(&self) -> BTreeMap<String, Sender> {
        let mut senders = self.state.lock().unwrap().senders.clone();
        senders.retain(|_, sender| sender.last_reply.elapsed() < REPLICATION_TIMEOUT);
        senders
    }

    /// `synchronous_standby_names` as a session sees it.
    pub(crate) fn names(&self) -> String {
        self.state.lock().unwrap().names.clone()
    }

    /// Configured anew and told to reload.
    pub(crate) fn configure(self: &Arc<Self>, upstream: Option<String>, names: &str, admits: bool) {
        self.admits.store(admits, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap();
        if state.upstream != upstream {
            state.upstream = upstream;
            state.following += 1;
            state.receiver = None;
        }
        if state.names != names {
            state.names = names.to_owned();
            state.names_read_at = Some(Instant::now());
        }
        drop(state);
        self.poke();
    }

    /// Promotes: waits for the replay, then opens a timeline and takes writes.
    pub(crate) async fn promote(self: &Arc<Self>) -> bool {
        sleep(Duration::from_millis(self.own.between(30, 400))).await;
        if self.is_stopped() || !self.state.lock().unwrap().in_recovery {
            return !self.is_stopped();
        }
        let occasion = self.world.next_number();
        self.volume.with(|content| {
            if let Some(data) = content.data_mut() {
                data.wal.truncate(data.flushed);
                data.switch_timeline(occasion);
            }
        });
        let mut state = self.state.lock().unwrap();
        state.in_recovery = false;
        state.following += 1;
        (state.receiver, state.upstream) = (None, None);
        true
    }

    async fn keep_flushing(self: Arc<Self>) {
        let mut work = self.work.subscribe();
        while !self.is_stopped() {
            let due = self.volume.with(|content| content.data().map_or(0, |data| data.wal.len() - data.flushed));
            if due == 0 || self.halted.load(Ordering::SeqCst) {
                let _ = timeout(Duration::from_millis(500), work.changed()).await;
                continue;
            }
            let until = self.volume.with(|content| content.data().map_or(0, |data| data.wal.len()));
            self.fsync(&self.flushing).await;
            if self.is_stopped() {
                return;
            }
            self.volume.with(|content| {
                if let Some(data) = content.data_mut() {
                    data.flushed = data.flushed.max(until.min(data.wal.len()));
                }
            });
            self.poke();
        }
    }

    async fn fsync(&self, random: &Random) {
        let slow = self.volume.slow_ms.load(Ordering::SeqCst);
        let more = if slow > 0 { random.between(slow / 2, slow) } else { 0 };
        sleep(Duration::from_micros(random.between(500, 4_000) + 1_000 * more)).await;
    }

    /// One transaction. The caller has a session.
    pub(crate) async fn insert(self: &Arc<Self>, id: u64) -> Outcome {
        while self.halted.load(Ordering::SeqCst) && !self.is_stopped() {
            sleep(Duration::from_millis(100)).await;
        }
        if !self.answers() || !self.is_primary() || !self.admits.load(Ordering::SeqCst) {
            return Outcome::Refused;
        }
        let bytes = self.world.random.fork(&format!("bytes of {id}")).between(64, 300);
        let lsn = self.volume.with(|content| content.data_mut().map(|data| data.append(What::Insert(id), bytes)));
        let Some(lsn) = lsn else { return Outcome::Refused };
        self.world.sizes.lock().unwrap().insert(id, bytes);
        self.state.lock().unwrap().waiting.insert(id);
        let mut work = self.work.subscribe();
        self.poke();
        loop {
            if self.is_stopped() {
                return Outcome::Unknown;
            }
            let flushed = self.volume.with(|content| content.data().is_some_and(|data| data.flushed_lsn() >= lsn));
            if flushed && !self.halted.load(Ordering::SeqCst) && self.is_acknowledged(lsn) {
                self.state.lock().unwrap().waiting.remove(&id);
                if let Some(local) = self.volume.local() {
                    self.world.check_acknowledged(id, local.term, &local.member, &self.pod);
                }
                return Outcome::Acknowledged;
            }
            work.changed().await;
        }
    }

    /// As many of the named standbys as asked for have flushed it.
    fn is_acknowledged(&self, lsn: Lsn) -> bool {
        let state = self.state.lock().unwrap();
        let Some((acks, members)) = parse_names(&state.names) else { return true };
        let flushed = state.senders.iter().filter(|(member, sender)| members.contains(*member) && sender.flush >= lsn);
        flushed.count() >= acks
    }

    /// What a session sees: everything that is committed and no longer waits.
    pub(crate) fn read(&self) -> Option<BTreeSet<u64>> {
        if !self.answers() || !self.is_primary() || !self.admits.load(Ordering::SeqCst) {
            return None;
        }
        let waiting = self.state.lock().unwrap().waiting.clone();
        let mut seen = self.volume.with(|content| {
            content.data().map(|data| {
                let mut flushed = data.clone();
                flushed.wal.truncate(data.flushed);
                flushed.ids()
            })
        })?;
        seen.retain(|id| !waiting.contains(id));
        Some(seen)
    }

    async fn keep_receiving(self: Arc<Self>) {
        let mut work = self.work.subscribe();
        while !self.is_stopped() {
            let (upstream, following) = {
                let state = self.state.lock().unwrap();
                (state.upstream.clone().filter(|_| state.in_recovery && state.answers), state.following)
            };
            let Some(upstream) = upstream else {
                let _ = timeout(Duration::from_secs(1), work.changed()).await;
                continue;
            };
            self.receive(&upstream, following).await;
            self.forget_receiver(following);
            sleep(RETRY).await;
        }
    }

    fn forget_receiver(&self, following: u64) {
        let mut state = self.state.lock().unwrap();
        if state.following == following {
            state.receiver = None;
        }
    }

    fn follows(&self, following: u64) -> bool {
        !self.is_stopped() && self.state.lock().unwrap().following == following
    }

    /// One replication session, until it breaks.
    async fn receive(self: &Arc<Self>, upstream: &str, following: u64) {
        let Some((source, local)) = self.world.server_of(upstream).zip(self.volume.local()) else { return };
        let (here, there) = (self.scope.node, source.scope.node);
        let (net, random) = (&self.world.net, &self.receiving);
        let connected = async {
            net.travel(random, here, there).await;
            net.travel(random, there, here).await;
        };
        if timeout(REPLICATION_TIMEOUT, connected).await.is_err() || !source.answers() || !self.follows(following) {
            return;
        }
        let Some(mut position) = self.begin_streaming(&source) else { return };
        let member = receiver_name(&local.member, local.term);
        let flushed = self.volume.with(|content| content.data().map(|data| data.flushed_lsn())).unwrap_or_default();
        let number = source.open_sender(&member, flushed);
        let session = Session { source: Arc::clone(&source), member, number };
        let mut work = source.work.subscribe();
        let pid = i32::try_from(self.world.next_number() % 30_000).unwrap();
        self.show_receiver(following, upstream, pid);
        loop {
            let _ = timeout(Duration::from_secs(1), work.changed()).await;
            let arrived = async {
                while !source.runs() && !source.is_stopped() {
                    sleep(Duration::from_millis(200)).await;
                }
                let sent = source.sent_after(position);
                net.travel(random, there, here).await;
                sent
            };
            let Ok(Some(sent)) = timeout(REPLICATION_TIMEOUT, arrived).await else { break };
            if !self.follows(following) {
                break;
            }
            while self.halted.load(Ordering::SeqCst) && !self.is_stopped() {
                sleep(Duration::from_millis(100)).await;
            }
            self.show_receiver(following, upstream, pid);
            if !sent.0.is_empty() {
                self.fsync(random).await;
                if !self.follows(following) {
                    break;
                }
                position += sent.0.len();
                self.take_in(sent);
            }
            let flushed = self.volume.with(|content| content.data().map(|data| data.flushed_lsn())).unwrap_or_default();
            if timeout(REPLICATION_TIMEOUT, net.travel(random, here, there)).await.is_err() {
                break;
            }
            source.acknowledge(&session.member, session.number, flushed);
            if source.is_stopped() {
                break;
            }
        }
    }

    /// Compares the branches as the protocol does: by timeline and position alone. The number of records that both have.
    fn begin_streaming(&self, source: &Arc<Self>) -> Option<usize> {
        let theirs = source.volume.with(|content| content.data().cloned())?;
        self.volume.with(|content| {
            let mine = content.data_mut()?;
            // What was received and not flushed is asked for again.
            mine.wal.truncate(mine.flushed);
            let position = mine.flushed_lsn();
            if is_diverged(&mine.history, position, &theirs.history) {
                return None;
            }
            let count = theirs.wal.partition_point(|record| record.end <= position);
            (theirs.lsn_at(count) == position && count <= theirs.flushed).then_some(count)
        })
    }

    fn sent_after(&self, position: usize) -> Option<Sent> {
        if self.is_stopped() {
            return None;
        }
        self.volume.with(|content| {
            let data = content.data()?;
            let to = data.flushed.min(position + 64);
            Some((data.wal.get(position..to.max(position))?.to_vec(), data.history.clone()))
        })
    }

    fn take_in(&self, (records, history): Sent) {
        self.volume.with(|content| {
            let Some(data) = content.data_mut() else { return };
            if records.last().is_some_and(|record| record.timeline > data.history.timeline.0) {
                data.history = history;
            }
            data.wal.extend(records);
            data.flushed = data.wal.len();
            data.replayed = data.flushed;
        });
    }

    fn show_receiver(&self, following: u64, upstream: &str, pid: i32) {
        let mut state = self.state.lock().unwrap();
        if state.following == following {
            state.receiver =
                Some(Receiver { pid, streaming: true, last_message: Instant::now(), upstream: upstream.to_owned() });
        }
    }

    fn open_sender(&self, member: &str, flush: Lsn) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.sessions += 1;
        let session = state.sessions;
        state.senders.insert(member.to_owned(), Sender { flush, session, last_reply: Instant::now() });
        drop(state);
        self.poke();
        session
    }

    fn acknowledge(&self, member: &str, session: u64, flush: Lsn) {
        let mut state = self.state.lock().unwrap();
        if let Some(sender) = state.senders.get_mut(member).filter(|sender| sender.session == session) {
            let moved = flush > sender.flush;
            sender.last_reply = Instant::now();
            sender.flush = sender.flush.max(flush);
            drop(state);
            if moved {
                self.poke();
            }
        }
    }

    fn close_sender(&self, member: &str, session: u64) {
        let mut state = self.state.lock().unwrap();
        if state.senders.get(member).is_some_and(|sender| sender.session == session) {
            state.senders.remove(member);
        }
    }
}

type Sent = (Vec<crate::data::Record>, pgherd_core::timeline::TimelineHistory);

/// `ANY n ("a", "b")`; none for an empty setting.
fn parse_names(names: &str) -> Option<(usize, BTreeSet<String>)> {
    let (count, list) = names.strip_prefix("ANY ")?.split_once(" (")?;
    let members = list.trim_end_matches(')').split(", ").map(|name| name.trim_matches('"').to_owned()).collect();
    Some((count.parse().unwrap(), members))
}
