//! Failover: when the holder is suspected, and which single step comes next. Level-triggered: everything follows from
//! the register and from what answers now, so that any replica of the operator can go on where another one stopped.

pub mod force;
pub mod handover;
pub mod observation;
pub mod rebuild;
pub mod register_change;
pub mod restore;
pub mod step;
pub mod suspicion;

pub use force::{ForceError, ForceRequest, decide_force, is_chosen_in_vain, parse_force};
pub use handover::{HandoverCause, HandoverInput, HandoverVerdict, decide_handover};
pub use observation::{MAX_GAP_MS, Observation, PodView, Probe};
pub use rebuild::{RebuildError, decide_rebuild};
pub use register_change::{
    register_bootstrapped, register_claimed, register_forced, register_handed_over, register_handover_withdrawn,
    register_observed, register_regranted, register_restore_ordered, register_restoring, register_sealed,
};
pub use restore::{RestoreInput, RestoreRequest, RestoreStep, decide_restore};
pub use step::{FailoverInput, Step, decide_step};
pub use suspicion::{Suspicion, SuspicionReason, decide_suspicion};
