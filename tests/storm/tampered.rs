//! What a real run recorded is no empty history: each checker objects once it is tampered with.
//! (`simulator::recorded` has the same for a made-up one, and for more.)

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Micros, OrderNumber};
use simulator::history::Event;
use simulator::recorded::Recorded;

use crate::clients::Job;
use crate::process;
use crate::support::Builder;
use crate::world::{LIVENESS, World};

const JOBS: [Job; 3] =
    [Job::Send { in_flight: 1, pause_ms: 2 }, Job::Send { in_flight: 8, pause_ms: 4 }, Job::Listen];
/// Messages of a run.
const SOME: u64 = 200;

fn recorded() -> Recorded {
    let clients = JOBS.len() as u32;
    let mut world =
        World::new(Builder::new().clients(clients).guest(process::guest).start(), 1, &JOBS);
    world.await_that("some messages", LIVENESS, |world| world.crew.last > SOME);
    world.calm();
    world.finish();
    world.into_recorded()
}

/// The middle one of the events that `pick` makes something of.
fn middle<'a, T>(recorded: &'a mut Recorded, pick: impl Fn(&'a mut Event) -> Option<T>) -> T {
    let mut found: Vec<T> =
        recorded.noted.iter_mut().filter_map(|(_, event)| pick(event)).collect();
    let at = found.len() / 2;
    found.swap_remove(at)
}

/// Takes out the middle one of the events that are like this.
fn without(recorded: &mut Recorded, like: fn(&Event) -> bool) {
    let all = recorded.noted.iter().enumerate().filter(|(_, (_, event))| like(event));
    let places: Vec<usize> = all.map(|(at, _)| at).collect();
    recorded.noted.remove(places[places.len() / 2]);
}

fn half_the_words(recorded: &mut Recorded) {
    recorded.noted.retain(
        |(_, event)| !matches!(event, Event::Told { server, time: None, .. } if server.0 > 0),
    );
}

fn another_place(recorded: &mut Recorded) {
    let order = middle(recorded, |event| match event {
        Event::Answered { order, .. } => Some(order),
        _ => None,
    });
    *order = OrderNumber(order.0 + 1);
}

fn another_reply(recorded: &mut Recorded) {
    let reply = middle(recorded, |event| match event {
        Event::Answered { reply, .. } => reply.as_mut(),
        _ => None,
    });
    reply[0] ^= 1;
}

fn another_payload(recorded: &mut Recorded) {
    let payload = middle(recorded, |event| match event {
        Event::Heard { payload, .. } => Some(payload),
        _ => None,
    });
    payload[0] ^= 1;
}

fn another_chain(recorded: &mut Recorded) {
    let chain = middle(recorded, |event| match event {
        Event::Committed { chain, .. } => Some(chain),
        _ => None,
    });
    *chain = Digest([1; 32]);
}

fn a_batch_that_nobody_proposed(recorded: &mut Recorded) {
    let batch = middle(recorded, |event| match event {
        Event::Committed { batch, .. } => Some(batch),
        _ => None,
    });
    *batch = Batch(batch.0 + 1);
}

fn a_late_request(recorded: &mut Recorded) {
    let late = |(at, event): &mut (Micros, Event)| {
        if matches!(event, Event::Broadcast { .. }) {
            *at = at.plus(Micros(60_000_000));
        }
    };
    recorded.noted.iter_mut().for_each(late);
}

fn a_host_that_lacks_the_end(recorded: &mut Recorded) {
    let host = recorded.streams.last_mut().unwrap();
    let last = host.iter_mut().max_by_key(|stream| stream.len()).unwrap();
    last.pop();
}

fn two_hosts_that_differ(recorded: &mut Recorded) {
    let stream = &mut recorded.streams[2][0];
    let (a, b) = (stream.len() / 2, stream.len() / 2 + 1);
    stream.swap(a, b);
}

#[test]
fn what_was_really_recorded_is_not_accepted_once_it_is_tampered_with() {
    let recorded = recorded();
    assert_eq!(recorded.clone().check(), Vec::<String>::new());
    type Tamper = fn(&mut Recorded);
    let all: [(&str, Tamper); 12] = [
        ("total order", |r| without(r, |event| matches!(event, Event::Heard { .. }))),
        ("total order", another_payload),
        ("integrity", |r| without(r, |event| matches!(event, Event::Broadcast { .. }))),
        ("integrity", a_late_request),
        ("replies", half_the_words),
        ("replies", another_place),
        ("replay", another_reply),
        ("liveness", |r| without(r, |event| matches!(event, Event::Answered { .. }))),
        ("one committed chain", another_chain),
        ("certificates", a_batch_that_nobody_proposed),
        ("registers", a_host_that_lacks_the_end),
        ("registers: R3", two_hosts_that_differ),
    ];
    for (checker, tamper) in all {
        let mut other = recorded.clone();
        tamper(&mut other);
        let said = other.check();
        assert!(said.iter().any(|why| why.starts_with(checker)), "{checker}: {said:?}");
    }
}
