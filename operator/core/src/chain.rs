//! Chains of backups: a full one and the incremental ones on top of it. Which kind the next backup is, and what a restore
//! needs. Decides by records alone; reads no store and asks no server.

use crate::{backup::BackupRecord, timeline::TimelineId};

/// The first major version of PostgreSQL with incremental backups.
pub const FIRST_MAJOR: u32 = 17;
/// Backups of a chain at most, where nothing else is said: a full one and six incremental ones.
pub const DEFAULT_MAX_CHAIN: u32 = 7;

/// Why the backups that one needs cannot be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is no such backup.
    #[error("there is no backup {0}")]
    Unknown(String),
    /// A parent is not there.
    #[error("the backup {child} needs the backup {parent}, which is missing")]
    Missing {
        /// Who needs it.
        child: String,
        /// What is missing.
        parent: String,
    },
    /// What is there under the parent's id is not what the child was made from, or cannot be combined with it.
    #[error("the backup {child} does not fit its parent {parent}: {problem}")]
    Differs {
        /// The child.
        child: String,
        /// What its record names.
        parent: String,
        /// What differs.
        problem: String,
    },
}

/// All that a restore of `id` needs: the full backup first, `id` last. Proves that each fits the one before it.
///
/// # Errors
/// [`ChainError`] names the first member that is missing or does not fit.
pub fn resolve_chain<'a>(backups: &'a [BackupRecord], id: &str) -> Result<Vec<&'a BackupRecord>, ChainError> {
    let find = |id: &str| backups.iter().find(|backup| backup.id == id);
    let mut chain = vec![find(id).ok_or_else(|| ChainError::Unknown(id.to_owned()))?];
    while let Some((child, named)) = chain.last().and_then(|child| Some((*child, child.parent.as_ref()?))) {
        let missing = || ChainError::Missing { child: child.id.clone(), parent: named.id.clone() };
        let parent = find(&named.id).ok_or_else(missing)?;
        validate_link(child, parent)?;
        chain.push(parent);
    }
    chain.reverse();
    Ok(chain)
}

/// Checks that `parent` is what `child` was made from. Each step goes back in WAL, so that no chain is endless.
///
/// # Errors
/// [`ChainError::Differs`].
pub fn validate_link(child: &BackupRecord, parent: &BackupRecord) -> Result<(), ChainError> {
    let problem = if child.parent.as_ref().is_none_or(|named| named.id != parent.id) {
        "it is not the one that its record names"
    } else if child.parent.as_ref().is_some_and(|named| named.manifest_sha256 != parent.manifest_sha256) {
        "it has another manifest"
    } else if child.system_id != parent.system_id {
        "it is of another database system"
    } else if child.server_version / 10_000 != parent.server_version / 10_000 {
        "it is of another major version"
    } else if child.timeline != parent.timeline {
        "it is of another timeline"
    } else if child.start_lsn <= parent.start_lsn {
        "it does not begin before it"
    } else {
        return Ok(());
    };
    Err(ChainError::Differs { child: child.id.clone(), parent: parent.id.clone(), problem: problem.to_owned() })
}

/// Which backup is to be the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// The newest one.
    #[default]
    Newest,
    /// The one of this id.
    Id(String),
}

/// What the kind of the next backup depends on.
#[derive(Clone, Debug)]
pub struct KindQuestion<'a> {
    /// The backups in the store.
    pub backups: &'a [BackupRecord],
    /// The parent that is asked for.
    pub parent: &'a ParentChoice,
    /// Ids of backups that were found unusable.
    pub damaged: &'a [String],
    /// The source's system identifier.
    pub system_id: &'a str,
    /// The source's `server_version_num`.
    pub server_version: u32,
    /// The source's timeline.
    pub timeline: TimelineId,
    /// Backups of a chain at most, with the full one.
    pub max_chain: u32,
    /// An identity is configured: an encrypted parent's manifest can be read.
    pub has_identity: bool,
}

/// The kind of the next backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindDecision<'a> {
    /// A full one, for this reason.
    Full(String),
    /// One with the changes since `parent`.
    Incremental {
        /// The parent.
        parent: &'a BackupRecord,
        /// Backups of the chain with the new one.
        length: u32,
    },
}

/// Decides whether the next backup can be an incremental one. When in doubt it is a full one.
#[must_use]
pub fn decide_backup_kind<'a>(question: &KindQuestion<'a>) -> KindDecision<'a> {
    match find_parent(question) {
        Ok((parent, length)) => KindDecision::Incremental { parent, length },
        Err(reason) => KindDecision::Full(reason),
    }
}

fn find_parent<'a>(question: &KindQuestion<'a>) -> Result<(&'a BackupRecord, u32), String> {
    let major = question.server_version / 10_000;
    if major < FIRST_MAJOR {
        return Err(format!("PostgreSQL {major} has no incremental backups, {FIRST_MAJOR} is the first"));
    }
    let parent = match question.parent {
        ParentChoice::Newest => question.backups.iter().max_by_key(|backup| backup.order()),
        ParentChoice::Id(id) => question.backups.iter().find(|backup| backup.id == *id),
    };
    let parent = parent.ok_or_else(|| match question.parent {
        ParentChoice::Newest => "there is no earlier backup".to_owned(),
        ParentChoice::Id(id) => format!("there is no backup {id}"),
    })?;
    let id = &parent.id;
    if parent.system_id != question.system_id {
        return Err(format!("the backup {id} is of another database system"));
    }
    if parent.server_version / 10_000 != major {
        return Err(format!(
            "the backup {id} is of PostgreSQL {}, the source of {major}",
            parent.server_version / 10_000
        ));
    }
    if parent.timeline != question.timeline {
        return Err(format!(
            "the backup {id} is of timeline {}, the source of {}",
            parent.timeline.0, question.timeline.0
        ));
    }
    // pg_combinebackup would have to be told where each member's tablespaces lie.
    if parent.archives.iter().any(|archive| archive.name != "base") {
        return Err(format!("the backup {id} has tablespaces"));
    }
    let chain = resolve_chain(question.backups, id).map_err(|error| error.to_string())?;
    if let Some(damaged) = chain.iter().find(|member| question.damaged.contains(&member.id)) {
        return Err(format!("the backup {} was found unusable", damaged.id));
    }
    let length = u32::try_from(chain.len()).unwrap_or(u32::MAX).saturating_add(1);
    if length > question.max_chain {
        return Err(format!("the chain has {} backups, which is its limit", length - 1));
    }
    if parent.encryption.is_some() && !question.has_identity {
        return Err(format!("the backup {id} is encrypted, and no identity is configured that opens its manifest"));
    }
    Ok((parent, length))
}
