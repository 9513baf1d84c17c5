//! Starts threads where the system may refuse it: a limit on memory, or on processes of a container or a systemd unit.
//! What the standard library's own `spawn` makes of that is a panic.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::{Error, Result};

/// Starts a thread in the scope.
///
/// # Errors
/// When the system doesn't start one.
pub(crate) fn start<'scope, T: Send + 'scope>(
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
    builder.spawn_scoped(scope, work).map_err(|source| {
        Error::failed("the system starts no more threads").because(source).with_hint(
            "raise the limit of this process: `ulimit -u` and `ulimit -v`, TasksMax and MemoryMax of its systemd unit, or the pids limit of its container",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_can_not_be_started_is_an_error() {
        std::thread::scope(|scope| {
            assert_eq!(start(scope, || 7).unwrap().join().unwrap(), 7);
            let error = start_as(Builder::new().stack_size(1 << 46), scope, || ()).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.hint().is_some_and(|hint| hint.contains("TasksMax")), "{error}");
        });
    }
}
