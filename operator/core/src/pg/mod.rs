//! Text that PostgreSQL reads: configuration, host-based authentication and quoting. Renders and checks; writes nothing.

pub mod conf;
pub mod hba;
pub mod quote;
