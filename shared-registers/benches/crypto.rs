//! What it costs to authenticate: orders by their digest and MACs, frames by their seal.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use shared_registers::channel::{Channel, Event, Party};
use shared_registers::crypto::{ClusterId, Mac, MacKey, Secret};
use shared_registers::ids::{ClientId, OrderId, ServerId};
use shared_registers::order;

const CLUSTER: ClusterId = ClusterId([7; 32]);
const ORDER: OrderId = OrderId { client: ClientId(3), session: 1, count: 1 };
const KIB: usize = 1 << 10;

/// An order's digest: a client computes it once for all its MACs, and the proposer's host again.
fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("order digest");
    for bytes in [0, 4 * KIB] {
        let payload = vec![1; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| order::digest(&CLUSTER, ORDER, black_box(&payload)));
        });
    }
    group.finish();
}

/// A client's MAC vector, one MAC for each of n hosts over an order's digest: the part of its work
/// that grows with the cluster, and that a payload's size does not change.
fn mac_vectors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("MAC vector");
    let digest = order::digest(&CLUSTER, ORDER, &[]);
    for n in [3, 5, 7] {
        let keys: Vec<_> = (0..n).map(|host| Secret::new([host; 32]).mac_key()).collect();
        group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
            bencher.iter(|| {
                let macs = keys.iter().map(|key| order::mac(key, black_box(&digest)));
                macs.collect::<Vec<Mac>>()
            });
        });
    }
    group.finish();
}

/// One MAC of an order, as the proposer's host checks it (R1): nobody checks another.
fn verifying(criterion: &mut Criterion) {
    let (key, digest) = (Secret::new([1; 32]).mac_key(), order::digest(&CLUSTER, ORDER, &[]));
    let mac = order::mac(&key, &digest).0;
    assert!(order::verify(&key, &digest, &mac));
    criterion.bench_function("MAC verified", |bencher| {
        bencher.iter(|| order::verify(&key, black_box(&digest), black_box(&mac)));
    });
}

/// Both ends of a channel whose handshake is done.
fn channel() -> (Channel, Channel) {
    let (client, guest) = (Party::Client(ClientId(3)), Party::Guest(ServerId(1)));
    let key = Secret::new([9; 32]).mac_key();
    let keys = |_| Some(key.clone());
    let (mut forth, mut back) = (Vec::new(), Vec::new());
    let mut dialer = Channel::dial((client, guest), &key, CLUSTER, [1; 16], 1 << 20, &mut forth);
    let mut acceptor = Channel::accept(guest, CLUSTER, [2; 16], 1 << 20);
    let hear = |channel: &mut Channel, heard: &mut Vec<u8>, said: &mut Vec<u8>| {
        channel.receive(heard);
        heard.clear();
        channel.next(&keys, said).expect("the ends share a key");
    };
    hear(&mut acceptor, &mut forth, &mut back);
    hear(&mut dialer, &mut back, &mut forth);
    hear(&mut acceptor, &mut forth, &mut back);
    assert!(dialer.is_open() && acceptor.is_open());
    (dialer, acceptor)
}

fn no_key(_: Party) -> Option<MacKey> {
    None
}

/// A frame sealed at one end of a channel and opened at the other, as both networks do with
/// whatever passes over them: an ACCEPT or an empty order, a payload of 4 KiB, a batch of some.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for bytes in [0, 4 * KIB, 64 * KIB] {
        let frame = vec![1; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        let (mut dialer, _) = channel();
        let mut wire = Vec::new();
        group.bench_function(BenchmarkId::new("sealed", bytes), |bencher| {
            bencher.iter(|| {
                wire.clear();
                dialer.seal(&mut wire, |out| out.extend_from_slice(black_box(&frame)))
            });
        });
        let (mut dialer, mut acceptor) = channel();
        let mut sealed = || {
            let mut wire = Vec::new();
            assert!(dialer.seal(&mut wire, |out| out.extend_from_slice(&frame)));
            wire
        };
        let mut open = |wire: Vec<u8>| {
            acceptor.receive(&wire);
            match acceptor.next(&no_key, &mut Vec::new()) {
                Ok(Some(Event::Frame(opened))) => assert_eq!(opened.len(), bytes),
                _ => panic!("a frame does not open"),
            }
            wire // Not freed within the measurement.
        };
        group.bench_function(BenchmarkId::new("opened", bytes), |bencher| {
            bencher.iter_batched(&mut sealed, &mut open, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    digests(&mut criterion);
    mac_vectors(&mut criterion);
    verifying(&mut criterion);
    frames(&mut criterion);
    criterion.final_summary();
}
