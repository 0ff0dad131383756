//! R6: hosts that lost, or may have lost, records of their own streams.

use host_agent::{Input, PeerFault};
use shared_registers::guest_side::GuestRegisters;
use shared_registers::host_side::{Counter, HostRegisters};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{read, stream_word};
use shared_registers::record::Record;

use crate::reclaiming::laps;
use crate::world::{World, accept};

/// Server `i` writes as many records; all get them.
fn write_some(world: &mut World, i: u16, count: u64) {
    for _ in 0..count {
        let upto = world.servers[usize::from(i)].written + 1;
        world.write(i, &accept(upto));
    }
    world.settle();
}

/// Its guest starts again (P6): it goes on behind what its host holds.
fn new_guest(world: &mut World, i: u16) {
    let files = world.files(i);
    let geometry = world.geometry(i);
    let copied = world.copied(i, i);
    let server = &mut world.servers[usize::from(i)];
    server.guest = GuestRegisters::attach(geometry, files.0, files.1).unwrap();
    server.written = copied;
    assert!(server.guest.drained());
}

fn incarnation(world: &mut World, i: u16, of: u16) -> u32 {
    world.host(i).registers().floor(ServerId(of))
}

/// Host 0 has lost its file, in which two records of its own were, and host 4 is away.
fn waiting_for_4() -> World {
    let mut world = World::new(5);
    write_some(&mut world, 0, 2);
    world.crash(4);
    world.replace(0);
    world.exchanges(3);
    assert_eq!(world.waits(0), Some(vec![4]));
    world
}

/// R3: no two hosts hold different records in one place.
pub(crate) fn assert_one_history(world: &World) {
    for writer in ServerId::all(world.n) {
        let mut known: Vec<(u64, Vec<u8>)> = Vec::new();
        for host in world.servers.iter().filter_map(|server| server.host.as_ref()) {
            let registers = host.registers();
            for seq in registers.first(writer).0 + 1..=registers.copied(writer).0 {
                let mut bytes = Vec::new();
                assert!(registers.record(writer, Seq(seq), &mut bytes));
                match known.iter().find(|(at, _)| *at == seq) {
                    Some((_, other)) => assert_eq!(*other, bytes, "record {seq} of {writer} forks"),
                    None => known.push((seq, bytes)),
                }
            }
        }
    }
}

#[test]
fn a_lost_file_comes_back_from_the_others_and_its_stream_goes_on() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 5);
    write_some(&mut world, 1, 3);
    world.crash(0);
    world.lose(0);
    world.write_only(0, &accept(1)); // What a guest writes now, its host takes nothing of.
    assert_eq!(world.look(0), Default::default());
    assert_eq!((world.waits(0), world.copied(0, 0)), (Some(vec![1, 2]), 0));
    world.join(0);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.copied(0, 0), world.exposed(0)), (None, 5, vec![5, 3, 0]));
    assert_eq!(incarnation(&mut world, 0, 0), 2);
    assert_eq!(incarnation(&mut world, 1, 0), 2);
    // R3: its frame was meant for record 1, which there is.
    world.look(0);
    assert_eq!((world.copied(0, 0), world.counter(0, Counter::DroppedStale)), (5, 1));
    new_guest(&mut world, 0);
    write_some(&mut world, 0, 1);
    assert_eq!(world.exposed(2), [6, 3, 0]);
    let mut bytes = Vec::new();
    assert!(world.host(2).registers().record(ServerId(0), Seq(6), &mut bytes));
    assert_eq!(Record::decode(&bytes, 3).unwrap().stamp.incarnation, 2);
    assert_one_history(&world);
}

#[test]
fn it_waits_for_all_others_says_for_whom_and_shows_meanwhile_what_it_gets() {
    let mut world = waiting_for_4();
    // Hosts that wait for nobody go on, and it serves their records.
    write_some(&mut world, 1, 3);
    assert_eq!(world.exposed(0), [2, 3, 0, 0, 0]);
    assert!(!world.host(0).has_frames());
    assert_eq!(world.guest(0).recovering(), Some(1 << 4));
    world.restart(4);
    world.join(4);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.guest(0).recovering()), (None, None));
}

#[test]
fn the_longest_answer_is_adopted() {
    let mut world = World::new(5);
    write_some(&mut world, 0, 2);
    world.cut(0, 1);
    world.cut(0, 2);
    world.cut(0, 3);
    world.write(0, &accept(3));
    world.send_all(0, 4);
    world.crash(0);
    world.crash(4); // Host 4 alone has record 3, and told nobody.
    world.lose(0);
    world.join(0);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.copied(0, 0)), (Some(vec![4]), 2));
    world.restart(4);
    world.join(4);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 3));
    for i in 0..5 {
        assert_eq!(world.copied(i, 0), 3, "host {i}");
    }
    assert_one_history(&world);
}

#[test]
fn what_a_host_kept_of_its_own_stream_counts_as_its_own_answer() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 2);
    world.cut(0, 1);
    world.cut(0, 2);
    world.write(0, &accept(3)); // Nobody else has it.
    world.crash(0);
    world.recover(0);
    assert_eq!(world.copied(0, 0), 3);
    world.join(0);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.copied(2, 0)), (None, 3));
}

#[test]
fn a_damaged_record_cuts_its_stream_there_and_no_bytes_behind_it_come_back() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 5);
    write_some(&mut world, 1, 5);
    world.crash(0);
    for writer in 0..2 {
        let ring = world.geometry(0).stream_ring(ServerId(writer));
        // The third record: all are of one size.
        let end = world.peek(0, stream_word(ServerId(writer), read::COPIED_AT));
        world.poke(0, ring.base + (end / 5 * 2 / 8) as usize + 8, |word| word ^ 1);
    }
    let (files, geometry) = (world.files(0), world.geometry(0));
    let reopened = HostRegisters::reopen(geometry, files.0, files.1);
    let error = reopened.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("damaged record: number 3 of stream 0"), "{error}");
    world.recover(0);
    assert_eq!((world.copied(0, 0), world.copied(0, 1)), (2, 2));
    for writer in 0..2 {
        let ring = world.geometry(0).stream_ring(ServerId(writer));
        let end = world.peek(0, stream_word(ServerId(writer), read::COPIED_AT)) as usize / 8;
        let mut behind = ring.base + end..ring.base + (ring.bytes / 8) as usize;
        assert!(end > 0 && behind.all(|i| world.peek(0, i) == 0));
    }
    world.join(0);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.exposed(0)), (None, vec![5, 5, 0]));
    assert_one_history(&world);
}

#[test]
fn nothing_of_an_earlier_life_is_taken_once_it_was_asked_about() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 2);
    // The earlier life hangs, with a record that nobody has, and frames of it on their way.
    world.write(0, &accept(3));
    let now = world.now;
    let mut late = Vec::new();
    assert!(world.host(0).next_frame(ServerId(1), &mut late));
    let files = world.files(0);
    world.replace(0);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 2));
    // Its connection is another: it says first who it is.
    let mut zombie = world.zombie(0, files);
    zombie.step(now, Input::PeerUp(ServerId(1))).unwrap();
    world.host(1).step(now, Input::PeerUp(ServerId(0))).unwrap();
    let mut lengths = Vec::new();
    assert!(zombie.next_frame(ServerId(1), &mut lengths));
    world.host(1).step(now, Input::PeerFrame(ServerId(0), &lengths)).unwrap();
    world.host(1).step(now, Input::PeerFrame(ServerId(0), &late)).unwrap();
    assert_eq!((world.copied(1, 0), world.counter(1, Counter::EarlierIncarnation)), (2, 1));
    // And is told that it is over.
    let mut told = Vec::new();
    assert!(world.host(1).next_frame(ServerId(0), &mut told));
    let fault = zombie.step(now, Input::PeerFrame(ServerId(1), &told)).unwrap_err();
    assert_eq!(fault, PeerFault::Over { floor: 2 });
}

#[test]
fn a_late_record_that_comes_before_the_answer_is_answered_with() {
    let mut world = World::new(5);
    write_some(&mut world, 0, 2);
    world.write(0, &accept(3));
    let (now, mut late) = (world.now, Vec::new());
    assert!(world.host(0).next_frame(ServerId(1), &mut late));
    // Host 1 still holds the connection of host 0's earlier life; the others have a new one.
    world.servers[0].host = None;
    for other in 2..5 {
        world.cut(0, other);
    }
    world.lose(0);
    for other in 2..5 {
        world.connect(0, other);
    }
    world.exchanges(2);
    assert_eq!((world.waits(0), world.copied(0, 0)), (Some(vec![1]), 2));
    world.host(1).step(now, Input::PeerFrame(ServerId(0), &late)).unwrap();
    world.connect(0, 1);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 3));
    assert_one_history(&world);
}

#[test]
fn an_answer_counts_only_if_it_was_given_to_this_life() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 2);
    world.replace(0);
    let round = |world: &mut World| {
        world.tick();
        for other in [1, 2] {
            world.send_all(other, 0);
        }
    };
    for other in [1, 2] {
        world.send_all(0, other);
    }
    // First all say which incarnations there were. That is no promise to the next one yet: they
    // have not heard of it, and may take what comes from the one before.
    for _ in 0..3 {
        round(&mut world);
        assert_eq!(world.waits(0), Some(vec![1, 2]));
    }
    for other in [1, 2] {
        world.send_all(0, other);
        round(&mut world);
    }
    world.settle();
    assert_eq!(world.waits(0), None);
}

#[test]
fn what_third_hosts_hold_is_handed_over_while_one_recovers() {
    let mut world = World::new(5);
    world.cut(0, 3);
    world.cut(0, 4);
    for (a, b) in [(1, 3), (1, 4), (2, 3), (2, 4)] {
        world.cut(a, b);
    }
    world.write(0, &accept(1));
    world.settle();
    assert_eq!((world.copied(1, 0), world.copied(3, 0)), (1, 0));
    world.crash(0);
    world.crash(4);
    world.lose(0);
    world.join(0);
    world.exchanges(3);
    assert_eq!(world.waits(0), Some(vec![4]));
    // Whoever answered still gets the record from a third host: it may be needed to go on.
    world.connect(1, 3);
    world.exchanges(2);
    assert_eq!(world.copied(3, 0), 1);
    world.restart(4);
    world.join(4);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 1));
    assert_one_history(&world);
}

#[test]
fn several_hosts_recover_at_once() {
    for lost in [vec![0, 1], vec![0, 1, 2], vec![2, 4], vec![0, 1, 2, 3, 4]] {
        let mut world = World::new(5);
        for i in 0..5 {
            write_some(&mut world, i, 3);
        }
        for i in &lost {
            world.crash(*i);
        }
        for i in &lost {
            // All of them, as after a power failure: what is on their disks is all that there is.
            if lost.len() == 5 { world.recover(*i) } else { world.lose(*i) }
        }
        for i in &lost {
            world.join(*i);
        }
        world.exchanges(5);
        for i in 0..5 {
            assert_eq!((i, world.waits(i)), (i, None), "{lost:?}");
            assert_eq!(world.exposed(i), vec![3; 5], "{lost:?}");
        }
        assert_one_history(&world);
    }
}

#[test]
fn an_answer_counts_only_if_it_knows_of_anothers_loss() {
    let mut world = World::new(5);
    write_some(&mut world, 0, 2);
    // Host 4 alone has record 3. A frame with it is under way to host 3, ...
    for other in 1..4 {
        world.cut(0, other);
        world.cut(other, 4);
    }
    world.write(0, &accept(3));
    world.send_all(0, 4);
    world.connect(3, 4);
    world.send_all(3, 4);
    let mut late = Vec::new();
    while world.host(4).next_frame(ServerId(3), &mut late) && late[0] != 2 {}
    assert_eq!(late[0], 2, "a record");
    // ... and both lose their files.
    let files = world.files(4);
    world.crash(0);
    world.crash(4);
    world.lose(0);
    world.join(0);
    world.lose(4);
    for other in 0..3 {
        world.connect(4, other);
    }
    world.exchanges(4);
    // Host 4 has not asked host 3 yet, so what it says itself does not count, nor what host 3 says.
    assert_eq!((world.waits(0), world.waits(4)), (Some(vec![4]), Some(vec![3])));
    world.connect(3, 4);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.waits(4), world.copied(0, 0)), (None, None, 2));
    // The earlier life of host 4 comes too late.
    let (now, mut said) = (world.now, Vec::new());
    let mut zombie = world.zombie(4, files);
    zombie.step(now, Input::PeerUp(ServerId(3))).unwrap();
    world.host(3).step(now, Input::PeerUp(ServerId(4))).unwrap();
    assert!(zombie.next_frame(ServerId(3), &mut said));
    for frame in [said, late] {
        world.host(3).step(now, Input::PeerFrame(ServerId(4), &frame)).unwrap();
    }
    assert_eq!((world.copied(3, 0), world.counter(3, Counter::EarlierIncarnation)), (2, 1));
    assert_one_history(&world);
}

#[test]
fn nobody_waits_for_a_retired_host_and_nobody_listens_to_it() {
    let mut world = waiting_for_4();
    // One host is told by its operator; the others hear of it.
    let now = world.now;
    world.host(2).step(now, Input::Floor(ServerId(4), 1)).unwrap();
    world.settle();
    world.exchanges(3);
    assert_eq!(world.waits(0), None);
    // It comes back with its old files.
    world.restart(4);
    world.join(4);
    let (mut told, mut said) = (Vec::new(), Vec::new());
    assert!(world.host(4).next_frame(ServerId(1), &mut said));
    world.host(1).step(now, Input::PeerFrame(ServerId(4), &said)).unwrap();
    assert!(world.host(1).next_frame(ServerId(4), &mut told));
    let fault = world.host(4).step(now, Input::PeerFrame(ServerId(1), &told)).unwrap_err();
    assert_eq!(fault, PeerFault::Over { floor: 1 });
    // And with none: then it is not retired any more.
    world.replace(4);
    world.exchanges(4);
    assert_eq!((world.waits(4), incarnation(&mut world, 0, 4)), (None, 2));
    new_guest(&mut world, 4);
    write_some(&mut world, 4, 1);
    assert_eq!(world.exposed(1)[4], 1);
    // Its old retirement says nothing of its new incarnation.
    world.host(2).step(now, Input::Floor(ServerId(4), 1)).unwrap();
    assert_eq!(incarnation(&mut world, 2, 4), 2);
}

#[test]
fn a_host_that_is_killed_as_it_recovers_recovers_again() {
    let mut world = World::new(3);
    write_some(&mut world, 0, 4);
    world.crash(0);
    world.lose(0);
    world.connect(0, 1);
    world.exchanges(3);
    assert_eq!((world.waits(0), world.copied(0, 0)), (Some(vec![2]), 4));
    world.crash(0);
    let (files, geometry) = (world.files(0), world.geometry(0));
    let again = HostRegisters::reopen(geometry, files.0, files.1);
    assert!(again.is_err_and(|error| error.to_string().contains("not recovered to the end")));
    world.recover(0);
    world.join(0);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 4));
    world.crash(0);
    world.restart(0);
    world.join(0);
    world.exchanges(1);
    assert_eq!(world.waits(0), None);
}

#[test]
fn what_others_have_reclaimed_of_the_own_stream_is_jumped_over() {
    let mut world = World::new(5);
    laps(&mut world, 4);
    world.replace(0);
    world.exchanges(6);
    let own = world.copied(1, 0);
    assert_eq!((world.waits(0), world.copied_all(0)), (None, world.copied_all(1)));
    assert!(world.first(0)[0] > 0 && world.counter(0, Counter::Jumps) > 0);
    new_guest(&mut world, 0);
    write_some(&mut world, 0, 1);
    assert_eq!(world.copied(2, 0), own + 1);
    assert_one_history(&world);
}

#[test]
fn a_damaged_stream_that_others_have_reclaimed_is_cut_and_jumped_over() {
    // Its own stream, and a third host's.
    for host in [0, 2] {
        let mut world = World::new(5);
        laps(&mut world, 4);
        world.crash(host);
        let ring = world.geometry(host).stream_ring(ServerId(0));
        // All over the ring: nothing of the stream is left.
        for word in 0..(ring.bytes / 8 / 16) as usize {
            world.poke(host, ring.base + 16 * word + 5, |word| word ^ 1);
        }
        world.recover(host);
        assert_eq!(world.copied(host, 0), 0);
        world.join(host);
        world.exchanges(8);
        assert_eq!((world.waits(host), world.copied_all(host)), (None, world.copied_all(1)));
        assert!(world.counter(host, Counter::Jumps) > 0);
        assert_one_history(&world);
    }
}
