//! What it costs to read the streams: a batch from its PROPOSE to its delivery, by the reading rules
//! alone and by a whole replica.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use protocol::application::Log;
use protocol::reader::Reader;
use protocol::replica::{Config, Input, Output, Replica};
use shared_registers::crypto::ClusterId;
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Seq, ServerId, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Accept, Body, Propose, Record, Stamp, Vote};

const CLUSTER: ClusterId = ClusterId([1; 32]);
const SERVERS: usize = 3;
const CLIENTS: u32 = 64;
/// After so many batches whoever reads starts anew, as a checkpoint would have it forget them.
const BATCHES: u64 = 256;
const NOW: Micros = Micros(1);

/// A record: its stamp and its body.
struct Encoded(Stamp, Vec<u8>);

impl Encoded {
    fn record(&self) -> Record<'_> {
        Record { stamp: self.0.clone(), body: &self.1 }
    }
}

/// What the hosts of three servers admitted: batch after batch, each proposed by server 0 and then
/// accepted by the others, of which one already suffices.
fn streams(orders: usize, payload: &[u8]) -> Vec<[Encoded; SERVERS]> {
    let mut reader = reader();
    let mut batch = |number: u64| {
        let order = |i: usize| {
            let (client, all) = (i as u32 % CLIENTS, orders as u64 * (number - 1) + i as u64);
            let count = 1 + all / u64::from(CLIENTS.min(orders as u32));
            let id = OrderId { client: ClientId(client), session: 1, count };
            let digest = order::digest(&CLUSTER, id, payload);
            OrderView { id, digest, mac: &[0; 32], payload }
        };
        let (term, before) = (Term(0), number - 1);
        let orders = (0..orders).map(order).collect();
        let propose = Propose { term, batch: Batch(number), evidence: vec![], orders };
        let propose = encode(0, number, [before; SERVERS], &Body::Propose(propose));
        reader.read(&propose.record());
        let chain = reader.term(term).and_then(|state| state.chain_at(Batch(number)));
        let vote = Some(Vote { upto: Batch(number), chain: chain.expect("a live batch") });
        let accept = |writer, seen| {
            let body = Accept { term, vote, checkpoint: None };
            encode(writer, number, seen, &Body::Accept(body))
        };
        let accepts = [accept(1, [number, before, before]), accept(2, [number, number, before])];
        for accept in &accepts {
            reader.read(&accept.record());
        }
        assert!(reader.take_committed().is_some(), "batch {number} is not committed");
        let [first, second] = accepts;
        [propose, first, second]
    };
    (1..=BATCHES).map(&mut batch).collect()
}

fn encode(writer: u16, seq: u64, seen: [u64; SERVERS], body: &Body<'_>) -> Encoded {
    let (writer, seq, seen) = (ServerId(writer), Seq(seq), Box::from(seen));
    let mut bytes = Vec::new();
    body.encode(&mut bytes);
    Encoded(Stamp { writer, seq, time: Micros(0), incarnation: 0, seen }, bytes)
}

fn reader() -> Reader {
    Reader::new(CLUSTER, SERVERS, 64, u64::MAX)
}

/// A backup of that cluster that never suspects anybody and takes no checkpoint.
fn replica() -> Replica {
    let config = Config {
        me: ServerId(1),
        n: SERVERS,
        clients: CLIENTS,
        cluster: CLUSTER,
        max_payload_bytes: 1 << 20,
        window: 64,
        checkpoint_weight: u64::MAX,
        soft_batch_bytes: 1 << 20,
        change: Micros(1 << 40),
        change_cap: Micros(1 << 40),
        host_down: Micros(1 << 40),
        retain_messages: 1 << 20,
        retain_bytes: 1 << 30,
    };
    Replica::new(config, Box::new(Log))
}

/// How long so many batches take, [`BATCHES`] at a time by somebody new. Who it was is dropped, and
/// what it returned, outside of the measurement.
fn time<R, T>(
    iterations: u64,
    new: impl Fn() -> R,
    mut each: impl FnMut(&mut R, usize) -> T,
) -> Duration {
    let (mut left, mut total) = (iterations, Duration::ZERO);
    while left > 0 {
        let count = left.min(BATCHES);
        let (mut who, mut results) = (new(), Vec::with_capacity(count as usize));
        let start = Instant::now();
        for batch in 0..count {
            results.push(each(&mut who, batch as usize));
        }
        total += start.elapsed();
        left -= count;
    }
    total
}

/// Orders per batch, and bytes of their payloads.
const SIZES: [(usize, usize); 3] = [(1, 0), (1, 4096), (64, 0)];

/// The stream reader alone: a PROPOSE and its ACCEPTs by the rules V0 to C1, to the orders that are
/// to be delivered. Every replica does this for every batch.
fn reading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reader");
    for (orders, bytes) in SIZES {
        let streams = streams(orders, &vec![1; bytes]);
        group.throughput(Throughput::Elements(orders as u64));
        let name = format!("{orders} with {bytes}");
        group.bench_function(BenchmarkId::new("batch", name), |bencher| {
            bencher.iter_custom(|iterations| {
                time(iterations, reader, |reader, batch| {
                    for encoded in &streams[batch] {
                        reader.read(&encoded.record());
                    }
                    let taken = reader.take_committed();
                    assert!(taken.is_some(), "a batch is not committed");
                    taken
                })
            });
        });
    }
    group.finish();
}

/// The same by a backup's core: with its vote, deliveries, and replies to the clients. So it is all
/// that a guest does for a batch but for reading and writing memory and sockets.
fn stepping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replica");
    for (orders, bytes) in SIZES {
        let streams = streams(orders, &vec![1; bytes]);
        group.throughput(Throughput::Elements(orders as u64));
        let name = format!("{orders} with {bytes}");
        group.bench_function(BenchmarkId::new("batch", name), |bencher| {
            bencher.iter_custom(|iterations| {
                time(iterations, replica, |replica, batch| {
                    let mut out = Vec::new();
                    for encoded in &streams[batch] {
                        replica.step(NOW, Input::Record(encoded.record()), &mut out);
                        replica.step(NOW, Input::Idle, &mut out);
                    }
                    let replies = |out: &Output| matches!(out, Output::ToClient(..));
                    let replied = out.iter().filter(|out| replies(out)).count();
                    assert_eq!((replied, out.len()), (orders, orders + 1), "replies and a vote");
                    out
                })
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    reading(&mut criterion);
    stepping(&mut criterion);
    criterion.final_summary();
}
