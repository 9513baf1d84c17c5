//! Starts threads where the system may refuse it: a limit on memory, or on processes of a container or a systemd unit.
//! What the standard library's own `spawn` makes of that is a panic.

use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use crate::error::{Error, Result};

/// What to do if the system starts no more threads or processes.
pub const LIMITS: &str = "raise the limit of this process: `ulimit -u` and `ulimit -v`, TasksMax and MemoryMax of its systemd unit, or the pids limit of its container";

/// Starts a thread.
///
/// # Errors
/// [`Error::Thread`] when the system doesn't start one; then `work` is dropped.
pub fn start<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new().spawn(work).map_err(|source| Error::Thread { source })
}

/// Starts a thread in the scope.
///
/// # Errors
/// The same.
pub fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    start_as(Builder::new(), scope, work)
}

fn start_as<'scope, T: Send + 'scope>(
    builder: Builder,
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    builder.spawn_scoped(scope, work).map_err(|source| Error::Thread { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_can_not_be_started_is_an_error() {
        assert_eq!(start(|| 7).unwrap().join().unwrap(), 7);
        std::thread::scope(|scope| {
            assert_eq!(start_in(scope, || 7).unwrap().join().unwrap(), 7);
            let error = start_as(Builder::new().stack_size(1 << 46), scope, || ()).unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains("TasksMax")), "{error}");
            assert!(std::error::Error::source(&error).is_some());
        });
    }
}
