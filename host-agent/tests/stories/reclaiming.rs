//! R7 and section 6: full rings, stable checkpoints, reclaiming and jumping.

use host_agent::{Input, PeerFault};
use shared_registers::guest_side::Next;
use shared_registers::host_side::{Counter, StreamFull};
use shared_registers::ids::{Seq, ServerId, Term};
use shared_registers::layout::DropReason;
use shared_registers::words::News;

use crate::world::{World, accept, change, claim, propose};

/// A body of some 3200 bytes.
fn large() -> Vec<u8> {
    propose(0, &[(0, &[1; 1000]), (1, &[2; 1000]), (2, &[3; 1000])])
}

/// Guest 0 writes until its ring is full, and one more frame that waits. Returns how many records
/// the ring holds. Everybody gets them, unless they are cut off.
fn fill(world: &mut World) -> u64 {
    for _ in 0..50 {
        world.write(0, &large());
        world.settle();
        if world.guest(0).stream_full() {
            return world.copied(0, 0);
        }
    }
    panic!("a ring without end");
}

#[test]
fn a_full_ring_goes_on_after_a_checkpoint() {
    let mut world = World::new(3);
    let full = fill(&mut world);
    let cut = [full - 5, 0, 0];
    world.write(1, &claim(1, 7, &cut));
    world.settle();
    assert_eq!(world.copied(0, 0), full, "one claim is none");
    world.write(2, &claim(1, 7, &cut));
    // The frame that waited is looked at by the host whose peer's frame made room for it.
    let (now, mut frame, mut more) = (world.now, Vec::new(), false);
    while world.host(2).next_frame(ServerId(0), &mut frame) {
        more |= world.host(0).step(now, Input::PeerFrame(ServerId(2), &frame)).unwrap().more;
    }
    assert!(more && world.host(0).has_frames() && !world.guest(0).stream_full());
    world.look(0);
    world.settle();
    for i in 0..3 {
        assert_eq!(world.copied_all(i), [full + 1, 1, 1], "host {i}");
        // Of what is stable no more goes than must.
        let first = world.first(i);
        assert!((1..=2).contains(&first[0]) && first[1..] == [0, 0], "host {i}: {first:?}");
        assert_eq!(world.counter(i, Counter::Checkpoints), 1);
    }
    // And full again at the cut, no record of which is gone.
    let again = fill(&mut world);
    assert_eq!((again, world.first(0)[0]), (full + full - 5, full - 5));
}

#[test]
fn what_a_full_peer_refused_is_sent_again_once_a_checkpoint_is_stable() {
    let mut world = World::new(3);
    let full = fill(&mut world);
    // Host 2 hears last of the claims, and so its ring is still full when the others go on.
    let cut = [full, 0, 0];
    for i in [0, 1] {
        world.write(i, &claim(1, 7, &cut));
    }
    assert_eq!(world.copied(0, 0), full, "the own claim waits as all frames do");
    world.write(2, &claim(1, 7, &cut));
    world.send_all(2, 0);
    world.send_all(1, 0);
    world.look(0);
    assert_eq!(world.copied(0, 0), full + 2);
    let (now, mut frame, mut told) = (world.now, Vec::new(), Vec::new());
    while world.host(0).next_frame(ServerId(2), &mut frame) {
        told.extend(world.host(2).step(now, Input::PeerFrame(ServerId(0), &frame)).unwrap().full);
    }
    assert_eq!((told, world.copied(2, 0)), (vec![StreamFull(ServerId(0))], full));
    // It says so; nobody sends what it does not take.
    let before = world.counter(0, Counter::RecordFramesSent);
    world.tick();
    for _ in 0..3 {
        world.send_all(2, 0);
        world.send_all(0, 2);
    }
    assert_eq!(world.counter(0, Counter::RecordFramesSent), before);
    world.settle();
    world.settle();
    assert_eq!(world.copied_all(2), [full + 2, 1, 1]);
    assert_eq!(world.exposed(2), [full + 2, 1, 1]);
}

#[test]
fn claims_of_f_broken_in_guests_reclaim_nothing() {
    let mut world = World::new(5);
    let full = fill(&mut world);
    // Whatever two say, and whatever a third says besides: there are no three of one kind.
    for batch in 0..40 {
        for i in [3, 4] {
            world.write(i, &claim(batch, 6, &[full, 0, batch, 0, 0]));
        }
        world.write(2, &claim(batch, 7, &[full, 0, batch, 0, 0]));
        world.settle();
    }
    assert!(world.exposed(0)[2..].iter().all(|claims| *claims == 40), "all were heard");
    // Nor do three that speak of what they have not seen, or could not have.
    for i in [2, 3, 4] {
        world.write(i, &claim(50, 5, &[full + 1, 0, 0, 0, 0]));
        world.write(i, &claim(51, 5, &[full, 0, 0, 0, u64::MAX]));
    }
    world.settle();
    assert_eq!((world.total(Counter::Checkpoints), world.copied(0, 0)), (0, full));
    for i in 0..5 {
        assert_eq!(world.first(i), [0; 5]);
    }
    // A third correct one that agrees with the first, whatever those two do, is not enough; a
    // third claim of one kind is.
    world.write(1, &claim(60, 7, &[full, 0, 40, 0, 0]));
    world.write(2, &claim(60, 7, &[full, 0, 40, 0, 0]));
    world.settle();
    assert_eq!(world.total(Counter::Checkpoints), 0);
    world.write(3, &claim(60, 7, &[full, 0, 40, 0, 0]));
    world.settle();
    assert_eq!(world.total(Counter::Checkpoints), 5);
}

/// Laps of guest 0's ring, of which host `away` gets nothing. Returns the last stable cut.
pub(crate) fn laps(world: &mut World, away: u16) -> Vec<u64> {
    let mut cut = vec![];
    for batch in 1..=4 {
        fill(world);
        cut = world.exposed(0);
        for i in (1..world.n as u16).filter(|i| *i != away) {
            world.write(i, &claim(batch, 7, &cut));
        }
        world.settle();
        world.look(0);
        world.settle();
    }
    cut
}

#[test]
fn a_host_that_was_away_jumps_and_then_gets_the_rest() {
    let mut world = World::new(5);
    world.write(4, &accept(1));
    world.settle();
    // It misses all CHANGEs.
    (0..4).for_each(|i| world.cut(i, 4));
    for i in 0..4 {
        world.write(i, &change(0));
    }
    world.settle();
    world.write(1, &change(1));
    world.settle();
    world.write(4, &accept(2)); // its own stream goes on
    let cut = laps(&mut world, 4);
    let (here, there) = (world.copied_all(0), world.copied_all(4));
    assert!(world.first(0)[0] > there[0], "else it would just be sent");
    world.connect(4, 1);
    world.settle();
    assert_eq!(world.counter(4, Counter::Jumps), 1);
    assert_eq!(world.copied_all(4)[..4], here[..4]);
    assert_eq!(world.exposed(4)[..4], here[..4]);
    // What it still has of streams that are not so far ahead stays; the own stream is its own.
    assert_eq!(world.first(4)[..4], cut[..4]);
    assert_eq!((world.copied(4, 4), world.first(4)[4]), (2, 0));
    assert_eq!(world.copied(0, 4), 2);
    // Its guest is told, and reads on behind the snapshot that it would have fetched.
    assert!(matches!(world.guest(4).next(ServerId(0)), Next::Reclaimed));
    for writer in 0..4 {
        world.guest(4).seek(ServerId(writer), Seq(cut[usize::from(writer)])).unwrap();
        let read = world.read(4, writer).len() as u64;
        assert_eq!(read, here[usize::from(writer)] - cut[usize::from(writer)]);
    }
    // R1: CHANGEs that it jumped over count, each as far as it went.
    let last = |world: &mut World, i, writer| {
        let (writer, host) = (ServerId(writer), world.host(i).registers());
        host.last_change(writer, host.exposed(writer))
    };
    assert_eq!(last(&mut world, 4, 1), Some(Term(1)));
    assert_eq!(last(&mut world, 4, 3), Some(Term(0)));
    world.write(4, &change(1));
    assert_eq!(world.copied(4, 4), 3);
    // The jump goes on from that checkpoint: all rings turn on, the one that jumped too.
    world.connect_all();
    let before = world.counter(4, Counter::Checkpoints);
    laps(&mut world, 4);
    assert!(world.counter(4, Counter::Checkpoints) > before);
    assert_eq!(world.copied_all(4), world.copied_all(0));
    assert_eq!(world.counter(4, Counter::Jumps), 1);
}

#[test]
fn a_jump_that_brings_nothing_new_changes_nothing_and_one_past_the_own_stream_stops_the_host() {
    let mut world = World::new(5);
    (0..4).for_each(|i| world.cut(i, 4));
    laps(&mut world, 4);
    // Everybody sends it one before it knows.
    (0..4).for_each(|i| world.connect(i, 4));
    (0..4).for_each(|i| assert!(world.send_all(4, i) > 0));
    world.settle();
    assert_eq!(world.counter(4, Counter::Jumps), 1);
    assert_eq!(world.copied_all(4), world.copied_all(0));

    // A host whose file was lost is no host that was away.
    world.crash(0);
    world.servers[0] = world.server(0);
    let (now, mut frame) = (world.now, vec![3]);
    world.connect(0, 1);
    // LENGTHS that say nothing: whatever comes before them is not listened to (R6).
    let mut lengths = vec![1];
    lengths.extend([0; 9 + 12 * 5]);
    world.host(0).step(now, Input::PeerFrame(ServerId(1), &lengths)).unwrap();
    frame.extend([0; 48]);
    for word in [9_u64, 0, 0, 0, 0, 0, 0, 0, 0, 0] {
        frame.extend(word.to_le_bytes());
    }
    let fault = world.host(0).step(now, Input::PeerFrame(ServerId(1), &frame)).unwrap_err();
    assert_eq!(fault, PeerFault::Rollback { theirs: Seq(9), ours: Seq(0) });
}

#[test]
fn a_reclaimed_change_counts_after_a_restart() {
    let mut world = World::new(3);
    for i in 0..3 {
        world.write(i, &change(0));
    }
    world.settle();
    laps(&mut world, 9);
    // The CHANGEs of 1 and 2 are in their rings; that of 0 is gone.
    assert!(world.first(0)[0] > 1);
    for drops in 1..=2 {
        let before = world.copied(0, 0);
        world.write(0, &change(0));
        assert_eq!((world.copied(0, 0), world.dropped(0, DropReason::Change)), (before, drops));
        assert!(world.guest(0).drop_notice().is_some());
        world.servers[0].written -= 1;
        world.crash(0);
        world.restart(0);
        world.connect_all();
    }
    // It closes the own terms below it, and speaks at the others for theirs.
    for i in [1, 0] {
        world.write(i, &change(1));
        world.settle();
    }
    let last = world.copied(0, 0);
    assert_eq!(world.record(2, 0, last), Some(change(1)));
}

#[test]
fn a_restarted_host_finds_its_stable_checkpoint_again() {
    let mut world = World::new(3);
    let cut = laps(&mut world, 9);
    for i in 0..3 {
        world.crash(i);
        world.restart(i);
        assert_eq!(world.counter(i, Counter::Checkpoints), 4, "host {i}");
        assert_eq!(world.guest(i).stable(ServerId(0)), Seq(cut[0]));
        world.connect_all();
    }
    // All of the window is there, and one more lap.
    laps(&mut world, 9);
    assert_eq!(world.copied_all(1), world.copied_all(0));
}

#[test]
fn a_guest_that_reads_nothing_is_told_and_one_that_keeps_up_reads_all() {
    let mut world = World::new(3);
    let mut read = 0;
    for batch in 1..=5 {
        fill(&mut world);
        read += world.read(1, 0).len() as u64;
        assert_eq!(read, world.exposed(1)[0]);
        let cut = world.exposed(1);
        for i in [1, 2] {
            world.write(i, &claim(batch, 7, &cut));
        }
        world.settle();
        world.look(0);
        world.settle();
    }
    assert!(matches!(world.guest(2).next(ServerId(0)), Next::Reclaimed));
    assert!(!world.guest(2).has_news(News::ALL) || world.copied(2, 1) > 0);
    // What is still there it reads whole, from the first on.
    world.guest(2).rewind(ServerId(0));
    let (first, all) = (world.first(2)[0], world.read(2, 0));
    assert_eq!(all.len() as u64, world.exposed(2)[0] - first);
    assert!(all.iter().all(|(_, body)| *body == large()));
    // The slow one has delayed nobody (R7).
    assert_eq!(world.copied_all(0), world.copied_all(2));
}
