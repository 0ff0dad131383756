//! A guest that was broken into, at its real host agent: whatever it writes, nothing is delivered
//! that a client did not send, once, in its order (R1, C2).

use shared_registers::crypto::Digest;
use shared_registers::host_side::Counter;
use shared_registers::ids::{ClientId, OrderId, Term};
use shared_registers::layout::DropReason;
use shared_registers::order;
use shared_registers::record::{Body, Change, Reason};

use crate::attacker::{Attacker, Fate, HandClient, Taken, encoded};
use crate::support::clients::{Caller, one_order};
use crate::support::{Builder, Cluster, Role};

/// A cluster whose first client has sent five messages, and whose sequencer's guest is broken into.
fn broken_in() -> (Cluster, Attacker, u64) {
    // On a busy machine nobody suspects it before it is broken into.
    let mut cluster = Builder::new().set("change_ms", 2000).start();
    let caller = Caller::new(&cluster.folder, 0);
    assert_eq!(caller.invoke_all("honest", 5), [1, 2, 3, 4, 5]);
    for id in cluster.ids() {
        cluster.await_delivered(id, 5);
    }
    let (term, victim) = (cluster.term(), cluster.sequencer());
    cluster.kill(Role::Guest, victim);
    let mut attacker = Attacker::attach(&cluster, victim);
    attacker.read();
    assert_eq!(attacker.proposed.len(), 5, "it reads what it proposed");
    (cluster, attacker, term)
}

fn with_its_digest(cluster: &Cluster, taken: Taken) -> Taken {
    let digest = order::digest(&cluster.description.id(), taken.id, &taken.payload);
    Taken { digest, ..taken }
}

fn next_of(taken: &Taken) -> OrderId {
    OrderId { count: taken.id.count + 1, ..taken.id }
}

/// Another client gets its message delivered, by whichever server it takes; then the one order
/// holds the payloads `wanted`, and that message.
fn assert_order(cluster: &Cluster, wanted: &[&str]) {
    let last = Caller::new(&cluster.folder, 1).invoke("the last").order.0;
    let order = one_order(&cluster.folder, last);
    let payloads: Vec<_> = order.iter().map(|m| String::from_utf8_lossy(&m.payload)).collect();
    let honest = (0..5).map(|i| format!("honest {i}"));
    let mut all: Vec<String> = honest.chain(wanted.iter().map(ToString::to_string)).collect();
    all.push("the last".to_owned());
    assert_eq!(payloads, all);
}

#[test]
fn made_up_altered_and_borrowed_orders_enter_no_stream() {
    let (mut cluster, mut attacker, term) = broken_in();
    let honest = attacker.proposed[4].clone();
    let before = attacker.counters();
    let made_up = Taken { id: next_of(&honest), payload: b"made up".to_vec(), ..honest.clone() };
    let made_up = Taken { mac: [0x5a; 32], ..with_its_digest(&cluster, made_up) };
    // With the digest of what it was, which its MAC is right for, and with its own.
    let altered = Taken { payload: b"altered".to_vec(), ..honest.clone() };
    let altered_whole = with_its_digest(&cluster, altered.clone());
    // All is right but the digest that readers would go by.
    let misnamed = Taken { digest: Digest::of(&[b"another"]), ..honest.clone() };
    let renumbered = Taken { id: next_of(&honest), ..honest.clone() };
    let borrowed = OrderId { client: ClientId(1), ..honest.id };
    let borrowed = Taken { id: borrowed, ..honest.clone() };
    let by_mac = Fate::Dropped(Some(DropReason::OrderMac));
    for forged in [made_up.clone(), altered, altered_whole, misnamed, renumbered, borrowed] {
        assert_eq!(attacker.propose(term, &[forged]), by_mac);
    }
    // A forged one among good ones takes the whole frame with it, and each is counted.
    let mixed = [honest.clone(), made_up.clone(), made_up.clone()];
    assert_eq!(attacker.propose(term, &mixed), by_mac);
    let nobody = OrderId { client: ClientId(4000), ..honest.id };
    let nobody = Taken { id: nobody, ..honest };
    let by_client = Fate::Dropped(Some(DropReason::UnknownClient));
    assert_eq!(attacker.propose(term, &[nobody]), by_client);

    let after = attacker.counters();
    let rise = |index: usize| after[index] - before[index];
    assert_eq!(rise(Counter::OrderMacFailed as usize), 8);
    assert_eq!(rise(Counter::dropped(DropReason::OrderMac)), 7);
    assert_eq!(rise(Counter::dropped(DropReason::UnknownClient)), 1);
    assert_eq!(rise(Counter::Proposes as usize), 0);
    assert_order(&cluster, &[]);
    cluster.assert_all_run();
}

#[test]
fn replayed_reordered_and_repeated_orders_are_delivered_once_in_the_clients_order() {
    let (mut cluster, mut attacker, term) = broken_in();
    // What the client sent to the broken-in guest alone, with MACs that are right.
    let client = HandClient::new(&cluster, 2);
    let sent = |count| client.order(&cluster, count, &format!("sent {count}"));
    let sequencer = cluster.sequencer();
    let [one, two, three] = [1, 2, 3].map(|count| Taken::of(&sent(count), sequencer));
    let replays = attacker.proposed.clone();
    let before = attacker.counters();
    let batches = [
        replays.clone(),
        vec![two.clone(), one.clone(), three.clone()],
        vec![replays[3].clone(), three.clone(), two.clone(), two.clone(), one.clone()],
        vec![three.clone(), three.clone(), two.clone()],
        replays,
    ];
    for batch in &batches {
        assert_eq!(attacker.propose(term, batch), Fate::Admitted);
    }
    let after = attacker.counters();
    let proposes = Counter::Proposes as usize;
    assert_eq!(after[proposes] - before[proposes], batches.len() as u64);
    assert_order(&cluster, &["sent 1", "sent 2", "sent 3"]);
    cluster.assert_all_run();
}

#[test]
fn changes_that_jump_and_frames_that_are_none_are_dropped() {
    let (mut cluster, mut attacker, term) = broken_in();
    let before = attacker.counters();
    let change = |term| Body::Change(Change { term: Term(term), reason: Reason::Batch });
    for jump in [term + 1, term + 2, term + 1000, u64::MAX] {
        assert_eq!(attacker.write_body(&change(jump)), Fate::Dropped(Some(DropReason::Change)));
    }
    let malformed = Fate::Dropped(Some(DropReason::Malformed));
    assert_eq!(attacker.write(0, b"no body at all"), malformed);
    let empty_batch = attacker.proposal(term, attacker.batch() + 1, &[]);
    assert_eq!(attacker.write(0, &empty_batch), malformed);
    let replay = attacker.proposal(term, attacker.batch() + 1, &attacker.proposed[..1]);
    assert_eq!(attacker.write(7, &replay), Fate::Dropped(Some(DropReason::Number)));
    // What follows a dropped frame and does not acknowledge it goes, too.
    assert_eq!(attacker.write_two(b"none", &replay), malformed);
    let after = attacker.counters();
    let rise = |index: usize| after[index] - before[index];
    assert_eq!(rise(Counter::dropped(DropReason::Change)), 4);
    assert_eq!(rise(Counter::dropped(DropReason::Malformed)), 3);
    assert_eq!(rise(Counter::dropped(DropReason::Number)), 1);
    assert_eq!(rise(Counter::Changes as usize) + rise(Counter::Proposes as usize), 0);

    // What it may write: a batch out of its turn, which ends its term, and its farewell.
    let gap = attacker.proposal(term, attacker.batch() + 5, &attacker.proposed[..1]);
    assert_eq!(attacker.write(0, &gap), Fate::Admitted);
    assert_eq!(attacker.write(0, &encoded(&change(term))), Fate::Admitted);
    assert_order(&cluster, &[]);
    assert!(cluster.term() > term);
    let unacknowledged = Counter::DroppedUnacknowledged as usize;
    assert!(attacker.counters()[unacknowledged] > before[unacknowledged]);
    cluster.assert_all_run();
}
