//! Text that PostgreSQL reads: configuration, host-based authentication and quoting. Renders and checks; writes nothing. And the
//! checksums of its pages, and the size of its WAL.

pub mod conf;
pub mod floor;
pub mod hba;
pub mod page;
pub mod quote;
pub mod wal_size;
