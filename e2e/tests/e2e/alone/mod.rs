//! Tests that have the cluster to themselves: they cut nodes off, watch how long nobody can write, or count what the whole API
//! server or store is asked for.

mod create;
mod failover_off;
mod failover_required;
mod killed_backup;
mod store_outage;
