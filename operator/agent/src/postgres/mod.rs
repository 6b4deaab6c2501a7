//! PostgreSQL on this machine: its binaries, its process, its files and what it says over the unix socket. Knows nothing
//! of the register and decides nothing about roles.

pub mod binaries;
pub mod config;
pub mod control;
pub mod log;
pub mod probe;
pub mod process;
pub mod roles;
pub mod sql;
pub mod stray;
pub mod upstream;
pub mod wal_dir;
mod wal_limits;
