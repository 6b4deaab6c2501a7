//! What an instance promises, to its primary and against it.

use serde::{Deserialize, Serialize};

use crate::{
    lsn::Lsn,
    register::{MemberId, Term},
    timeline::TimelineHistory,
};

/// `POST /v1/vouch`, from a holder that cannot reach the API server to each other instance: promise not to seal against
/// `term` for `for_ms`. Refused (409) by who has promised a later term or knows of another holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VouchRequest {
    /// The term that the asker leads.
    pub term: Term,
    /// The asker's pod.
    pub pod: String,
    /// Its UID.
    pub pod_uid: String,
    /// How long the promise is to last, in milliseconds from when it is given; never longer than a minute.
    pub for_ms: u64,
}

/// A promise not to take part in a failover against the holder of `term`; the answer to a [`VouchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vouch {
    /// The term whose holder is vouched for.
    pub term: Term,
    /// Who promises; none while it has no data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// How long it still lasts, in milliseconds.
    pub remaining_ms: u64,
}

/// `POST /v1/seal`: promise not to follow any term below `term`, then report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealRequest {
    /// The register's `sealTerm`.
    pub term: Term,
}

/// The answer to a seal, given only once the promise is on disk, the WAL receiver is gone and what was received is
/// replayed. It is what elections are decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealReport {
    /// Who promised.
    pub member: MemberId,
    /// Its pod.
    pub pod: String,
    /// The promised term.
    pub sealed_term: Term,
    /// The highest term that it has followed or led. Raised once its WAL is known to lie on that term's history, and on
    /// disk before any WAL of that term is: of two members whose branches part, an election believes the one that has
    /// followed the higher term. 0 for a fresh copy that has followed nobody yet.
    pub term: Term,
    /// Its timeline and ancestors.
    pub history: TimelineHistory,
    /// Received and flushed.
    pub received_lsn: Lsn,
    /// Replayed.
    pub replayed_lsn: Lsn,
}
