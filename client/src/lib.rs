//! The DifATo client library: have messages put in order, and follow the order.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = client::ClientConfig::load("cluster".as_ref(), 0)?;
//! let client = client::Client::connect(config);
//! let reply = client.invoke(b"hello".to_vec()).await?;
//! println!("order {}: {:?}", reply.order, reply.bytes);
//!
//! // Several in flight: they are ordered as they were submitted.
//! let first = client.submit(b"one".to_vec()).await?;
//! let second = client.submit(b"two".to_vec()).await?;
//! assert!(first.await?.order < second.await?.order);
//!
//! let mut messages = client.subscribe(reply.order);
//! println!("{:?}", messages.next().await?.payload);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! One background task owns the connections to all servers and drives the two state machines of
//! the `protocol` crate, the client session and the listener; a request wakes it once to be sent
//! and once per batch of answers. Nothing that fewer than `f + 1` servers say is believed (P5).
//!
//! | module | one job |
//! |---|---|
//! | `config` | the cluster, the keys, how long to wait |
//! | `error` | what went wrong, and which server did what |
//! | `connection` | one server's connection |
//! | `driver` | the background task |
//! | `subscription` | following the order |
//! | `status` | the operator's questions |

#![forbid(unsafe_code)]

mod config;
mod connection;
mod driver;
mod error;
mod limits;
mod status;
mod subscription;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use protocol::client_session::MAX_IN_FLIGHT;
use shared_registers::ids::{OrderId, OrderNumber};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use driver::{Command, Driver};

pub use config::{ClientConfig, Witness};
pub use error::{ClientError, NoAnswer, ServerAccount};
pub use status::{StatusError, query_server, query_status, query_trace};
pub use subscription::{Message, Subscription};

/// Longer deadlines are this long.
const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What became of a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the one order.
    pub order: OrderNumber,
    /// As which of the client's orders it was delivered.
    pub id: OrderId,
}

/// What an invocation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The message's place in the one order.
    pub order: OrderNumber,
    /// As which of the client's orders it was delivered.
    pub id: OrderId,
    /// What the application replied.
    pub bytes: Vec<u8>,
}

/// A client of a cluster. Several requests may be in flight at a time, from one task or many.
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
    /// Whose turn it is to submit: without it, a request could overtake one that waits for room.
    turn: Mutex<()>,
    room: Arc<Semaphore>,
    /// Bytes of payload that may still be under way.
    bytes: Arc<Semaphore>,
    config: Arc<ClientConfig>,
    subscriptions: AtomicU64,
}

impl Client {
    /// Starts to connect to every server, and goes on for ever: requests wait for connections, up
    /// to their deadline. The client's session number is the system clock in microseconds.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn connect(mut config: ClientConfig) -> Client {
        config.max_in_flight = config.max_in_flight.clamp(1, MAX_IN_FLIGHT);
        let config = Arc::new(config);
        let (commands, queue) = mpsc::unbounded_channel();
        let task = tokio::spawn(Driver::new(config.clone(), queue));
        let room = Arc::new(Semaphore::new(config.max_in_flight));
        let bytes = Arc::new(Semaphore::new(config.max_bytes_in_flight));
        let subscriptions = AtomicU64::new(0);
        Client { commands, task, turn: Mutex::new(()), room, bytes, config, subscriptions }
    }

    /// Puts a message in line, after all those that were put there before, and returns a future of
    /// the reply: await it at leisure. Waits while `max_in_flight` requests are unanswered, or more
    /// bytes than servers hold for one client. Those
    /// who wait get their turn in the order of their calls (the first polls of their futures).
    ///
    /// The request goes on even if the returned future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::TooLarge`] and [`ClientError::Closed`].
    pub async fn submit(&self, payload: Vec<u8>) -> Result<Pending, ClientError> {
        let (size, limit) = (payload.len(), self.config.max_payload_bytes);
        if size > limit {
            return Err(ClientError::TooLarge { size, limit });
        }
        // Whoever is in front has an earlier deadline, so nobody waits here past their own.
        let deadline = Instant::now() + self.config.deadline.min(MAX_DEADLINE);
        let _turn = self.turn.lock().await;
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(|_| ClientError::Closed)?;
        let share = size.min(self.config.max_bytes_in_flight) as u32;
        let bytes = self.bytes.clone().acquire_many_owned(share).await;
        let room = (room, bytes.map_err(|_| ClientError::Closed)?);
        let (answer, pending) = oneshot::channel();
        let command = Command::Submit { payload, deadline, answer, room };
        self.commands.send(command).map_err(|_| ClientError::Closed)?;
        Ok(Pending(pending))
    }

    /// Has a message put in order and executed; returns the application's reply.
    ///
    /// # Errors
    ///
    /// See [`ClientError`]. After [`ClientError::Deadline`] the message may still be delivered.
    pub async fn invoke(&self, payload: Vec<u8>) -> Result<Reply, ClientError> {
        self.submit(payload).await?.await
    }

    /// Has a message put in order; returns its place.
    ///
    /// # Errors
    ///
    /// As for [`Self::invoke`]; a reply that is no longer kept is none.
    pub async fn broadcast(&self, payload: Vec<u8>) -> Result<Delivered, ClientError> {
        match self.invoke(payload).await {
            Ok(Reply { order, id, .. }) => Ok(Delivered { order, id }),
            Err(ClientError::Gone(delivered)) => Ok(delivered),
            Err(error) => Err(error),
        }
    }

    /// Follows the one order from `from` on (the first message is 1). A client has one subscription
    /// at a time: an earlier one ends with [`ClientError::Replaced`].
    pub fn subscribe(&self, from: OrderNumber) -> Subscription {
        let id = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        Subscription::new(id, from, self.commands.clone())
    }

    /// Ends everything at once: requests in flight fail with [`ClientError::Closed`]. A client that
    /// is dropped instead goes on until its requests are answered and its subscription is dropped.
    pub async fn close(self) {
        // Both fail only if the task is gone already.
        let _ = self.commands.send(Command::Close);
        let _ = self.task.await;
    }
}

/// The reply to a message that is on its way.
#[must_use = "nobody else sees the reply"]
pub struct Pending(oneshot::Receiver<Result<Reply, ClientError>>);

impl Future for Pending {
    type Output = Result<Reply, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.0).poll(cx);
        answer.map(|answer| answer.unwrap_or(Err(ClientError::Closed)))
    }
}
