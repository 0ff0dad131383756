//! Guests whose records are reclaimed: they start over from a snapshot of the others' (section 6).

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use protocol::application::KeyValue;
use protocol::messages::{Status, ToClient, ToServer};
use shared_registers::crypto::Digest;
use shared_registers::ids::OrderNumber;

use crate::cluster::{Cluster, Shape};
use crate::liar::{Liar, Lie};
use crate::{delivery, subscribe};

/// Orders that are on their way at once.
const AT_ONCE: u64 = 64;

/// Puts so many bytes at so many keys, `AT_ONCE` at a time, through one server.
struct Writer {
    count: u64,
    keys: u64,
    value: usize,
}

impl Writer {
    fn new(keys: u64, value: usize) -> Writer {
        Writer { count: 0, keys, value }
    }

    fn write(&mut self, cluster: &Cluster, server: u16, bytes: usize) {
        let mut peer = cluster.client(0, server);
        let mut left = bytes.div_ceil(self.value) as u64;
        while left > 0 {
            let now = left.min(AT_ONCE);
            left -= now;
            for _ in 0..now {
                self.count += 1;
                let (key, value) = (self.count % self.keys, vec![self.count as u8; self.value]);
                let payload = KeyValue::put(&key.to_le_bytes(), &value);
                peer.send(&ToServer::Order(cluster.order(0, self.count, &payload)));
            }
            while !matches!(peer.next(), Some(ToClient::Reply(r)) if r.count == self.count) {}
        }
    }
}

fn await_status(cluster: &Cluster, server: u16, what: impl Fn(&Status) -> bool) -> Status {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = cluster.status(server);
        if what(&status) {
            return status;
        }
        assert!(Instant::now() < until, "server {server} is {status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a server is at work and has delivered as much as another.
fn await_same(cluster: &Cluster, server: u16, as_server: u16) -> Status {
    let wanted = cluster.status(as_server);
    let status = await_status(cluster, server, |status| {
        status.catching_up.is_none() && status.delivered >= wanted.delivered
    });
    assert_eq!((status.delivered, status.chain), (wanted.delivered, wanted.chain));
    status
}

fn count(status: &Status, name: &str) -> u64 {
    status.counters.iter().find(|(n, _)| n == name).unwrap().1
}

/// The digests of two servers' replies to one order of client 1.
fn replies(cluster: &Cluster, servers: [u16; 2], number: u64, payload: &[u8]) -> [Digest; 2] {
    let order = cluster.order(1, number, payload);
    let mut peers = servers.map(|server| cluster.client(1, server));
    for peer in &mut peers {
        peer.send(&ToServer::Order(order.clone()));
    }
    peers.map(|mut peer| {
        loop {
            match peer.next() {
                Some(ToClient::Reply(reply)) if reply.count == number => return reply.digest,
                Some(_) => {}
                None => panic!("closed"),
            }
        }
    })
}

#[test]
fn a_restarted_guest_whose_records_are_reclaimed_starts_from_a_snapshot_and_is_needed() {
    let mut cluster = Cluster::start_with(Shape::TIGHT);
    let mut writer = Writer::new(2048, 4096);
    writer.write(&cluster, 0, 8 << 20);
    cluster.stop_guest(2).unwrap();
    writer.write(&cluster, 0, 4 << 20);
    cluster.wipe_guest(2);
    cluster.start_guest(2);
    let status = await_same(&cluster, 2, 0);
    assert_eq!(count(&status, "snapshots_restored"), 1);
    assert_eq!(count(&status, "snapshot_bytes_loaded"), 0);
    assert!(count(&status, "snapshot_bytes_fetched") > 8 << 20);
    assert_eq!(cluster.status(0).stable.unwrap().batch, status.stable.unwrap().batch);

    // Now it is one of two: nothing is delivered without its votes, nor stable without its claims.
    cluster.stop_guest(1).unwrap();
    writer.write(&cluster, 0, 4 << 20);
    let status = await_same(&cluster, 2, 0);
    assert!(count(&status, "votes_written") > 0 && count(&status, "checkpoints_claimed") > 0);
    let key = (writer.count % writer.keys).to_le_bytes();
    let [a, b] = replies(&cluster, [0, 2], 1, &KeyValue::get(&key));
    let value = [b"V", &vec![writer.count as u8; writer.value][..]].concat();
    assert_eq!((a, b), (Digest::of(&[&value]), a), "the application's state came along");
}

#[test]
fn sources_that_lie_fall_silent_or_die_are_replaced() {
    let mut cluster = Cluster::start_with(Shape::TIGHT);
    let mut writer = Writer::new(512, 4096);
    cluster.stop_guest(2).unwrap();
    writer.write(&cluster, 0, 6 << 20);
    for (other, lie) in [(1, Lie::Bytes), (1, Lie::Silence), (1, Lie::Death), (0, Lie::Bytes)] {
        cluster.stop_guest(other).unwrap();
        cluster.wipe_guest(2);
        let liar = Liar::start(&cluster, other as u16, lie);
        cluster.start_guest(2);
        let status = await_same(&cluster, 2, 1 - other as u16);
        assert_eq!(count(&status, "snapshots_restored"), 1, "{lie:?}");
        let lies = count(&status, "snapshot_lies");
        assert!(liar.asked() > 0, "{lie:?}");
        assert_eq!(lies, u64::from(lie == Lie::Bytes), "{lie:?}: who lied is not asked again");
        liar.stop();
        cluster.stop_guest(2).unwrap();
        // It has to catch up itself before it can be the one that others catch up from.
        cluster.start_guest(other);
        await_same(&cluster, other as u16, 1 - other as u16);
    }
}

#[test]
fn a_guest_that_stood_still_catches_up_in_place_and_its_subscribers_miss_nothing() {
    let mut cluster = Cluster::idle(Shape::TIGHT);
    cluster.start_hosts();
    cluster.start_guest(0);
    cluster.start_guest(1);
    cluster.start_child(2);
    let mut writer = Writer::new(512, 4096);
    writer.write(&cluster, 0, 1 << 20);
    let mut listener = cluster.client(3, 2);
    subscribe(&mut listener, 1);
    for order in 1..=100 {
        assert_eq!(delivery(&mut listener).order, OrderNumber(order));
    }
    cluster.signal_child(2, Signal::SIGSTOP);
    writer.write(&cluster, 0, 8 << 20);
    cluster.signal_child(2, Signal::SIGCONT);
    let status = await_same(&cluster, 2, 0);
    assert_eq!((count(&status, "times_behind"), count(&status, "snapshots_restored")), (1, 1));
    for order in 101..=writer.count {
        assert_eq!(delivery(&mut listener).order, OrderNumber(order));
    }
    // It takes part again.
    cluster.stop_guest(1).unwrap();
    writer.write(&cluster, 0, 1 << 20);
    assert_eq!(delivery(&mut listener).order, OrderNumber(status.delivered.0 + 1));
}

/// Checkpoints become stable, and records are reclaimed, faster than a snapshot is fetched: it
/// turns to the newer ones, and what it has already is not fetched again.
#[test]
fn a_guest_catches_up_with_a_cluster_that_goes_on() {
    let mut cluster = Cluster::start_with(Shape::TIGHT);
    let mut writer = Writer::new(2048, 4096);
    cluster.stop_guest(2).unwrap();
    writer.write(&cluster, 0, 8 << 20);
    cluster.wipe_guest(2);
    cluster.start_guest(2);
    writer.write(&cluster, 0, 16 << 20);
    let status = await_same(&cluster, 2, 0);
    assert!(count(&status, "snapshots_restored") >= 1);
    assert_eq!(count(&status, "snapshot_lies"), 0);
}

#[test]
fn when_all_guests_stopped_they_start_from_what_they_stored() {
    let mut cluster = Cluster::start_with(Shape::TIGHT);
    let mut writer = Writer::new(512, 4096);
    for round in 1..=3 {
        // One is left behind, so that what it stored is old, and it needs the others.
        writer.write(&cluster, 0, 4 << 20);
        cluster.stop_guest(2).unwrap();
        writer.write(&cluster, 0, 2 << 20);
        let before = cluster.status(0);
        cluster.stop_guest(0).unwrap();
        cluster.stop_guest(1).unwrap();
        (0..3).for_each(|id| cluster.start_guest(id));
        for server in 0..3 {
            let after = await_status(&cluster, server, |status| {
                status.catching_up.is_none() && status.delivered >= before.delivered
            });
            assert_eq!((after.delivered, after.chain), (before.delivered, before.chain), "{round}");
            assert_eq!(count(&after, "snapshots_restored"), 1);
        }
    }
}

/// How fast it is, with a state of so many MiB: `DIFATO_STATE_MIB`, 200 if it is not set.
#[test]
#[ignore = "measures, and takes a minute: docs/testing.md says how it is run"]
fn a_large_state_is_transferred() {
    let mib = std::env::var("DIFATO_STATE_MIB").map_or(200, |text| text.parse().unwrap());
    let shape = Shape { ring_bytes: 16 << 20, ..Shape::TIGHT };
    let mut cluster = Cluster::start_with(shape);
    let bytes: usize = mib << 20;
    let mut writer = Writer::new((bytes / 8000) as u64, 8000);
    cluster.stop_guest(2).unwrap();
    writer.write(&cluster, 0, bytes + (32 << 20));
    cluster.wipe_guest(2);
    let start = Instant::now();
    cluster.start_guest(2);
    let status = await_same(&cluster, 2, 0);
    let (took, fetched) = (start.elapsed(), count(&status, "snapshot_bytes_fetched"));
    assert!(fetched >= bytes as u64);
    let fetched = fetched as f64 / f64::from(1 << 20);
    println!("{mib} MiB of state: {fetched:.0} MiB fetched, at work again after {took:.2?}");
}
