//! The names of things. Every identifier is a type of its own, so that a term cannot be passed
//! where a batch number is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A server (its host and its guest): `0..n`.
    ServerId(u16)
);
number!(
    /// A client: `0..clients`.
    ClientId(u32)
);
number!(
    /// Counts sequencer changes. The sequencer of term `t` is server `t mod n`.
    Term(u64)
);
number!(
    /// A batch of orders: 1, 2, 3, ...; 0 is "before the first batch".
    Batch(u64)
);
number!(
    /// The place of a delivered message in the one order: 1, 2, 3, ... without gaps.
    OrderNumber(u64)
);
number!(
    /// A record's place in its stream: 1, 2, 3, ...; as a count, how many records.
    Seq(u64)
);
number!(
    /// Microseconds. As a stamp of a host, since 1970; as the `now` of a core, since any fixed start.
    Micros(u64)
);

impl ServerId {
    /// This id as an index into a table of `n` servers.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// All servers of a cluster of `n`.
    pub fn all(n: usize) -> impl DoubleEndedIterator<Item = ServerId> + Clone {
        (0..n as u16).map(ServerId)
    }
}

impl ClientId {
    /// This id as an index into a table of clients.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Term {
    /// The sequencer of this term in a cluster of `n` servers (section 3).
    pub fn sequencer(self, n: usize) -> ServerId {
        ServerId((self.0 % n as u64) as u16)
    }

    /// The term after this one.
    pub fn next(self) -> Term {
        Term(self.0.saturating_add(1))
    }
}

impl Batch {
    /// The batch after this one.
    pub fn next(self) -> Batch {
        Batch(self.0.saturating_add(1))
    }
}

impl OrderNumber {
    /// The order number after this one.
    pub fn next(self) -> OrderNumber {
        OrderNumber(self.0 + 1)
    }
}

impl Seq {
    /// The record after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Micros {
    /// So many milliseconds.
    pub const fn from_ms(ms: u64) -> Micros {
        Micros(ms * 1000)
    }

    /// This moment, and so much later.
    pub fn plus(self, other: Micros) -> Micros {
        Micros(self.0.saturating_add(other.0))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Micros) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

/// A place in the registers: record `seq` of stream `writer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Whose stream.
    pub writer: ServerId,
    /// Which record of it.
    pub seq: Seq,
}

/// An order's identity: `(session, count)` is the paper's timestamp of a client's message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct OrderId {
    /// Who sent it.
    pub client: ClientId,
    /// The client's session; a later session has a larger number.
    pub session: u64,
    /// 1, 2, 3, ... within the session.
    pub count: u64,
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} session {} count {}", self.client, self.session, self.count)
    }
}
