//! A statement that may wait for minutes, and ends where a signal asks for the end: a spread checkpoint takes as long as
//! checkpoint_completion_target of checkpoint_timeout, and systemd kills what goes on for longer than 90 seconds.
//!
//! What could go wrong: the cancellation comes when the statement is done, and hits the next one. So whoever was asked to
//! end runs no other statement.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, NoTls};

use crate::steps;

/// How often it is looked whether a signal has come.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `statement` over a connection without TLS, as the configured cluster's is, and has the server cancel it once a
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
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(LOOK) {
                if steps::interrupted() {
                    // Where it can't be asked, the statement ends by itself.
                    let _ = token.cancel_query(NoTls);
                    return;
                }
            }
        });
        let result = statement(client);
        drop(done);
        result
    })
}

/// Whether it ended for that.
pub(super) fn was_interrupted(error: &postgres::Error) -> bool {
    steps::interrupted() && error.code() == Some(&SqlState::QUERY_CANCELED)
}
