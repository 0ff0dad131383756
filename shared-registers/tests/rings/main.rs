//! The register files under concurrency, as the two sides really use them: every load, store and
//! fence below is production code's, over words of which a model checker knows.
//!
//! | module | what it shows |
//! |---|---|
//! | `backing` | words of a model checker's atomics, which can be made weaker than asked for |
//! | `weak_memory` | loom: two threads, every interleaving and every stale load, in tiny rings |
//! | `three_threads` | shuttle: a guest, its host and a second reader, thousands of schedules |
//! | `killed_writer` | two processes over a real mapped file, the writer killed again and again |
//!
//! Each check is shown to fail: one test beside it weakens what it relies on and must go red.

mod backing;
mod killed_writer;
mod three_threads;
mod weak_memory;

use shared_registers::crypto::ClusterId;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::Geometry;
use shared_registers::limits::RegisterLimits;
use shared_registers::record::{Record, Stamp};

/// Files of a cluster of one server, whose rings may be smaller than a cluster's ever are.
fn geometry(ring_bytes: u64, write_ring_bytes: u64) -> Geometry {
    let limits = RegisterLimits { max_payload_bytes: 64, ring_bytes, write_ring_bytes };
    Geometry { n: 1, server: ServerId(0), cluster: ClusterId([8; 32]), limits }
}

/// A body whose bytes all say which it is, so that a mixture of two is seen.
fn body(seq: u64, words: usize) -> Vec<u8> {
    seq.to_le_bytes().repeat(words)
}

/// The record `seq` of the one stream.
fn record(seq: u64, body: &[u8]) -> (Record<'_>, Vec<u8>) {
    let (writer, seen) = (ServerId(0), Box::from([seq - 1]));
    let stamp = Stamp { writer, seq: Seq(seq), time: Micros(seq), incarnation: 0, seen };
    let mut bytes = Vec::new();
    Record::encode(&stamp, body, &mut bytes);
    (Record { stamp, body }, bytes)
}
