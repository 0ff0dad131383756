//! What the fuzz targets do, as plain functions.
//!
//! Each body takes any bytes, makes an attack of them and panics if something gives way: a decoder
//! that takes what it would not have written, a queue past its bound, a record that no guest may
//! write. `cargo fuzz` calls a body with bytes that it finds by coverage; `cargo test` calls it
//! with the committed corpus, with changed copies of it and with random bytes. So a finding of the
//! fuzzer becomes a regression test by copying its file into `fuzz/corpus/`.
//!
//! | module | what is attacked |
//! |---|---|
//! | `decoders` | the payload network's messages, records, `cluster.toml`, key files |
//! | `channel` | the authenticated channel, in every stage of its handshake and after |
//! | `files` | both register files, holding any words |
//! | `host` | a host, by its guest, its peers' frames and restarts |
//! | `replica` | two correct replicas over real hosts, by a third guest, clients and the network |
//! | `session`, `listener` | a client's two sides, by the words of servers |
//! | `snapshots` | what a replica starts from, and the transfer of it |
//! | `drafts` | bodies and orders that are nearly right |
//!
//! Those from `files` on, but `snapshot`, read their bytes as a sequence of acts (`arbitrary`), so that a fuzzer's small
//! change to the bytes is a small change to the story.

#![forbid(unsafe_code)]

mod channel;
mod decoders;
mod drafts;
mod files;
mod host;
mod listener;
mod replica;
mod session;
mod snapshots;

use arbitrary::{Arbitrary, Unstructured};

/// A target: its name, which is also its corpus' folder, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("to_server", decoders::to_server),
    ("to_client", decoders::to_client),
    ("record", decoders::record),
    ("cluster_toml", decoders::cluster_toml),
    ("key_file", decoders::key_file),
    ("channel", channel::run),
    ("read_file", files::read_file),
    ("write_file", files::write_file),
    ("peer_frame", host::peer_frame),
    ("host", host::run),
    ("replica", replica::run),
    ("client_session", session::run),
    ("listener", listener::run),
    ("snapshot", snapshots::snapshot),
    ("fetch", snapshots::fetch),
];

/// Runs the target of this name.
///
/// # Panics
///
/// If there is none, or if the bytes break something.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, body) = target.unwrap_or_else(|| panic!("there is no target {name}"));
    body(bytes);
}

/// Acts of one story, at most: longer ones only repeat themselves, slowly.
const MAX_ACTS: usize = 400;

/// Reads acts off `bytes` until they are used up.
fn acts<'a, A: Arbitrary<'a>>(bytes: &mut Unstructured<'a>, mut each: impl FnMut(A)) {
    for _ in 0..MAX_ACTS {
        if bytes.is_empty() {
            return;
        }
        match A::arbitrary(bytes) {
            Ok(act) => each(act),
            Err(_) => return,
        }
    }
}
