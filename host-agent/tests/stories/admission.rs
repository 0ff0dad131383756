//! R1, R2, R3: what enters a stream, and what does not.

use std::sync::atomic::Ordering;

use shared_registers::host_side::Counter;
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{DropReason, read, stream_word};
use shared_registers::words::WordsMut;

use crate::world::{MAX_PAYLOAD, World, accept, change, propose};

/// Writes one frame that must be dropped for `reason`; returns the orders that were named.
fn dropped(world: &mut World, body: &[u8], reason: DropReason) -> Vec<usize> {
    let before = (world.copied(0, 0), world.dropped(0, reason));
    world.write(0, body);
    world.servers[0].written -= 1;
    let notice = world.guest(0).drop_notice().expect("a notice");
    assert_eq!(notice.reason, Some(reason));
    assert_eq!(notice.seq, Seq(before.0 + 1));
    assert_eq!((world.copied(0, 0), world.dropped(0, reason)), (before.0, before.1 + 1));
    notice.orders
}

#[test]
fn well_formed_and_authentic_frames_enter_and_nothing_else() {
    let mut world = World::new(3);
    world.write(0, &propose(0, &[(0, b"a"), (2, &[7; MAX_PAYLOAD])]));
    world.write(0, &accept(1));
    world.write(0, &change(0));
    let counts = [Counter::Proposes, Counter::Accepts, Counter::Changes];
    assert_eq!(counts.map(|counter| world.counter(0, counter)), [1, 1, 1]);

    // R1: not of the shape.
    assert!(dropped(&mut world, b"", DropReason::Malformed).is_empty());
    assert!(dropped(&mut world, b"no body", DropReason::Malformed).is_empty());
    let mut tail = accept(2);
    tail.push(0);
    dropped(&mut world, &tail, DropReason::Malformed);
    // R1: each order's client, size and MAC; all that fail are named.
    let unknown = propose(0, &[(0, b"a"), (3, b"b")]);
    assert_eq!(dropped(&mut world, &unknown, DropReason::UnknownClient), [1]);
    let large = propose(0, &[(0, &[7; MAX_PAYLOAD + 1]), (1, b"b")]);
    assert_eq!(dropped(&mut world, &large, DropReason::TooLarge), [0]);
    let foreign = propose(1, &[(0, b"a")]);
    assert_eq!(dropped(&mut world, &foreign, DropReason::OrderMac), [0]);

    world.write(0, &accept(3));
    assert_eq!(world.copied(0, 0), 4);
}

#[test]
fn every_order_whose_mac_fails_is_named_and_the_rest_goes_through() {
    let mut world = World::new(3);
    let mut body = propose(0, &[(0, b"one"), (1, b"two"), (2, b"three"), (0, b"four")]);
    for payload in [&b"two"[..], b"four"] {
        let at = body.windows(payload.len()).position(|w| w == payload).unwrap();
        body[at] ^= 1;
    }
    assert_eq!(dropped(&mut world, &body, DropReason::OrderMac), [1, 3]);
    assert_eq!(world.counter(0, Counter::OrderMacFailed), 2);
    world.write(0, &propose(0, &[(0, b"one")]));
    assert_eq!(world.copied(0, 0), 1);
}

#[test]
fn after_a_drop_everything_is_dropped_until_it_is_acknowledged() {
    let mut world = World::new(3);
    // Pipelined: the guest does not know yet that the first one fails.
    world.write_only(0, b"bad");
    world.write_only(0, &accept(1));
    world.write_only(0, b"bad too");
    world.look(0);
    assert_eq!(world.copied(0, 0), 0);
    assert_eq!(world.host(0).registers().drops(), 1);
    assert_eq!(world.counter(0, Counter::DroppedUnacknowledged), 2);
    // A frame with the right number that does not acknowledge is dropped as well.
    world.servers[0].written = 0;
    world.write(0, &accept(1));
    assert_eq!((world.copied(0, 0), world.counter(0, Counter::DroppedUnacknowledged)), (0, 3));

    assert_eq!(world.guest(0).drop_notice().unwrap().drops, 1);
    world.servers[0].written = 0;
    world.write(0, &accept(1));
    assert_eq!((world.copied(0, 0), world.host(0).registers().drops()), (1, 1));
}

#[test]
fn a_frame_out_of_its_place_is_dropped_and_one_admitted_before_is_passed_over() {
    let mut world = World::new(3);
    world.write(0, &accept(1));
    world.servers[0].written = 0;
    world.write(0, &accept(1)); // R3: at most once
    assert_eq!((world.copied(0, 0), world.counter(0, Counter::DroppedStale)), (1, 1));
    assert!(world.guest(0).drop_notice().is_none(), "a stale frame needs no notice");

    world.servers[0].written = 2;
    world.write(0, &accept(2));
    let notice = world.guest(0).drop_notice().unwrap();
    assert_eq!((notice.reason, notice.seq), (Some(DropReason::Number), Seq(2)));
    world.servers[0].written = 1;
    world.write(0, &accept(2));
    assert_eq!(world.copied(0, 0), 2);
}

#[test]
fn garbage_in_the_write_file_is_told_and_skipped() {
    let mut world = World::new(3);
    world.write_only(0, &accept(1));
    let frames = world.geometry(0).frame_ring();
    world.servers[0].write.store(frames.base, 0x1234, Ordering::SeqCst);
    world.look(0);
    let notice = world.guest(0).drop_notice().unwrap();
    assert_eq!((notice.reason, notice.seq), (Some(DropReason::Framing), Seq(1)));
    world.servers[0].written = 0;
    world.write(0, &accept(1));
    assert_eq!(world.copied(0, 0), 1);
}

#[test]
fn a_change_needs_f_plus_1_exposed_ones_of_the_term_before() {
    let mut world = World::new(3);
    dropped(&mut world, &change(1), DropReason::Change); // nobody has left term 0
    world.write(0, &change(0));
    dropped(&mut world, &change(0), DropReason::Change); // not above its last
    dropped(&mut world, &change(1), DropReason::Change); // the own one alone is not f+1
    world.write(1, &change(0));
    dropped(&mut world, &change(1), DropReason::Change); // written, and not here yet
    world.settle();
    dropped(&mut world, &change(2), DropReason::Change);
    world.write(0, &change(1));
    // A host that restarts knows all that again from the streams.
    world.settle();
    world.crash(0);
    world.restart(0);
    dropped(&mut world, &change(1), DropReason::Change);
    dropped(&mut world, &change(2), DropReason::Change);
    world.connect(0, 1);
    world.write(1, &change(1));
    world.settle();
    world.write(0, &change(2));
    assert_eq!(world.copied(0, 0), 3);
}

#[test]
fn a_host_that_restarts_knows_the_changes_before_anything_new_comes() {
    // R1. When it forgot them, a guest could write a CHANGE twice, and one whose sequencer was down
    // could never leave its term: nothing new came any more.
    let mut world = World::new(3);
    world.write(0, &change(0));
    world.write(1, &change(0));
    world.settle();
    world.crash(0);
    world.restart(0);
    dropped(&mut world, &change(0), DropReason::Change);
    world.crash(0);
    world.restart(0);
    world.write(0, &change(1));
    assert_eq!(world.copied(0, 0), 2);
}

#[test]
fn a_change_that_is_here_and_hidden_allows_nothing() {
    // R1 counts what the guest may see (R4), not what the host holds.
    let mut world = World::new(3);
    world.write(1, &accept(1));
    world.send_all(1, 2);
    world.write(2, &change(0));
    world.send_all(2, 0); // names server 1's record, which host 0 lacks
    world.write(0, &change(0));
    assert_eq!(world.copied(0, 2), 1);
    assert_eq!(world.queues(0), [1, 1, 1]);
    dropped(&mut world, &change(1), DropReason::Change);
    world.send_all(1, 0);
    assert_eq!(world.queues(0), [1, 0, 1]);
    world.write(0, &change(1));
    assert_eq!((world.copied(0, 0), world.queues(0)), (2, [2, 0, 2]));
}

#[test]
fn a_guest_cannot_write_as_another() {
    // R2: the same frame through two hosts stands in two streams, each its host's.
    let mut world = World::new(3);
    for i in [1, 2] {
        world.write(i, &accept(7));
    }
    world.settle();
    for reader in 0..3 {
        let counts = [0, 1, 2].map(|writer| world.read(reader, writer).len());
        assert_eq!(counts, [0, 1, 1]);
    }
}

#[test]
fn a_killed_host_goes_on_where_it_was_and_admits_no_frame_twice() {
    let mut world = World::new(3);
    world.write(0, &accept(1));
    let consumed = world.consumed(0);
    world.write(0, &accept(2));
    world.crash(0);
    // Killed after the admission and before the frame counted as taken.
    world.poke(0, read::CONSUMED, |_| consumed);
    // And between the two stores of either end: R6 takes the counts.
    world.poke(0, stream_word(ServerId(0), read::COPIED_AT), |at| at + 64);
    world.poke(0, stream_word(ServerId(0), read::EXPOSED_AT), |_| 0);
    world.restart(0);
    world.look(0);
    assert_eq!((world.copied(0, 0), world.counter(0, Counter::DroppedStale)), (2, 1));
    world.write(0, &accept(3));
    world.connect(0, 1);
    world.connect(0, 2);
    world.settle();
    for reader in 0..3 {
        let bodies: Vec<_> = world.read(reader, 0).into_iter().map(|(_, body)| body).collect();
        assert_eq!(bodies, [accept(1), accept(2), accept(3)]);
    }
}

#[test]
fn a_drop_outlives_its_host() {
    let mut world = World::new(3);
    let consumed = world.consumed(0);
    world.write_only(0, b"bad");
    world.write_only(0, &accept(1));
    world.look(0);
    world.crash(0);
    world.poke(0, read::CONSUMED, |_| consumed);
    world.restart(0);
    world.look(0);
    assert_eq!((world.copied(0, 0), world.host(0).registers().drops()), (0, 1));
    assert_eq!(world.counter(0, Counter::DroppedUnacknowledged), 3);
}
