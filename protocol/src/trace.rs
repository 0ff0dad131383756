//! What happened to a request when: points in time that a guest notes while somebody measures.
//!
//! The operator asks a guest for its [`Points`] and thereby has it note more of them for a while; a
//! guest that nobody asks notes none. No rule of the protocol reads them. What hosts did is not
//! asked for: their [stamps](shared_registers::record::Stamp) are in the records that guests read.
//!
//! Times are wall clocks, so points of several servers can be compared where all of them run on one
//! machine, and nowhere else.

use serde::{Deserialize, Serialize};
use shared_registers::ids::{Micros, OrderId, Seq, ServerId};

/// A part of what a guest has noted: see [`ToServer::Trace`](crate::messages::ToServer::Trace).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Points {
    /// The number of the first of these points. Points are numbered from 0 on; what is older than
    /// the oldest that is kept is lost.
    pub first: u64,
    /// The number that the next point will have that is noted. While that is more than this part
    /// reaches to, there is more to ask for.
    pub end: u64,
    /// At most [`TRACE_PAGE_POINTS`](crate::limits::TRACE_PAGE_POINTS), in the order in which they
    /// were noted.
    pub points: Vec<Point>,
}

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When the guest woke up for the turn of its loop in which it happened, in nanoseconds since
    /// 1970.
    pub woke_ns: u64,
    /// When it happened.
    pub at_ns: u64,
    /// What.
    pub moment: Moment,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    /// An order came from its client, and was opened.
    Received(OrderId),
    /// The frame for this position of the own stream is in the write file; the host is not rung yet.
    Written(Seq),
    /// A record was found, and is read now.
    Read {
        /// In whose stream.
        writer: ServerId,
        /// Its place there.
        seq: Seq,
        /// What the writer's host stamped on it: when the turn of its loop began in which it
        /// admitted the record.
        time: Micros,
        /// If it is a PROPOSE with orders, the first of them.
        order: Option<OrderId>,
    },
    /// The record that was read last committed this order, which was delivered and executed.
    Delivered(OrderId),
    /// The reply is sealed, and is given to the socket now.
    Replied(OrderId),
}
