//! R4, R5, R7, R8: who gets what, and when its guest may see it.

use host_agent::{Input, PeerFault};
use shared_registers::host_side::{Counter, StreamFull};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::LinkState;
use shared_registers::words::News;

use crate::world::{EXCHANGE, World, accept, change, propose};

#[test]
fn a_record_is_hidden_until_its_causal_past_is_exposed() {
    let mut world = World::new(3);
    world.write(0, &accept(1));
    world.send_all(0, 1);
    world.write(1, &accept(2)); // has seen it
    world.send_all(1, 2);
    assert_eq!((world.copied(2, 1), world.exposed(2)), (1, vec![0, 0, 0]));
    assert!(world.read(2, 1).is_empty());
    // R4: `seen` is what was exposed, not what was copied.
    world.write(2, &accept(3));
    assert_eq!(world.read(2, 2)[0].0, [0, 0, 0]);

    world.send_all(0, 2);
    assert_eq!(world.exposed(2), [1, 1, 1]);
    assert_eq!(world.read(2, 1)[0].0, [1, 0, 0]);
    world.write(2, &accept(4));
    assert_eq!(world.read(2, 2)[0].0, [1, 1, 1]);
}

#[test]
fn a_hidden_record_hides_what_has_seen_it() {
    let mut world = World::new(5);
    world.write(0, &accept(1));
    world.send_all(0, 1);
    world.write(1, &accept(2)); // has seen server 0's
    world.send_all(0, 2);
    world.send_all(1, 2);
    world.write(2, &accept(3)); // has seen both
    world.send_all(1, 3);
    world.send_all(2, 3);
    // Server 1's record is copied, yet hidden for want of server 0's: so server 2's is hidden too.
    assert_eq!((world.copied(3, 1), world.copied(3, 2)), (1, 1));
    assert_eq!(world.exposed(3), [0, 0, 0, 0, 0]);
    world.send_all(0, 3);
    assert_eq!(world.exposed(3), [1, 1, 1, 0, 0]);
}

#[test]
fn in_the_normal_case_every_record_goes_to_every_host_exactly_once() {
    for n in [3, 5] {
        let mut world = World::new(n);
        for round in 1..=40 {
            for i in 0..n as u16 {
                world.write(i, &accept(round));
                // Lengths are exchanged while records are on their way to some hosts only.
                world.send_all(i, (i + 1) % n as u16);
            }
            world.tick();
            for i in 0..n as u16 {
                world.send_all((i + 1) % n as u16, i);
            }
            world.settle();
        }
        let records = 40 * n as u64;
        assert_eq!(world.total(Counter::RecordFramesSent), records * (n as u64 - 1));
        assert_eq!(world.total(Counter::RecordsDuplicate), 0);
        assert_eq!(world.total(Counter::RecordsOutOfOrder), 0);
        for i in 0..n as u16 {
            assert_eq!(world.exposed(i), vec![40; n]);
        }
    }
}

#[test]
fn what_reached_one_host_before_its_writers_host_died_reaches_all() {
    let mut world = World::new(5);
    for upto in 1..=3 {
        world.write(0, &accept(upto));
    }
    world.send(0, 1);
    world.send(0, 1);
    world.crash(0);
    world.settle();
    for i in 1..5 {
        assert_eq!(world.read(i, 0).len(), 2, "host {i}");
    }
    // Its host comes back: the third was admitted, so it is in everyone's stream.
    world.restart(0);
    world.connect(0, 3);
    world.settle();
    for i in 0..5 {
        assert_eq!(world.copied(i, 0), 3, "host {i}");
    }
}

#[test]
fn a_cut_link_is_gone_round_and_made_good() {
    let mut world = World::new(3);
    world.cut(0, 2);
    world.settle();
    for upto in 1..=10 {
        world.write(0, &accept(upto));
        world.settle();
        // Host 1 hands it over at once: host 2 says that it is not connected to host 0.
        assert_eq!(world.copied(2, 0), upto);
    }
    world.write(2, &accept(1));
    world.settle();
    assert_eq!(world.copied(0, 2), 1);
    // Connected again: the detour ends, and nothing is sent that is here.
    world.connect(0, 2);
    world.settle();
    let before = world.counter(1, Counter::RecordFramesSent);
    world.write(0, &accept(11));
    world.settle();
    world.tick();
    world.settle();
    assert_eq!(world.counter(1, Counter::RecordFramesSent), before);
    assert_eq!((world.copied(2, 0), world.total(Counter::RecordsDuplicate)), (11, 0));
}

#[test]
fn a_reconnected_host_gets_what_it_missed() {
    let mut world = World::apart(3);
    for upto in 1..=3 {
        world.write(0, &accept(upto));
    }
    world.connect(0, 1);
    assert_eq!(world.send_all(0, 1), 1, "nothing before the peer's lengths");
    world.settle();
    assert_eq!(world.copied(1, 0), 3);
    world.cut(0, 1);
    world.write(0, &accept(4));
    world.connect(0, 1);
    world.settle();
    assert_eq!((world.copied(1, 0), world.counter(1, Counter::RecordsDuplicate)), (4, 0));
}

#[test]
fn a_link_that_stalls_unnoticed_is_gone_round_after_one_exchange() {
    let mut world = World::new(3);
    world.write(0, &accept(1));
    world.send_all(0, 1); // and never to 2, though both think that they are connected
    let exchange = |world: &mut World| {
        world.tick();
        world.send_all(2, 1);
        world.send_all(1, 2);
    };
    exchange(&mut world);
    assert_eq!(world.copied(2, 0), 0, "it may be on its way");
    exchange(&mut world);
    assert_eq!(world.copied(2, 0), 1);
    exchange(&mut world);
    assert_eq!(world.counter(1, Counter::RecordFramesSent), 1, "and once only");
    // When it comes from its writer after all, it is known.
    world.send_all(0, 2);
    assert_eq!(world.counter(2, Counter::RecordsDuplicate), 1);
}

#[test]
fn a_slow_peer_holds_back_nobody_else() {
    let mut world = World::new(3);
    for upto in 1..=100 {
        world.write(0, &accept(upto));
        world.send_all(0, 1);
        assert_eq!(world.copied(1, 0), upto);
    }
    // Nothing waits for host 2 but a number: it gets the records when it has time.
    assert_eq!(world.send_all(0, 2), 100);
    assert_eq!(world.exposed(2), [100, 0, 0]);
}

#[test]
fn a_full_ring_is_loud_and_only_its_writer_waits() {
    let mut world = World::new(3);
    let body = propose(0, &[(0, &[1; 1000]), (1, &[2; 1000]), (2, &[3; 1000])]);
    let mut told = Vec::new();
    for _ in 0..25 {
        world.write_only(0, &body);
        told.extend(world.look(0).full);
        world.settle();
        if !told.is_empty() {
            break;
        }
    }
    assert_eq!(told, [StreamFull(ServerId(0))]);
    let admitted = world.copied(0, 0);
    assert!(admitted > 10 && world.guest(0).stream_full());
    // The frame stays where it is, nothing is dropped, and the host does not turn in circles.
    assert!(!world.guest(0).drained() && !world.host(0).has_frames());
    assert_eq!(world.look(0), Default::default());
    assert_eq!(world.host(0).registers().drops(), 0);
    for i in [1, 2] {
        world.write(i, &accept(1));
    }
    world.settle();
    assert_eq!(world.exposed(0), [admitted, 1, 1]);
    assert_eq!(world.exposed(2), [admitted, 1, 1]);
}

#[test]
fn a_peers_ring_that_is_full_is_told_once_and_nothing_goes_in_circles() {
    // Rings differ only if the configuration does; the host says so instead of losing records.
    let mut world = World::apart(3);
    world.ring_bytes = 1 << 10;
    let small = world.server(1);
    world.servers[1] = small;
    world.connect(0, 1);
    world.settle();
    let mut told = Vec::new();
    for upto in 1..=20 {
        world.write(0, &accept(upto));
        let (now, mut frame) = (world.now, Vec::new());
        while world.host(0).next_frame(ServerId(1), &mut frame) {
            let input = Input::PeerFrame(ServerId(0), &frame);
            told.extend(world.host(1).step(now, input).unwrap().full);
        }
    }
    assert_eq!(told, [StreamFull(ServerId(0))]);
    assert_eq!(world.counter(0, Counter::RecordFramesSent), 20);
    world.tick();
    world.settle();
    world.tick();
    world.settle();
    assert_eq!(world.counter(0, Counter::RecordFramesSent), 20);
}

#[test]
fn the_guest_is_told_of_the_other_hosts() {
    let mut world = World::apart(3);
    let hint = |world: &mut World, of: usize| world.guest(0).hints().nth(of).unwrap();
    assert_eq!(hint(&mut world, 1).state, LinkState::Never);
    world.tick();
    assert_eq!(hint(&mut world, 1).silence, EXCHANGE);
    world.connect(0, 1);
    assert_eq!(
        (hint(&mut world, 1).state, hint(&mut world, 1).silence),
        (LinkState::Up, Micros(0))
    );
    // Frames of any kind are a sign of life; a link that is up and silent shows.
    world.settle();
    world.tick();
    world.tick();
    assert_eq!(hint(&mut world, 1).silence, Micros(2 * EXCHANGE.0));
    world.cut(0, 1);
    assert_eq!(hint(&mut world, 1).state, LinkState::Lost);
    world.tick();
    assert_eq!(hint(&mut world, 1).silence, Micros(3 * EXCHANGE.0));
    assert_eq!(hint(&mut world, 2).state, LinkState::Never);
}

#[test]
fn r8_a_host_whose_guest_has_left_is_shown_as_lost_until_one_is_there_again() {
    let mut world = World::new(3);
    let state = |world: &mut World| world.guest(0).hints().nth(1).unwrap().state;
    let bell = |world: &mut World, here| {
        let now = world.now;
        world.host(1).step(now, Input::AtDoorbell(here)).unwrap();
        world.settle();
    };
    world.settle();
    assert_eq!(state(&mut world), LinkState::Up, "none was there yet: it may be about to start");
    bell(&mut world, true);
    assert_eq!(state(&mut world), LinkState::Up);
    world.host(0).must_ring();
    world.guest(0).doze(News::ELSE);
    bell(&mut world, false);
    assert_eq!(state(&mut world), LinkState::Lost);
    assert!(world.host(0).must_ring(), "and it is rung for that");
    // A new connection begins anew, and says it again.
    world.cut(0, 1);
    world.connect(0, 1);
    assert_eq!(state(&mut world), LinkState::Up);
    world.settle();
    assert_eq!(state(&mut world), LinkState::Lost);
    bell(&mut world, true);
    assert_eq!(state(&mut world), LinkState::Up);
    assert_eq!(
        world.guest(0).hints().nth(2).unwrap().state,
        LinkState::Up,
        "the other's was there"
    );
}

#[test]
fn a_host_that_lost_its_own_records_stops_rather_than_fork_its_history() {
    let mut world = World::new(3);
    world.write(0, &change(0));
    world.settle();
    world.crash(0);
    world.servers[0] = world.server(0);
    world.connect(0, 1);
    let (now, mut frame) = (world.now, Vec::new());
    assert!(world.host(1).next_frame(ServerId(0), &mut frame));
    let fault = world.host(0).step(now, Input::PeerFrame(ServerId(1), &frame)).unwrap_err();
    assert_eq!(fault, PeerFault::Rollback { theirs: Seq(1), ours: Seq(0) });
}

#[test]
fn the_own_stream_is_never_taken_from_a_peer() {
    let (mut world, mut other) = (World::new(3), World::new(3));
    other.write(0, &accept(1));
    let (now, mut frame) = (world.now, Vec::new());
    assert!(other.host(0).next_frame(ServerId(1), &mut frame));
    world.host(0).step(now, Input::PeerFrame(ServerId(1), &frame)).unwrap();
    assert_eq!((world.copied(0, 0), world.counter(0, Counter::RecordsOutOfOrder)), (0, 1));
}
