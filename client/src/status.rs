//! The operator's question: how are the servers?

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use protocol::messages::{Status, ToClient, ToServer, max_frame_bytes};
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
    let asked: Vec<_> =
        ServerId::all(cluster.n()).map(|server| ask(cluster, keys, server, wait)).collect();
    let mut answers = Vec::with_capacity(asked.len());
    for question in asked {
        answers.push(match question {
            // The task is neither aborted nor does it panic.
            Some(task) => task.await.unwrap_or(Err(StatusError::Ended)),
            None => Err(StatusError::NoKey),
        });
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
    let task = ask(cluster, keys, server, wait).ok_or(StatusError::NoKey)?;
    task.await.unwrap_or(Err(StatusError::Ended))
}

fn ask(
    cluster: &Cluster,
    keys: &OperatorKeys,
    server: ServerId,
    wait: Duration,
) -> Option<JoinHandle<Result<Status, StatusError>>> {
    let connection = Connection::new(Peer {
        address: cluster.servers.get(server.index())?.payload,
        parties: (Party::Operator, Party::Guest(server)),
        key: keys.replies.get(server.index())?.mac_key(),
        cluster: cluster.id(),
        max_frame_bytes: max_frame_bytes(cluster.limits.max_payload_bytes),
    });
    Some(tokio::spawn(async move {
        timeout(wait, answer(connection)).await.unwrap_or(Err(StatusError::TimedOut))
    }))
}

async fn answer(mut connection: Connection) -> Result<Status, StatusError> {
    let mut scratch = vec![0; 1 << 14];
    poll_fn(|cx| {
        loop {
            let next = connection.poll_next(cx, Instant::now(), &mut scratch);
            connection.flush(cx);
            match next {
                Poll::Ready(Incoming::Open) => {
                    connection.send(&ToServer::Status);
                    connection.flush(cx);
                }
                Poll::Ready(Incoming::Message(ToClient::Status(status))) => {
                    return Poll::Ready(Ok(*status));
                }
                Poll::Ready(Incoming::Message(_)) => {}
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
