//! Everything that talks to a PostgreSQL server or reads its data directory.

pub mod classify;
pub mod conf;
pub mod connection;
pub mod conninfo;
pub mod copies;
pub mod file_settings;
pub mod hba;
pub mod identity;
mod includes;
pub mod instance;
pub mod invalid_pages;
pub mod links;
pub mod recovery;
pub mod row;
pub mod running;
pub mod server;
pub mod session;
pub mod settled;
pub mod target;
pub mod text;
pub mod tls;
pub mod users;
mod waiting;
pub mod wal;
pub mod wal_run;
