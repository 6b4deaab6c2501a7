//! Failover: when the holder is suspected, and which single step comes next. Level-triggered: everything follows from
//! the register and from what answers now, so that any replica of the operator can go on where another one stopped.

pub mod observation;
pub mod register_change;
pub mod step;
pub mod suspicion;

pub use observation::{Observation, PodView, Probe};
pub use register_change::{
    register_bootstrapped, register_claimed, register_observed, register_regranted, register_sealed,
};
pub use step::{FailoverInput, Step, decide_step};
pub use suspicion::{Suspicion, SuspicionReason, decide_suspicion};
