//! Following the one order.

use protocol::listener::Delivered;
use shared_registers::ids::{ClientId, Micros, OrderNumber};
use tokio::sync::mpsc;

use crate::driver::Command;
use crate::error::ClientError;
use crate::limits::{WAITING_BYTES, WAITING_MESSAGES};

/// A message at its place in the one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place: 1, 2, 3, ... without gaps.
    pub order: OrderNumber,
    /// Who sent it.
    pub client: ClientId,
    /// In which of the sender's sessions.
    pub session: u64,
    /// As which message of that session.
    pub count: u64,
    /// The delivery time, by the servers' trusted clock: microseconds since 1970.
    pub time: Micros,
    /// The message itself.
    pub payload: Vec<u8>,
}

impl From<Delivered> for Message {
    fn from(delivered: Delivered) -> Message {
        let Delivered { order, id, time, payload } = delivered;
        Message { order, client: id.client, session: id.session, count: id.count, time, payload }
    }
}

/// A subscription: every message from some place on, in order, without gaps or repeats, whatever
/// happens to connections. It ends when it is dropped: the servers are told to send no more.
pub struct Subscription {
    id: u64,
    messages: mpsc::UnboundedReceiver<Result<Message, ClientError>>,
    commands: mpsc::UnboundedSender<Command>,
    /// What was taken since the task was last told.
    taken: (u64, u64),
    ended: Option<ClientError>,
}

impl Subscription {
    pub(crate) fn new(
        id: u64,
        from: OrderNumber,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Subscription {
        // The queue is bounded by the room that the task is told of.
        let (sink, messages) = mpsc::unbounded_channel();
        // If the task is gone, the queue is closed, and that is what `next` says.
        let _ = commands.send(Command::Subscribe { id, from, sink });
        Subscription { id, messages, commands, taken: (0, 0), ended: None }
    }

    /// The next message; waits for it. A call that is given up loses nothing.
    ///
    /// # Errors
    ///
    /// [`ClientError::TooOld`], [`ClientError::WrongKey`], [`ClientError::Replaced`] or
    /// [`ClientError::Closed`]; the subscription is over then, and every further call says the
    /// same. While servers cannot be reached it waits for them, without end.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let message = match self.messages.recv().await.unwrap_or(Err(ClientError::Closed)) {
            Ok(message) => message,
            Err(error) => return Err(self.ended.insert(error).clone()),
        };
        let (messages, bytes) = &mut self.taken;
        *messages += 1;
        *bytes += message.payload.len() as u64;
        // Not for every message: that would wake the task each time.
        if *messages >= WAITING_MESSAGES / 2 || *bytes >= WAITING_BYTES / 2 {
            let (messages, bytes) = std::mem::take(&mut self.taken);
            let _ = self.commands.send(Command::Room { id: self.id, messages, bytes });
        }
        Ok(message)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Unsubscribe { id: self.id });
    }
}
