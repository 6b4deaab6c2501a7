//! Agents with the real PostgreSQL of this machine: one file per behaviour, in one program, so that it is linked once and tests that
//! wait run beside each other.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test")]

mod archive_ahead;
mod cancelled_waits;
mod catalog;
mod divergence;
mod failsafe;
mod fencing;
mod gate;
mod handover;
mod imports;
mod local_backup;
mod lost_wal;
mod obstacles;
mod pair;
mod parameters;
mod prepared;
mod restores;
mod rewind_wal;
mod store_outage;
mod support;
mod takeover_times;
mod timelines;
mod unarchived;
mod unlogged;
