//! The only generic pieces that talk to the API server or to agents.

pub mod agent_client;
pub mod apply;
pub mod events;
pub mod nodes;
pub mod owner;
pub mod register;
pub mod scope;
pub mod store;
