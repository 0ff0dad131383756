//! What a host and its guest share, and what the hosts of a cluster share with each other.
//!
//! A *stream* `R_i` is the append-only sequence of records that host `i` admitted from its guest.
//! Every host keeps all `n` streams in its **read file**, which its guest maps read-only, and takes
//! its guest's writes from the **write file**, which the guest maps read-write. This crate holds
//! the bytes of both: identifiers and limits, the record and order formats, the two file layouts
//! with their rings, the doorbell words, and the authenticated byte channel that the hosts (and, on
//! the other network, guests and clients) speak. Together with `host-agent` it is the trusted
//! computing base: nothing that a guest can compute for itself belongs here.
//!
//! | module | one job |
//! |---|---|
//! | [`ids`] | the names of things: servers, clients, terms, batches, positions, times |
//! | [`limits`] | every bound, by name |
//! | [`crypto`] | digests, MAC keys, the cluster's id |
//! | [`codec`] | fixed little-endian reading and writing of bytes |
//! | [`order`] | an order, its digest and its MAC |
//! | [`record`] | PROPOSE, ACCEPT, CHANGE and the header that a host stamps on them |
//! | [`checkpoint`] | which checkpoint is stable |
//! | [`words`] | shared memory as atomic words, and rings in it |
//! | [`layout`] | which word of which file means what |
//! | [`host_side`], [`guest_side`] | the two files as a host, and as a guest, uses them |
//! | [`channel`], [`link`] | authenticated frames over a byte stream; the same over a socket |
//! | [`bell`] | the doorbell's socket |
//! | [`cluster`] | `cluster.toml`, key files, and where they lie |
//! | [`canary`] | rules broken on purpose, in the simulator alone |

pub mod bell;
pub mod canary;
pub mod channel;
pub mod checkpoint;
pub mod cluster;
pub mod codec;
pub mod crypto;
pub mod guest_side;
pub mod host_side;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod link;
pub mod order;
pub mod record;
pub mod words;
