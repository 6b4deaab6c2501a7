//! The promise not to seal against the holder's term, as its peers give it while the API server is away: who may be
//! promised to, for how long it binds, and that neither a restart nor a new copy of the data forgets it.
//!
//! It decides nothing about roles: it only holds sealing up. A promise that has begun to bind is never taken back, also
//! when the answer fails.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use pgherd_core::{
    failsafe::Promise,
    instance::{Vouch, VouchRequest},
    register::{MemberId, Register, Term},
};
use serde::{Deserialize, Serialize};

use crate::{
    agent::Agent,
    clock::Boottime,
    file_work,
    layout::Layout,
    local_state::{LocalState, LocalStateError, write_durably},
    postgres::config::Role,
};

/// No promise lasts longer, in milliseconds.
pub const MAX_PROMISE_MS: u64 = 60_000;

/// Why nothing is promised.
#[derive(Debug, thiserror::Error)]
pub enum VouchError {
    /// The request makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// It knows better.
    #[error("{0}")]
    Refused(String),
    /// The promise could not be brought to disk.
    #[error("failed to write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the data directory knows of itself could not be read.
    #[error("the data directory's own state can't be read")]
    Unreadable,
}

/// Sealing is held up. Its text has no time: it goes into the status, which is written each time that it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this instance vouches for the primary of term {term}")]
pub struct Vouching {
    /// The term whose holder is vouched for.
    pub term: Term,
    /// For how long, in milliseconds.
    pub remaining_ms: u64,
}

/// What is on disk while a promise may be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    term: Term,
    for_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The term that is vouched for, and until when.
    promise: Option<(Term, Boottime)>,
    /// What the file says.
    mark: Option<Mark>,
    /// The highest term that was sealed, or that sealing was asked for: no lower one is vouched for any more.
    seal_asked: Term,
}

/// The promises of one instance. They belong to the volume, not to the data directory on it: a rewind or a new copy must
/// not forget them.
#[derive(Debug)]
pub struct VouchBook {
    path: PathBuf,
    state: Mutex<State>,
    /// Held while the file is changed. Never waited for while `state` is held.
    writing: tokio::sync::Mutex<()>,
}

impl VouchBook {
    /// Opens the book of a volume. A mark that an earlier agent left binds for its whole time from now on: when that
    /// agent promised is not known. A damaged mark binds for the longest time, against every term.
    #[must_use]
    pub fn open(volume: &Path) -> Self {
        let path = volume.join("pgherd.vouch");
        let mark = match fs::read(&path) {
            Ok(text) => {
                let damaged = Mark { term: Term(0), for_ms: MAX_PROMISE_MS };
                Some(serde_json::from_slice::<Mark>(&text).unwrap_or(damaged))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(Mark { term: Term(0), for_ms: MAX_PROMISE_MS }),
        };
        let promise = mark.map(|mark| (mark.term, Boottime::now().plus_millis(mark.for_ms.min(MAX_PROMISE_MS))));
        let state = State { promise, mark, seal_asked: Term(0) };
        Self { path, state: Mutex::new(state), writing: tokio::sync::Mutex::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The promise in force. When it has run out, its mark is removed: a restart need not wait for it.
    #[must_use]
    pub fn current(&self) -> Option<Vouching> {
        let now = Boottime::now();
        let mut state = self.lock();
        let (term, until) = state.promise?;
        if now < until {
            return Some(Vouching { term, remaining_ms: remaining_ms(now, until) });
        }
        if let Ok(_writing) = self.writing.try_lock() {
            state.promise = None;
            // A mark that comes back after a crash only holds up a sealing for its time.
            if state.mark.take().is_some() {
                let _ = fs::remove_file(&self.path);
            }
        }
        None
    }

    /// The promise in force as the status shows it.
    #[must_use]
    pub fn show(&self, member: Option<&MemberId>) -> Option<Vouch> {
        let Vouching { term, remaining_ms } = self.current()?;
        Some(Vouch { term, member: member.cloned(), remaining_ms })
    }

    /// To be asked before anything is sealed for `term`: from here on no lower term is vouched for.
    ///
    /// # Errors
    /// [`Vouching`] while a promise for a lower term is in force. It is not prolonged any more.
    pub fn begin_seal(&self, term: Term) -> Result<(), Vouching> {
        let (now, mut state) = (Boottime::now(), self.lock());
        state.seal_asked = state.seal_asked.max(term);
        match state.promise.filter(|(vouched, until)| *vouched < term && now < *until) {
            Some((term, until)) => Err(Vouching { term, remaining_ms: remaining_ms(now, until) }),
            None => Ok(()),
        }
    }

    /// The holder of `term` said by itself that its PostgreSQL is down: nothing is left to vouch for.
    pub fn lift(&self, term: Term) {
        let mut state = self.lock();
        if let Some((vouched, _)) = state.promise.filter(|(vouched, _)| *vouched == term) {
            state.promise = Some((vouched, Boottime(0)));
        }
    }

    /// Gives a promise; it is on disk at return, and lasts for `for_ms` from then on.
    ///
    /// # Errors
    /// [`VouchError`].
    pub async fn promise(&self, term: Term, for_ms: u64) -> Result<Vouching, VouchError> {
        let _writing = self.writing.lock().await;
        let mark = {
            let mut state = self.lock();
            let now = Boottime::now();
            if state.seal_asked > term {
                return Err(VouchError::Refused(format!("term {} was sealed or is about to be", state.seal_asked)));
            }
            if let Some((other, _)) = state.promise.filter(|(other, until)| *other > term && now < *until) {
                return Err(VouchError::Refused(format!("it vouches for the primary of term {other}")));
            }
            // It binds before it is on disk: whoever asks for a seal from here on is refused.
            let until = state.promise.map_or(Boottime(0), |(_, until)| until).max(now.plus_millis(for_ms));
            state.promise = Some((term, until));
            let covered = state.mark.is_some_and(|mark| mark.term == term && mark.for_ms >= for_ms);
            (!covered).then_some(Mark { term, for_ms })
        };
        if let Some(mark) = mark {
            self.write(mark).await?;
            self.lock().mark = Some(mark);
        }
        let (now, mut state) = (Boottime::now(), self.lock());
        let until = state.promise.map_or(Boottime(0), |(_, until)| until).max(now.plus_millis(for_ms));
        state.promise = Some((term, until));
        Ok(Vouching { term, remaining_ms: for_ms })
    }

    async fn write(&self, mark: Mark) -> Result<(), VouchError> {
        let path = self.path.clone();
        let failed = |source| VouchError::Write { path: self.path.clone(), source };
        let text = serde_json::to_vec(&mark).map_err(|error| failed(error.into()))?;
        let written = file_work::run(move || write_durably(&path, &text)).await;
        written.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }
}

fn remaining_ms(now: Boottime, until: Boottime) -> u64 {
    u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Answers `POST /v1/vouch`.
///
/// # Errors
/// [`VouchError`]: refused when this instance is primary, has promised or followed a later term, or knows from the
/// register of another holder or that a failover has begun.
pub async fn vouch(agent: &Agent, request: &VouchRequest) -> Result<Promise, VouchError> {
    if request.pod == agent.identity.pod {
        return Err(VouchError::Malformed("an instance does not vouch for itself"));
    }
    if request.term == Term(0) || request.for_ms == 0 || request.for_ms > MAX_PROMISE_MS {
        return Err(VouchError::Malformed("the term must not be 0, and the time at most a minute"));
    }
    if agent.led_term().is_some() || matches!(agent.role(), Some(Role::Primary { .. })) {
        return Err(VouchError::Refused("this instance is primary itself".to_owned()));
    }
    if let Some(seen) = agent.register.borrow().as_ref()
        && let Some(why) = why_outdated(&seen.lease.register, request)
    {
        return Err(VouchError::Refused(why));
    }
    let layout = agent.layout.clone();
    let local = file_work::run(move || read_own(&layout)).await;
    let local = local.ok().and_then(Result::ok).ok_or(VouchError::Unreadable)?;
    let known = local.as_ref().map_or(Term(0), |local| local.sealed_term.max(local.term));
    if known > request.term {
        return Err(VouchError::Refused(format!("this member is part of term {known} or has sealed for it")));
    }
    let given = agent.vouches.promise(request.term, request.for_ms).await?;
    tracing::info!(term = %given.term, pod = request.pod, for_ms = given.remaining_ms, "vouching for the primary");
    let member = local.map(|local| local.member);
    let vouch = Vouch { term: given.term, member, remaining_ms: given.remaining_ms };
    Ok(Promise { pod: agent.identity.pod.clone(), vouch })
}

/// From disk: right after a start the status does not know yet what was promised. While PGDATA is being filled, its file
/// may be a copy of another member's.
fn read_own(layout: &Layout) -> Result<Option<LocalState>, LocalStateError> {
    let building = || layout.building_marker().exists();
    if building() {
        return Ok(None);
    }
    let local = LocalState::read(&layout.pgdata)?;
    Ok(local.filter(|_| !building()))
}

/// What the register says against the asker; None where it says nothing, or is older than the asker's term.
fn why_outdated(register: &Register, request: &VouchRequest) -> Option<String> {
    if register.term > request.term {
        return Some(format!("the register is at term {}", register.term));
    }
    if register.seal_term > request.term {
        return Some(format!("a failover to term {} has begun", register.seal_term));
    }
    if register.term < request.term {
        return None;
    }
    let holder = register.holder.as_ref();
    let same = holder.is_some_and(|holder| holder.pod == request.pod && holder.pod_uid == request.pod_uid);
    if !same {
        let pod = holder.map_or("nobody", |holder| holder.pod.as_str());
        return Some(format!("the register names {pod} as primary of term {}", register.term));
    }
    register.released.then(|| "the primary role was given back".to_owned())
}

#[cfg(test)]
mod tests {
    use pgherd_core::register::Holder;

    use super::*;

    #[tokio::test]
    async fn a_promise_holds_a_later_term_up_until_it_lapses_and_no_longer() {
        let volume = tempfile::tempdir().unwrap();
        let book = VouchBook::open(volume.path());
        assert_eq!(book.current(), None);
        book.promise(Term(3), 300).await.unwrap();
        assert_eq!(book.begin_seal(Term(3)), Ok(()), "sealing for the very term harms nobody");
        let vouching = book.begin_seal(Term(4)).unwrap_err();
        assert!(vouching.term == Term(3) && vouching.remaining_ms <= 300);
        assert_eq!(vouching.to_string(), "this instance vouches for the primary of term 3");
        while book.current().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(book.begin_seal(Term(4)), Ok(()));
        assert!(!volume.path().join("pgherd.vouch").exists(), "a lapsed promise leaves no mark");
    }

    #[tokio::test]
    async fn a_seal_that_was_asked_for_ends_the_vouching_also_when_it_was_refused() {
        let volume = tempfile::tempdir().unwrap();
        let book = VouchBook::open(volume.path());
        book.promise(Term(3), 20_000).await.unwrap();
        assert!(book.begin_seal(Term(4)).is_err());
        assert!(matches!(book.promise(Term(3), 20_000).await, Err(VouchError::Refused(_))));
        book.promise(Term(4), 100).await.unwrap();
    }

    #[tokio::test]
    async fn a_restart_binds_for_the_whole_time_again() {
        let volume = tempfile::tempdir().unwrap();
        VouchBook::open(volume.path()).promise(Term(3), 20_000).await.unwrap();
        let again = VouchBook::open(volume.path());
        let vouching = again.begin_seal(Term(4)).unwrap_err();
        assert!(vouching.term == Term(3) && vouching.remaining_ms > 15_000, "{vouching:?}");
        fs::write(volume.path().join("pgherd.vouch"), "{").unwrap();
        let damaged = VouchBook::open(volume.path()).begin_seal(Term(4)).unwrap_err();
        assert!(damaged.remaining_ms > 50_000, "{damaged:?}");
    }

    #[tokio::test]
    async fn a_shorter_promise_does_not_cut_a_longer_one_short() {
        let volume = tempfile::tempdir().unwrap();
        let book = VouchBook::open(volume.path());
        book.promise(Term(3), 20_000).await.unwrap();
        book.promise(Term(3), 1).await.unwrap();
        assert!(book.current().unwrap().remaining_ms > 10_000);
    }

    #[test]
    fn whoever_knows_of_another_holder_or_of_a_failover_refuses() {
        let request = VouchRequest { term: Term(4), pod: "c-0".into(), pod_uid: "u".into(), for_ms: 1 };
        let holder =
            Holder { pod: "c-0".into(), pod_uid: "u".into(), boot_nonce: String::new(), address: None, member: None };
        let register =
            Register { term: Term(4), seal_term: Term(4), holder: Some(holder.clone()), ..Register::default() };
        assert_eq!(why_outdated(&register, &request), None);
        let older = Register { term: Term(3), seal_term: Term(4), holder: None, ..Register::default() };
        assert_eq!(why_outdated(&older, &request), None, "it has not heard of the asker's term yet");
        let twin = Holder { pod_uid: "other".into(), ..holder };
        for refused in [
            Register { term: Term(5), seal_term: Term(5), ..register.clone() },
            Register { seal_term: Term(5), ..register.clone() },
            Register { holder: Some(twin), ..register.clone() },
            Register { released: true, ..register.clone() },
        ] {
            assert!(why_outdated(&refused, &request).is_some(), "{refused:?}");
        }
    }
}
