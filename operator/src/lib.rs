//! The binary `pgherd`: the operator, the Jobs and the processes inside an instance's pod. This library exists so that
//! integration tests reach its modules; nobody else should depend on it.
#![forbid(unsafe_code)]

pub mod cli;
pub mod context;
pub mod controllers;
pub mod jobs;
pub mod kubernetes;
pub mod leader;
pub mod operator;
pub mod server;
pub mod settings;
pub mod telemetry;
