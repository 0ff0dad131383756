//! The operator's questions: how are the servers, and what happened when?

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use protocol::messages::{Status, ToClient, ToServer, max_frame_bytes};
use protocol::trace::Points;
use shared_registers::channel::Party;
use shared_registers::cluster::{Cluster, OperatorKeys};
use shared_registers::ids::ServerId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::connection::{Connection, Incoming, Peer};
use crate::error::ServerAccount;

/// Why a server's status is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// The operator's key file has no key for it.
    #[error("keys/operator.key has no key for this server")]
    NoKey,
    /// Its address does not answer; what the operating system says.
    #[error("unreachable ({0})")]
    Unreachable(String),
    /// It does not hold the operator's key.
    #[error("its MAC does not verify (the key in keys/operator.key is not the one that it holds)")]
    WrongKey,
    /// The connection ended before an answer.
    #[error("the connection ended without an answer")]
    Ended,
    /// No answer came in time.
    #[error("no answer in time")]
    TimedOut,
}

/// Asks every server at the same time for its status; waits at most `wait`. One answer per server,
/// by id; each is that server's own word.
pub async fn query_status(
    cluster: &Cluster,
    keys: &OperatorKeys,
    wait: Duration,
) -> Vec<Result<Status, StatusError>> {
    let ask = |server| ask(cluster, keys, server, wait, ToServer::Status, status);
    let asked: Vec<_> = ServerId::all(cluster.n()).map(ask).collect();
    let mut answers = Vec::with_capacity(asked.len());
    for question in asked {
        answers.push(await_answer(question).await);
    }
    answers
}

/// Asks one server, as [`query_status`] asks all.
///
/// # Errors
///
/// See [`StatusError`].
pub async fn query_server(
    cluster: &Cluster,
    keys: &OperatorKeys,
    server: ServerId,
    wait: Duration,
) -> Result<Status, StatusError> {
    await_answer(ask(cluster, keys, server, wait, ToServer::Status, status)).await
}

/// Asks one server for the points in time that it noted from number `from` on: see [`Points`]. From
/// then on, and for 10 seconds after it was asked last, it notes more. What it says is its own word.
///
/// # Errors
///
/// See [`StatusError`].
pub async fn query_trace(
    cluster: &Cluster,
    keys: &OperatorKeys,
    server: ServerId,
    from: u64,
    wait: Duration,
) -> Result<Points, StatusError> {
    let points = |message| match message {
        ToClient::Trace(points) => Some(points),
        _ => None,
    };
    await_answer(ask(cluster, keys, server, wait, ToServer::Trace { from }, points)).await
}

fn status(message: ToClient) -> Option<Status> {
    match message {
        ToClient::Status(status) => Some(*status),
        _ => None,
    }
}

type Asked<T> = JoinHandle<Result<T, StatusError>>;

async fn await_answer<T>(question: Option<Asked<T>>) -> Result<T, StatusError> {
    match question {
        // The task is neither aborted nor does it panic.
        Some(task) => task.await.unwrap_or(Err(StatusError::Ended)),
        None => Err(StatusError::NoKey),
    }
}

/// Asks a server on a connection of its own; `is_answer` knows the answer.
fn ask<T: Send + 'static>(
    cluster: &Cluster,
    keys: &OperatorKeys,
    server: ServerId,
    wait: Duration,
    question: ToServer,
    is_answer: fn(ToClient) -> Option<T>,
) -> Option<Asked<T>> {
    let connection = Connection::new(Peer {
        address: cluster.servers.get(server.index())?.payload,
        parties: (Party::Operator, Party::Guest(server)),
        key: keys.replies.get(server.index())?.mac_key(),
        cluster: cluster.id(),
        max_frame_bytes: max_frame_bytes(cluster.limits.max_payload_bytes),
    });
    Some(tokio::spawn(async move {
        let answer = answer(connection, question, is_answer);
        timeout(wait, answer).await.unwrap_or(Err(StatusError::TimedOut))
    }))
}

async fn answer<T>(
    mut connection: Connection,
    question: ToServer,
    is_answer: fn(ToClient) -> Option<T>,
) -> Result<T, StatusError> {
    let mut scratch = vec![0; 1 << 14];
    poll_fn(|cx| {
        loop {
            let next = connection.poll_next(cx, Instant::now(), &mut scratch);
            connection.flush(cx);
            match next {
                Poll::Ready(Incoming::Open) => {
                    connection.send(&question);
                    connection.flush(cx);
                }
                Poll::Ready(Incoming::Message(message)) => {
                    if let Some(answer) = is_answer(message) {
                        return Poll::Ready(Ok(answer));
                    }
                }
                Poll::Ready(Incoming::Lost) => return Poll::Ready(Err(why(connection.problem()))),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

fn why(problem: &ServerAccount) -> StatusError {
    match problem {
        ServerAccount::Unreachable(why) => StatusError::Unreachable(why.clone()),
        ServerAccount::WrongKey => StatusError::WrongKey,
        _ => StatusError::Ended,
    }
}
