//! Starts threads where the system may refuse it, as `strata::threads` does, with this program's errors.

use std::thread::{JoinHandle, Scope, ScopedJoinHandle};

use crate::error::Result;
use crate::repository::of_strata;

/// Starts a thread.
///
/// # Errors
/// When the system doesn't start one; then `work` is dropped.
pub(crate) fn start<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    strata::threads::start(work).map_err(of_strata)
}

/// Starts a thread in the scope.
///
/// # Errors
/// When the system doesn't start one.
pub(crate) fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    strata::threads::start_in(scope, work).map_err(of_strata)
}
