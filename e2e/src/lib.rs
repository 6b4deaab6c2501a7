//! The end-to-end harness: a real Kubernetes, real kubectl and helm, a writer that knows what was acknowledged.
//!
//! Nothing here is mocked. A wait is a poll with a deadline, and its error says what was seen last.
#![forbid(unsafe_code)]

pub mod appends;
pub mod cluster;
pub mod containers;
pub mod control_plane;
pub mod kubectl;
pub mod ledger;
pub mod namespace;
pub mod nodes;
pub mod operators;
pub mod overlap;
pub mod partition;
pub mod postgres;
pub mod probes;
pub mod store;
pub mod store_faults;
pub mod toolbox;
pub mod wait;
pub mod writer;

/// Any failure of the harness; a test only prints it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What harness functions return.
pub type Result<T> = std::result::Result<T, Error>;
