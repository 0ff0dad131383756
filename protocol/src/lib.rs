//! The DifATo protocol as pure state machines: no sockets, files, threads, clocks or randomness.
//!
//! The reader turns stream prefixes into committed batches, the ledger turns those into deliveries,
//! and the replica around them decides what a correct server writes. On the other side a client
//! session broadcasts, and a listener follows the one order. Whoever drives them (the guest process,
//! the client library, a simulator) brings the time and carries the bytes.
//!
//! | module | one job | rules |
//! |---|---|---|
//! | [`reader`] | what the streams say | V0-V3, B1, C1 |
//! | [`ledger`] | which orders are delivered, and what was answered | C2 |
//! | [`replica`] | what a correct server does | P1-P6 |
//! | [`pool`] | orders held until they are delivered | P1, P3 |
//! | [`history`] | deliveries kept for listeners | P5 |
//! | [`application`] | what is replicated | |
//! | [`snapshot`] | what a checkpoint's digest is of | section 6 |
//! | [`oracle`] | whether one who starts from a snapshot concludes what all conclude | section 6 |
//! | [`client_session`] | a client's ordering side | section 3, P1, P5 |
//! | [`listener`] | a subscriber's side | section 3, P5 |
//! | [`messages`] | the payload network's messages | section 3 |
//! | [`trace`] | what happened to a request when, for whoever measures | |
//! | [`transfer`] | fetching a snapshot from the others | section 6 |
//! | [`catch_up`] | how far a guest is, which snapshot it wants, and when it has it | P6, section 6 |
//! | [`limits`] | every bound of a replica, by name | |

#![forbid(unsafe_code)]

pub mod application;
pub mod catch_up;
pub mod client_session;
pub mod history;
pub mod ledger;
pub mod limits;
pub mod listener;
pub mod messages;
pub mod oracle;
pub mod pool;
pub mod reader;
pub mod replica;
pub mod snapshot;
pub mod trace;
pub mod transfer;

pub use shared_registers::canary;
