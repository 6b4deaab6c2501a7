//! The failover protocol as a model: every order of steps within bounds is tried, with the real decisions of `pgherd_core`
//! over members that crash, WAL that arrives late or never, and operators that stop half way. No clock, no I/O.
//!
//! A primary here may stop, and never has to: it goes on as long as it likes, whatever its Lease, its peers' promises or its fencer
//! say. So everything that the failsafe may decide is among the orders that are tried; what fencing adds is tested elsewhere.
//!
//! Each run is made twice: with all rules, where nothing may be found, and without one of them, where a counterexample
//! must be found within the same bounds. See docs/adr/0002-failover-model.md.
#![allow(clippy::panic, reason = "a test fails by it; clippy knows only functions marked #[test] as tests")]

mod agent;
mod controls;
mod decisions;
mod deep;
mod operator;
mod protocol;
mod replication;
mod rules;
mod runs;
mod scripts;
mod state;
mod wal;
