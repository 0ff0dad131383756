//! What can go wrong, in sentences that say which server did what.

use std::fmt;
use std::time::Duration;

use protocol::messages::Refusal;
use shared_registers::channel::ChannelError;
use shared_registers::ids::OrderNumber;

use crate::Delivered;

/// Why a request or a subscription failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// It was not answered in time. It may be delivered all the same, now or later.
    #[error("{0}")]
    Deadline(Box<NoAnswer>),
    /// `f + 1` servers do not hold the client's reply keys.
    #[error(
        "the MACs of {servers} of {n} servers do not verify: the keys in {key_file} are not the \
         ones that they hold; use the key file that was made with this cluster"
    )]
    WrongKey {
        /// How many servers' handshakes failed.
        servers: usize,
        /// Of so many.
        n: usize,
        /// Where the client's keys are.
        key_file: String,
    },
    /// `f + 1` servers' hosts refused the order. It was not delivered.
    #[error("{servers} servers' hosts refused the order: {}", Why(.reason, .key_file))]
    Refused {
        /// How many.
        servers: usize,
        /// What most of them said.
        reason: Refusal,
        /// Where the client's keys are.
        key_file: String,
    },
    /// The payload is over the cluster's limit. Nothing was sent.
    #[error("the payload of {size} bytes is over the cluster's limit of {limit} bytes")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The order was delivered, and `f + 1` servers keep its reply no longer.
    #[error("order {} was delivered, and its reply is no longer kept", .0.order)]
    Gone(Delivered),
    /// What the subscription wants next is no longer kept by `f + 1` servers.
    #[error("no longer kept: the oldest message that may be had is {first}")]
    TooOld {
        /// The oldest that may be had.
        first: OrderNumber,
    },
    /// A later call of `subscribe` took the place of this subscription.
    #[error("another subscription of the same client took the place of this one")]
    Replaced,
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

struct Why<'a>(&'a Refusal, &'a str);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Refusal::BadMac => write!(
                f,
                "its MAC does not verify; the order keys in {} are not those of the hosts",
                self.1
            ),
            Refusal::TooLarge => f.write_str("its payload is over their limit"),
        }
    }
}

/// What each server did about a request that was not answered in time.
#[derive(Clone, Debug)]
pub struct NoAnswer {
    /// How many servers must agree.
    pub quorum: usize,
    /// How long the request waited.
    pub waited: Duration,
    /// By server.
    pub servers: Vec<ServerAccount>,
    pub(crate) key_file: String,
}

/// What one server did about a request, or why it is not connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAccount {
    /// It was not reached yet.
    NotReached,
    /// Its address does not answer; what the operating system says.
    Unreachable(String),
    /// It closed the connection during the handshake.
    ClosedInHandshake,
    /// It took the connection and did not answer the handshake.
    SilentInHandshake,
    /// What it sent is no handshake.
    BadHandshake(ChannelError),
    /// It does not hold the reply key that the client has for it.
    WrongKey,
    /// The connection was lost, and why.
    Lost(String),
    /// It is connected and did not answer.
    Silent,
    /// It answered, and not enough others said the same.
    Replied(OrderNumber),
    /// Its host refused the order.
    Refused(Refusal),
    /// It says that the client has used this later session.
    Stale(u64),
}

impl ServerAccount {
    fn write(&self, f: &mut fmt::Formatter<'_>, id: usize, key_file: &str) -> fmt::Result {
        match self {
            ServerAccount::NotReached => write!(f, "server {id} was not reached yet"),
            ServerAccount::Unreachable(why) => write!(f, "server {id} unreachable ({why})"),
            ServerAccount::ClosedInHandshake => write!(
                f,
                "server {id} closed the connection during the handshake (it may not know this \
                 client)"
            ),
            ServerAccount::SilentInHandshake => {
                write!(f, "server {id} did not answer the handshake")
            }
            ServerAccount::BadHandshake(why) => write!(f, "server {id} answered wrongly ({why})"),
            ServerAccount::WrongKey => write!(
                f,
                "server {id}'s MAC does not verify (the key in {key_file} is not the one that it \
                 holds)"
            ),
            ServerAccount::Lost(why) => write!(f, "server {id}'s connection was lost ({why})"),
            ServerAccount::Silent => write!(f, "server {id} did not answer"),
            ServerAccount::Replied(order) => {
                write!(f, "server {id} says that it was delivered as {order}")
            }
            ServerAccount::Refused(Refusal::BadMac) => {
                write!(f, "server {id}'s host refused the order (its MAC does not verify)")
            }
            ServerAccount::Refused(Refusal::TooLarge) => {
                write!(f, "server {id}'s host refused the order (it is too large)")
            }
            ServerAccount::Stale(session) => {
                write!(f, "server {id} says that this client has used the later session {session}")
            }
        }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quorum, n, ms) = (self.quorum, self.servers.len(), self.waited.as_millis());
        write!(f, "no {quorum} of {n} servers agreed within ")?;
        match ms % 1000 {
            0 => write!(f, "{} s", ms / 1000)?,
            _ => write!(f, "{ms} ms")?,
        }
        for (id, server) in self.servers.iter().enumerate() {
            f.write_str(if id == 0 { ": " } else { ", " })?;
            server.write(f, id, &self.key_file)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_one_sentence_about_every_server() {
        let servers = vec![
            ServerAccount::Unreachable("Connection refused".into()),
            ServerAccount::Silent,
            ServerAccount::WrongKey,
        ];
        let key_file = "keys/client-0.key".into();
        let waited = Duration::from_secs(15);
        let error =
            ClientError::Deadline(Box::new(NoAnswer { quorum: 2, waited, servers, key_file }));
        assert_eq!(
            error.to_string(),
            "no 2 of 3 servers agreed within 15 s: server 0 unreachable (Connection refused), \
             server 1 did not answer, server 2's MAC does not verify (the key in \
             keys/client-0.key is not the one that it holds)"
        );
    }

    #[test]
    fn a_refusal_names_the_key_file() {
        let key_file = "keys/client-0.key".into();
        let error = ClientError::Refused { servers: 2, reason: Refusal::BadMac, key_file };
        assert_eq!(
            error.to_string(),
            "2 servers' hosts refused the order: its MAC does not verify; the order keys in \
             keys/client-0.key are not those of the hosts"
        );
    }
}
