//! Promotion by hand while no quorum can be had, or while the only one that may be chosen never becomes primary: what somebody
//! may ask for, and whether it is granted. It gives up the promise that nothing acknowledged is lost, therefore it names the
//! term that it was meant for: an old manifest that is applied again asks for nothing.

use crate::{
    instance::SealReport,
    register::{Register, Term},
};

/// `shop-2@7`: this pod, as long as the register is at this term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForceRequest {
    /// The pod.
    pub pod: String,
    /// The register's term.
    pub term: Term,
}

/// Why it is not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceError {
    /// It can't be understood.
    #[error("{0:?} is not of the form POD@TERM, such as shop-2@{1}")]
    Malformed(String, Term),
    /// It was meant for another term.
    #[error("it names term {asked}, but the present term is {present}")]
    Term {
        /// What was asked for.
        asked: Term,
        /// What the register says.
        present: Term,
    },
    /// The election is not blocked.
    #[error("no failover is blocked: there is nothing to force")]
    NotBlocked,
    /// It did not seal.
    #[error("{pod} has not sealed in this round; those that have: {sealed}")]
    NotSealed {
        /// What was asked for.
        pod: String,
        /// Pods that have sealed, separated by commas.
        sealed: String,
    },
}

/// Reads `POD@TERM`. `present` is the register's term, for the message.
///
/// # Errors
/// [`ForceError::Malformed`].
pub fn parse_force(text: &str, present: Term) -> Result<ForceRequest, ForceError> {
    let parsed = text.trim().rsplit_once('@').and_then(|(pod, term)| {
        let digits = !term.is_empty() && term.bytes().all(|byte| byte.is_ascii_digit());
        Some(ForceRequest { pod: pod.to_owned(), term: Term(term.parse().ok().filter(|_| digits)?) })
    });
    parsed.filter(|request| !request.pod.is_empty()).ok_or_else(|| ForceError::Malformed(text.to_owned(), present))
}

/// The holder was chosen again, though an earlier claim of its had come to nothing, and has not become primary since: nobody
/// else may be chosen, and without help it may go on so for ever.
#[must_use]
pub fn is_chosen_in_vain(register: &Register) -> bool {
    register.timeline.is_none() && register.failover.as_ref().is_some_and(|note| note.again)
}

/// Whether the request may be granted now. `reports` are those of the election that was found blocked, or chose in vain again;
/// None when there is none.
///
/// # Errors
/// [`ForceError`] says why not.
pub fn decide_force<'a>(
    register: &Register,
    reports: Option<&'a [SealReport]>,
    request: &ForceRequest,
) -> Result<&'a SealReport, ForceError> {
    if request.term != register.term {
        return Err(ForceError::Term { asked: request.term, present: register.term });
    }
    let reports = reports.filter(|_| register.is_sealing()).ok_or(ForceError::NotBlocked)?;
    let sealed = || reports.iter().filter(|report| report.sealed_term == register.seal_term);
    sealed().find(|report| report.pod == request.pod).ok_or_else(|| {
        let pods: Vec<&str> = sealed().map(|report| report.pod.as_str()).collect();
        let sealed = if pods.is_empty() { "none".to_owned() } else { pods.join(", ") };
        ForceError::NotSealed { pod: request.pod.clone(), sealed }
    })
}
