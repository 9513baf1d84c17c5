//! A statement that may wait for minutes, but ends when a signal asks for it. A spread checkpoint takes as long as
//! checkpoint_completion_target of checkpoint_timeout, and systemd kills a service that needs more than 90 seconds to
//! stop.
//!
//! What could go wrong: the cancellation arrives when the statement is done, and hits the next one. So whoever was
//! asked to end runs no other statement.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, NoTls};

use crate::{steps, threads};

/// How often to look for a signal.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Runs `statement` over a connection without TLS, like the configured cluster's, and has the server cancel it once a
/// signal has come.
///
/// # Errors
/// The statement's.
pub(super) fn until_interrupted<T>(
    client: &mut Client,
    statement: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    let token = client.cancel_token();
    let (done, is_done) = channel::<()>();
    std::thread::scope(|scope| {
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(LOOK) {
                if steps::interrupted() {
                    // If the server can't be asked, the statement ends by itself.
                    let _ = token.cancel_query(NoTls);
                    return;
                }
            }
        };
        // Where the system starts no more threads, a signal is seen once the statement has ended.
        let _ = threads::start_in(scope, watch);
        let result = statement(client);
        drop(done);
        result
    })
}

/// Whether the statement ended because of that.
pub(super) fn was_interrupted(error: &postgres::Error) -> bool {
    steps::interrupted() && error.code() == Some(&SqlState::QUERY_CANCELED)
}
