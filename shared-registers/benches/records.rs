//! What it costs to make records, to read them, and to pass them through a ring.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Seq, ServerId, Term};
use shared_registers::order::OrderView;
use shared_registers::record::{Accept, Body, Propose, Record, Stamp, Vote};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, Ring, padded};

const SERVERS: usize = 3;
const KIB: usize = 1 << 10;

fn stamp() -> Stamp {
    let seen = Box::from([8; SERVERS]);
    Stamp { writer: ServerId(0), seq: Seq(9), time: Micros(1), incarnation: 0, seen }
}

/// A PROPOSE of so many orders with payloads of so many bytes.
fn propose(orders: usize, payload: &[u8]) -> Body<'_> {
    let order = |i: usize| {
        let id = OrderId { client: ClientId(i as u32), session: 1, count: 1 };
        OrderView { id, digest: Digest([2; 32]), mac: &[3; 32], payload }
    };
    let (term, batch) = (Term(0), Batch(1));
    Body::Propose(Propose {
        term,
        batch,
        evidence: vec![],
        orders: (0..orders).map(order).collect(),
    })
}

fn accept() -> Body<'static> {
    let vote = Some(Vote { upto: Batch(1), chain: Digest([4; 32]) });
    Body::Accept(Accept { term: Term(0), vote, checkpoint: None })
}

/// The bytes of a record, in room that is used again and again.
fn encode<'a>(body: &Body<'_>, stamp: &Stamp, [bytes, record]: &'a mut [Vec<u8>; 2]) -> &'a [u8] {
    bytes.clear();
    body.encode(bytes);
    record.clear();
    Record::encode(stamp, bytes, record);
    record
}

/// A record made of what a guest and its host know (its body and its stamp, with the CRC), and
/// taken apart again, as every reader of every copy of a stream does.
fn coding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    let payload = vec![1; 4 * KIB];
    let mut bodies = vec![("ACCEPT".to_owned(), accept())];
    for orders in [1, 64] {
        for bytes in [0, 4 * KIB] {
            let name = format!("PROPOSE of {orders} with {bytes}");
            bodies.push((name, propose(orders, &payload[..bytes])));
        }
    }
    let (stamp, mut room) = (stamp(), [Vec::new(), Vec::new()]);
    for (name, body) in bodies {
        let bytes = encode(&body, &stamp, &mut room).to_vec();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("encoded", &name), |bencher| {
            bencher.iter(|| encode(black_box(&body), &stamp, &mut room).len());
        });
        group.bench_function(BenchmarkId::new("decoded", &name), |bencher| {
            bencher.iter(|| {
                let record = Record::decode(black_box(&bytes), SERVERS).expect("it is whole");
                match Body::decode(record.body, SERVERS).expect("it is well-formed") {
                    Body::Propose(propose) => propose.orders.len(),
                    _ => 0,
                }
            });
        });
    }
    group.finish();
}

/// Bytes put into a ring of a mapped file and copied out by another mapping of it, past the first
/// lap: what shared memory itself takes of a hop between a host and its guest.
fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let file = tempfile::tempfile().expect("a temporary file");
    let ring = Ring { base: 512, bytes: 1 << 20 };
    file.set_len(4096 + ring.bytes).expect("room for it");
    let writes = MappedReadWrite::map(&file).expect("a file that can be mapped");
    let reads = MappedReadOnly::map(&file).expect("a file that can be mapped");
    ring.put(&writes, 0, &vec![0; ring.bytes as usize]);
    // An ACCEPT, a PROPOSE of one empty order, one of 4 KiB, and one of 16 of these.
    for bytes in [114, 176, 4272, 67032] {
        let (record, mut copy) = (vec![5; bytes], Vec::new());
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut at = 0;
        group.bench_function(BenchmarkId::new("put", bytes), |bencher| {
            bencher.iter(|| {
                ring.put(&writes, at, black_box(&record));
                at += padded(bytes);
            });
        });
        let mut at = 0;
        group.bench_function(BenchmarkId::new("got", bytes), |bencher| {
            bencher.iter(|| {
                copy.clear();
                ring.get(&reads, at, bytes, &mut copy);
                at += padded(bytes);
                copy.len()
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    coding(&mut criterion);
    rings(&mut criterion);
    criterion.final_summary();
}
