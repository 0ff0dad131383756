//! A guest that was broken into and never reads, or writes all that it can as fast as it can: it
//! harms itself only. The others' requests go on, and nobody's memory grows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shared_registers::host_side::Counter;
use shared_registers::ids::{Batch, Term};
use shared_registers::layout::DropReason;
use shared_registers::record::{Accept, Body, Vote};

use crate::attacker::{Attacker, encoded};
use crate::support::clients::{Caller, Traffic};
use crate::support::{Builder, Cluster, Role, counter};

/// As small as can be, so that they wrap around.
const RING_BYTES: u64 = 2 << 20;
const BYTES: usize = 8 << 10;
/// Requests of [`BYTES`] that fill a ring six times.
const ENOUGH: usize = 1536;
/// So much may a process grow by, in KiB: links and connections buffer 1 MiB each, and guests keep
/// 1 MiB of messages, and snapshots of them.
const GROWTH_KIB: u64 = 24 << 10;

/// What the processes of servers use: memory in KiB, and time of processors in ticks.
fn used(cluster: &Cluster) -> Vec<((Role, u16), u64, u64)> {
    let roles = [Role::Host, Role::Guest].into_iter();
    let all = roles.flat_map(|role| cluster.ids().map(move |id| (role, id)));
    let there = all.filter(|(role, id)| cluster.has(*role, *id));
    let measured = there.map(|(role, id)| {
        let read = |what: &str| {
            std::fs::read_to_string(format!("/proc/{}/{what}", cluster.pid(role, id))).unwrap()
        };
        let status = read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib = line.split_whitespace().next().unwrap().parse().unwrap();
        // Fields 14 and 15, behind the name in parentheses.
        let stat = read("stat");
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        ((role, id), kib, ticks)
    });
    measured.collect()
}

/// The sequencer's guest is broken into, and does `harm` again and again while a client sends what
/// fills all rings several times. Returns how many bytes of it its host admitted meanwhile, and how
/// many of its frames it dropped.
fn while_it_does(harm: impl Fn(&mut Attacker) + Sync) -> (u64, u64) {
    let mut cluster = Builder::new()
        .set("ring_bytes", RING_BYTES)
        .set("max_payload_bytes", BYTES)
        .set("retain_bytes", 1 << 20)
        .start();
    // So that it has orders whose MACs are right for its host, and everybody has grown up.
    let mut traffic = Traffic::start_large(&cluster.folder, 0, 8, BYTES);
    traffic.await_more(ENOUGH);
    let victim = cluster.sequencer();
    cluster.kill(Role::Guest, victim);
    let mut attacker = Attacker::attach(&cluster, victim);
    let (stop, at_first) = (AtomicBool::new(false), attacker.counters());
    let start = Instant::now();
    let (before, after) = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                harm(&mut attacker);
            }
        });
        traffic.await_more(ENOUGH / 2);
        let before = used(&cluster);
        traffic.await_more(2 * ENOUGH);
        let after = used(&cluster);
        stop.store(true, Ordering::Relaxed);
        (before, after)
    });
    let at_last = attacker.counters();
    let rise = |counter: usize| at_last[counter] - at_first[counter];
    let dropped = DropReason::ALL.map(Counter::dropped).map(rise).iter().sum::<u64>()
        + rise(Counter::DroppedUnacknowledged as usize);
    let harm = (rise(Counter::AdmittedBytes as usize), dropped);
    let seconds = start.elapsed().as_secs_f64();
    for ((who, kib, ticks), (_, kib_after, ticks_after)) in before.into_iter().zip(after) {
        let (grown, ticks) = (kib_after.saturating_sub(kib), ticks_after - ticks);
        println!("{who:?}: {grown} KiB more, {ticks} ticks in {seconds:.1} s");
        assert!(grown < GROWTH_KIB, "{who:?} grew by {grown} KiB");
    }
    let answers = traffic.finish();
    let others: Vec<u16> = cluster.ids().filter(|id| *id != victim).collect();
    others.iter().for_each(|id| cluster.await_delivered(*id, answers.last()));
    for id in others {
        let status = cluster.status(id);
        assert!(counter(&status, "host_checkpoints") > 4, "rings did not wrap: {status:?}");
    }
    cluster.assert_all_run();
    // It harmed itself: restarted clean, it is as good as the others.
    cluster.restart(Role::Guest, victim);
    let last = Caller::new(&cluster.folder, 1).invoke("the last").order.0;
    cluster.await_delivered(victim, last);
    harm
}

#[test]
fn a_guest_that_never_reads_harms_only_itself() {
    while_it_does(|_| thread::sleep(Duration::from_millis(1)));
}

#[test]
fn a_guest_that_floods_its_write_file_with_what_is_admitted_harms_only_itself() {
    let (admitted, _) = while_it_does(|attacker| {
        let vote = Some(Vote { upto: Batch(1), chain: Default::default() });
        let small = encoded(&Body::Accept(Accept { term: Term(0), vote, checkpoint: None }));
        let orders: Vec<_> = attacker.proposed.iter().take(8).cloned().collect();
        let large = attacker.proposal(0, attacker.batch() + 1, &orders);
        attacker.flood(&[&large, &small]);
    });
    assert!(admitted > 4 * RING_BYTES, "only {admitted} bytes were admitted");
}

#[test]
fn a_guest_that_floods_its_write_file_with_noise_harms_only_itself() {
    let (admitted, dropped) =
        while_it_does(|attacker| attacker.flood(&[&[0x5a; 4096], &[], &[1, 2, 3]]));
    assert_eq!(admitted, 0);
    assert!(dropped > 10_000, "only {dropped} frames were dropped");
}
