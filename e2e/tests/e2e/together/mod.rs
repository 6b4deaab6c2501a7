//! Tests that run beside each other, each in its namespace: they wait most of the time.

mod backup_restore;
mod bad_input;
mod encryption;
mod import;
mod incremental;
mod local_backup;
mod replica_from_backup;
mod restore_in_place;
mod retention;
mod scale;
mod verification;
