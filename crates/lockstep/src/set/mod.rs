//! Backup sets: the manifest, where it is kept, and what an unfinished set leaves behind.

pub mod at_work;
pub mod branches;
pub mod journal;
pub mod manifest;
pub mod names_within;
pub(crate) mod notes;
pub(crate) mod own_files;
pub mod removal;
pub mod state;
pub mod unfinished;
pub mod unread;
pub(crate) mod verify;
