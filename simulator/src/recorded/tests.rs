//! A made-up record of a run, and every way of tampering with it that a checker must object to.

use protocol::application::{Application, Delivered};
use shared_registers::crypto::MAC_BYTES;
use shared_registers::ids::{Position, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Accept, Change, Propose, Reason, Stamp, Vote};

use super::*;
use crate::application::Tally;

const CLUSTER: ClusterId = ClusterId([3; 32]);

fn id(client: u32) -> OrderId {
    OrderId { client: ClientId(client), session: 9, count: 1 }
}

/// What client 0 or 1 wants; it is order 1 or 2, of batch 1 or 2.
fn payload(client: u32) -> Vec<u8> {
    format!("of client {client}").into_bytes()
}

fn digest(client: u32) -> Digest {
    order::digest(&CLUSTER, id(client), &payload(client))
}

/// The chain value after each batch.
fn chain(batch: u64) -> Digest {
    (0..batch as u32).fold(Digest::of(&[&CLUSTER.0]), |chain, client| {
        Digest::of(&[&chain.0, &Digest::of(&[&digest(client).0]).0])
    })
}

/// When the batch of client 0's or 1's order was proposed.
fn proposed(client: u32) -> Micros {
    Micros(1000 + u64::from(client))
}

fn record(writer: u16, seq: u64, time: Micros, seen: [u64; 3], body: &Body<'_>) -> Bytes {
    let (writer, seq, seen) = (ServerId(writer), Seq(seq), Box::from(seen));
    let stamp = Stamp { writer, seq, time, incarnation: 1, seen };
    let (mut written, mut bytes) = (Vec::new(), Vec::new());
    body.encode(&mut written);
    Record::encode(&stamp, &written, &mut bytes);
    bytes.into()
}

fn propose(seq: u64, seen: [u64; 3], client: u32, payload: &[u8]) -> Bytes {
    let digest = order::digest(&CLUSTER, id(client), payload);
    let order = OrderView { id: id(client), digest, mac: &[0; MAC_BYTES], payload };
    let (term, batch) = (Term(0), Batch(u64::from(client) + 1));
    let evidence: Vec<Position> = Vec::new();
    let body = Body::Propose(Propose { term, batch, evidence, orders: vec![order] });
    record(0, seq, proposed(client), seen, &body)
}

fn accept(writer: u16, seq: u64, seen: [u64; 3], upto: u64) -> Bytes {
    let vote = Some(Vote { upto: Batch(upto), chain: chain(upto) });
    let body = Body::Accept(Accept { term: Term(0), vote, checkpoint: None });
    record(writer, seq, Micros(0), seen, &body)
}

fn change(writer: u16, seq: u64, seen: [u64; 3], term: u64) -> Bytes {
    let body = Body::Change(Change { term: Term(term), reason: Reason::Batch });
    record(writer, seq, Micros(0), seen, &body)
}

fn streams() -> Vec<Vec<Bytes>> {
    vec![
        vec![propose(1, [0, 0, 0], 0, &payload(0)), propose(2, [1, 1, 0], 1, &payload(1))],
        vec![accept(1, 1, [1, 0, 0], 1), accept(1, 2, [2, 1, 0], 2)],
        vec![accept(2, 1, [2, 1, 0], 2)],
    ]
}

fn reply(client: u32) -> Vec<u8> {
    let mut application = Tally::default();
    let execute = |client: u32| {
        let (order, time) = (OrderNumber(u64::from(client) + 1), proposed(client));
        let payload = &payload(client);
        application.execute(&Delivered { order, id: id(client), time, payload })
    };
    (0..=client).map(execute).last().unwrap()
}

/// Two servers' words on an order.
fn words(to: u32, of: u32, digest: Digest, time: Option<Micros>) -> [Event; 2] {
    [0, 1].map(|server| Event::Told {
        client: ClientId(to),
        server: ServerId(server),
        id: id(of),
        order: OrderNumber(u64::from(of) + 1),
        digest,
        time,
    })
}

/// Client 0 is answered before client 1 wants anything; client 2 listens.
fn noted() -> Vec<Event> {
    let (mut all, listener) = (Vec::new(), ClientId(2));
    all.push(Event::ListenerStarted { client: listener, from: OrderNumber(1) });
    for of in [0, 1] {
        let (client, order) = (ClientId(of), OrderNumber(u64::from(of) + 1));
        let (id, time, payload) = (id(of), proposed(of), payload(of));
        all.push(Event::ClientStarted { client, session: 9 });
        all.push(Event::Broadcast { client, ticket: 1, payload: payload.clone() });
        all.extend(words(of, of, Digest::of(&[&reply(of)]), None));
        all.push(Event::Answered { client, ticket: 1, id, order, reply: Some(reply(of)) });
        all.extend(words(2, of, digest(of), Some(time)));
        all.push(Event::Heard { client: listener, order, id, time, payload });
    }
    all.push(Event::Healed { correct: ServerId::all(3).collect() });
    let statuses = ServerId::all(3);
    all.extend(statuses.map(|server| Event::Committed {
        server,
        batch: Batch(2),
        chain: chain(2),
    }));
    all
}

fn recorded() -> Recorded {
    Recorded {
        cluster: CLUSTER,
        n: 3,
        clients: 3,
        window: 8,
        liveness_bound: Micros(1_000_000),
        noted: (1..).map(Micros).zip(noted()).collect(),
        streams: vec![streams(); 3],
    }
}

/// What the checkers say of a record that was tampered with.
fn tampered(tamper: impl FnOnce(&mut Recorded)) -> Vec<String> {
    let mut recorded = recorded();
    tamper(&mut recorded);
    recorded.check()
}

/// The checker of this name must object.
fn red(checker: &str, tamper: impl FnOnce(&mut Recorded)) {
    let objections = tampered(tamper);
    assert!(objections.iter().any(|said| said.starts_with(checker)), "{checker}: {objections:?}");
}

fn events(recorded: &mut Recorded) -> impl Iterator<Item = &mut Event> {
    recorded.noted.iter_mut().map(|(_, event)| event)
}

/// The nth event that is like this.
fn nth(recorded: &mut Recorded, n: usize, like: fn(&Event) -> bool) -> usize {
    let mut found = recorded.noted.iter().enumerate().filter(|(_, (_, event))| like(event));
    found.nth(n).expect("such an event").0
}

fn remove(recorded: &mut Recorded, n: usize, like: fn(&Event) -> bool) {
    let at = nth(recorded, n, like);
    recorded.noted.remove(at);
}

fn every_host(recorded: &mut Recorded, change: impl Fn(&mut Vec<Vec<Bytes>>)) {
    recorded.streams.iter_mut().for_each(change);
}

#[test]
fn a_right_record_is_accepted() {
    assert_eq!(tampered(|_| {}), Vec::<String>::new());
}

#[test]
fn the_adapter_hands_on_what_happened() {
    let events = recorded().into_events().unwrap();
    let count = |like: fn(&Event) -> bool| events.iter().filter(|(_, event)| like(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Delivered { .. })), 6);
    assert_eq!(count(|event| matches!(event, Event::Sent { .. })), 2);
    assert_eq!(count(|event| matches!(event, Event::Copied { .. })), 15);
    assert_eq!(count(|event| matches!(event, Event::Admitted { .. })), 5);
    // Three servers' two batches, and what each says of itself.
    assert_eq!(count(|event| matches!(event, Event::Committed { .. })), 9);
}

#[test]
fn total_order_and_agreement_can_fail() {
    let heard: fn(&Event) -> bool = |event| matches!(event, Event::Heard { .. });
    red("total order", |r| remove(r, 0, heard));
    red("total order", |r| {
        let at = nth(r, 1, heard);
        let twice = r.noted[at].clone();
        r.noted.push(twice);
    });
    red("total order", |r| {
        for event in events(r) {
            if let Event::Heard { order, payload, .. } = event
                && order.0 == 2
            {
                *payload = b"something else".to_vec();
            }
        }
    });
    // A server whose records stop short.
    red("agreement", |r| {
        r.streams[2][1].pop();
        r.streams[2][2].pop();
    });
}

#[test]
fn integrity_can_fail() {
    let wants: fn(&Event) -> bool = |event| matches!(event, Event::Broadcast { .. });
    // Nobody wanted it.
    red("integrity", |r| remove(r, 1, wants));
    // Another wanted it.
    red("integrity", |r| {
        let at = nth(r, 1, wants);
        if let Event::Broadcast { client, .. } = &mut r.noted[at].1 {
            *client = ClientId(2);
        }
    });
    // Not its bytes.
    red("integrity", |r| {
        every_host(r, |streams| streams[0][1] = propose(2, [1, 1, 0], 1, b"forged"));
    });
    // It was wanted once, and is delivered under two names.
    red("integrity", |r| {
        let mut again = id(0);
        again.count = 2;
        let payload = payload(0);
        let digest = order::digest(&CLUSTER, again, &payload);
        let mac = &[0; MAC_BYTES];
        let order = OrderView { id: again, digest, mac, payload: &payload };
        let (term, batch, evidence) = (Term(0), Batch(2), Vec::new());
        let body = Body::Propose(Propose { term, batch, evidence, orders: vec![order] });
        let twice = record(0, 2, proposed(1), [1, 1, 0], &body);
        let start = Digest::of(&[&chain(1).0, &Digest::of(&[&digest.0]).0]);
        let vote = Some(Vote { upto: Batch(2), chain: start });
        let vote = Body::Accept(Accept { term, vote, checkpoint: None });
        let vote = record(1, 2, Micros(0), [2, 1, 0], &vote);
        every_host(r, |s| (s[0][1], s[1][1], s[2]) = (twice.clone(), vote.clone(), Vec::new()));
    });
}

#[test]
fn replies_and_replay_can_fail() {
    let told: fn(&Event) -> bool = |event| matches!(event, Event::Told { .. });
    // Only one server has said so: to the client, and to the listener.
    red("replies", |r| remove(r, 0, told));
    red("replies", |r| remove(r, 2, told));
    // Client 1 wanted its own after client 0's later one was answered.
    red("replies", |r| {
        let wanted = nth(r, 0, |event| matches!(event, Event::Broadcast { .. }));
        let answered = nth(r, 0, |event| matches!(event, Event::Answered { .. }));
        let second = nth(r, 1, |event| matches!(event, Event::Answered { .. }));
        // Client 0's whole life comes after client 1 was answered.
        let end = r.noted[second].0;
        let later = r.noted.last().unwrap().0;
        for at in wanted - 1..=answered {
            r.noted[at].0 = later.plus(Micros(r.noted[at].0.0)).plus(end);
        }
    });
    red("replay", |r| {
        for event in events(r) {
            if let Event::Answered { reply: Some(reply), .. } = event {
                reply[0] ^= 1;
            }
        }
    });
}

#[test]
fn liveness_and_bounds_can_fail() {
    let answered: fn(&Event) -> bool = |event| matches!(event, Event::Answered { .. });
    red("liveness", |r| remove(r, 1, answered));
    // Wanted in the calm, and answered too late.
    red("liveness", |r| {
        let wanted = nth(r, 1, |event| matches!(event, Event::Broadcast { .. }));
        let healed = nth(r, 0, |event| matches!(event, Event::Healed { .. }));
        r.noted[healed].0 = r.noted[wanted].0;
        let answer = nth(r, 1, answered);
        for (at, _) in &mut r.noted[answer..healed] {
            *at = at.plus(Micros(2_000_000));
        }
    });
    red("bounds", |r| {
        let event = Event::Queue { owner: 0, name: "KiB", length: 2, bound: 1 };
        r.noted.push((Micros(5), event));
    });
}

#[test]
fn the_registers_can_fail() {
    // One host holds another record than the rest.
    red("registers: R3", |r| r.streams[2][0][0] = propose(1, [0, 0, 0], 0, b"other bytes"));
    // One host lacks the last record.
    red("registers: R5", |r| {
        r.streams[2][1].pop();
    });
    // A record that had seen more than there is.
    red("registers: R4", |r| every_host(r, |s| s[2][0] = accept(2, 1, [3, 1, 0], 2)));
    // A host that showed its guest less than before.
    red("registers: R4", |r| every_host(r, |s| s[1][1] = accept(1, 2, [0, 1, 0], 2)));
    // A CHANGE of a term that nobody else has changed to.
    red("registers: R1", |r| every_host(r, |s| s[2].push(change(2, 2, [2, 1, 1], 5))));
    // A record in another's name, where its reader looks for stream 2.
    red("registers: R2", |r| every_host(r, |s| s[2][0] = accept(1, 1, [1, 0, 0], 1)));
}

/// Section 6.
#[test]
fn a_host_that_was_away_may_jump_but_not_in_its_own_stream_nor_back() {
    let jumped = tampered(|r| {
        r.streams[2][0].fill(Bytes::default());
        r.streams[2][1][0] = Bytes::default();
    });
    assert_eq!(jumped, [""; 0]);
    red("registers: host 1 jumps", |r| r.streams[1][1][0] = Bytes::default());
}

#[test]
fn chains_certificates_and_conduct_can_fail() {
    // A server says that it is elsewhere.
    red("one committed chain", |r| {
        for event in events(r) {
            if let Event::Committed { chain, .. } = event {
                *chain = Digest([1; 32]);
                break;
            }
        }
    });
    // A server says that it has committed what nobody has voted for.
    red("certificates", |r| {
        let (server, batch, chain) = (ServerId(0), Batch(3), Digest([1; 32]));
        r.noted.push((Micros(99), Event::Committed { server, batch, chain }));
    });
    // A guest that votes for the same again, as one that forgot would.
    red("conduct", |r| every_host(r, |s| s[1].push(accept(1, 3, [2, 2, 1], 2))));
    // A guest that proposes the same batch again.
    red("conduct", |r| {
        every_host(r, |s| s[0].push(propose(3, [2, 2, 1], 1, &payload(1))));
    });
    // A guest that votes in a term that it has left.
    red("conduct", |r| {
        every_host(r, |s| {
            s[2].push(change(2, 2, [2, 1, 1], 0));
            s[2].push(accept(2, 3, [2, 1, 2], 2));
        });
    });
}
