//! What a broken-in guest can write, and what comes of it.

use crate::support::{CHANGE_MS, Cluster, order};
use protocol::messages::OrderMessage;
use shared_registers::crypto::Digest;
use shared_registers::host_side::Counter;
use shared_registers::ids::{Batch, Position, Seq, ServerId, Term};
use shared_registers::record::{Accept, Body, Change, Propose, Reason, Vote};

/// A proposal of server 0's guest, of whatever orders it likes.
fn propose(batch: u64, orders: &[OrderMessage]) -> Vec<u8> {
    let views = orders.iter().map(|order| order.view(ServerId(0)));
    let (term, batch) = (Term(0), Batch(batch));
    let body = Body::Propose(Propose { term, batch, evidence: vec![], orders: views.collect() });
    let mut bytes = Vec::new();
    body.encode(&mut bytes);
    bytes
}

fn forge(cluster: &mut Cluster, batch: u64, orders: &[OrderMessage]) {
    let seq = cluster.servers[0].host.registers().copied(ServerId(0)).next();
    cluster.forge_at(0, seq, &propose(batch, orders));
    cluster.settle();
}

/// A cluster whose first guest, the sequencer, is in an attacker's hands.
fn broken_in() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(0);
    cluster
}

#[test]
fn r1_orders_made_up_or_altered_enter_no_stream() {
    let mut cluster = broken_in();
    let real = order(3, 0, 1, 1, b"pay 1");
    let altered = OrderMessage { payload: b"pay 1000".to_vec(), ..real.clone() };
    let other_client = {
        let mut made_up = order(3, 1, 1, 1, b"mine");
        made_up.macs[0] = real.macs[0];
        made_up
    };
    // The MAC for another host says nothing to this one.
    let mut other_host = real.clone();
    other_host.macs[0] = real.macs[1];
    let mut renumbered = real.clone();
    renumbered.id.count = 2;
    let misnamed = OrderMessage { digest: Digest::of(&[b"another"]), ..real.clone() };
    for forged in [altered, misnamed, other_client, other_host, renumbered] {
        let drops = cluster.drops(0);
        forge(&mut cluster, 1, &[forged]);
        assert_eq!(cluster.drops(0), drops + 1);
    }
    assert_eq!(cluster.servers[0].host.registers().counter(Counter::Proposes), 0);
    assert_eq!(cluster.servers[0].host.registers().counter(Counter::OrderMacFailed), 5);
    assert!(cluster.delivered(0));
}

#[test]
fn c2_replayed_repeated_and_reordered_orders_are_delivered_once_in_their_order() {
    let mut cluster = broken_in();
    let orders: Vec<_> = (1..=4).map(|count| order(3, 0, 1, count, &[count as u8])).collect();
    forge(&mut cluster, 1, &[orders[1].clone(), orders[0].clone(), orders[0].clone()]);
    forge(&mut cluster, 2, &[orders[0].clone(), orders[3].clone(), orders[1].clone()]);
    forge(&mut cluster, 3, &[orders[2].clone(), orders[1].clone(), orders[3].clone()]);
    forge(&mut cluster, 4, &orders);
    let counts: Vec<_> = cluster.one_order().iter().map(|o| o.1).collect();
    assert_eq!(counts, [1, 2, 3, 4]);
    assert_eq!(cluster.counter(1, "orders_skipped"), 9);
}

#[test]
fn p3_a_sequencer_that_breaks_v2_is_replaced_at_once() {
    let mut cluster = broken_in();
    forge(&mut cluster, 2, &[order(3, 0, 1, 1, b"x")]);
    assert_eq!(cluster.status(1).0, Term(1), "no time passed: the term is dead, and everyone saw");
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    cluster.settle();
    assert!(cluster.delivered(1));
}

#[test]
fn p3_a_sequencer_that_starves_one_client_is_replaced() {
    let mut cluster = broken_in();
    cluster.send_all(&order(3, 1, 1, 1, b"starved"));
    // It goes on proposing others' orders.
    for count in 1..=CHANGE_MS {
        forge(&mut cluster, count, &[order(3, 0, 1, count, b"favoured")]);
        cluster.pass(1);
    }
    cluster.pass(10);
    assert_eq!(cluster.status(1).0, Term(1));
    assert!(cluster.one_order().iter().any(|o| o.2 == b"starved"));
}

#[test]
fn r1_a_change_that_jumps_is_refused_and_an_early_one_changes_nothing() {
    let mut cluster = broken_in();
    let change = |term| Body::Change(Change { term: Term(term), reason: Reason::Batch });
    cluster.forge(0, &change(5));
    cluster.forge(0, &change(1));
    assert_eq!(cluster.drops(0), 2);
    cluster.forge(0, &change(0));
    cluster.forge(0, &change(0));
    assert_eq!(cluster.drops(0), 3, "a second CHANGE of a term is refused too");
    cluster.settle();
    assert_eq!(cluster.status(1).0, Term(0), "one server alone changes no term");
}

#[test]
fn r1_after_a_drop_nothing_is_admitted_until_the_guest_acknowledges_it() {
    let mut cluster = broken_in();
    let mut bad = order(3, 0, 1, 1, b"x");
    bad.macs[0][0] ^= 1;
    let good = order(3, 1, 1, 1, b"y");
    // Both frames are written before the host looks: the second must not take the first's place.
    let registers = &mut cluster.servers[0].registers;
    registers.write(Seq(1), &propose(1, &[bad])).unwrap();
    registers.write(Seq(1), &propose(1, std::slice::from_ref(&good))).unwrap();
    registers.write(Seq(2), &propose(2, std::slice::from_ref(&good))).unwrap();
    cluster.settle();
    let host = cluster.servers[0].host.registers();
    assert_eq!(host.counter(Counter::DroppedUnacknowledged), 2);
    assert_eq!(host.copied(ServerId(0)), Seq(0));
    let notice = cluster.servers[0].registers.drop_notice().unwrap();
    assert_eq!((notice.seq, notice.orders), (Seq(1), vec![0]));
    cluster.forge_at(0, Seq(1), &propose(1, &[good]));
    cluster.settle();
    assert!(cluster.delivered(1));
}

#[test]
fn votes_for_what_was_never_proposed_commit_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(1);
    let vote = Some(Vote { upto: Batch(1), chain: Digest([1; 32]) });
    cluster.forge(1, &Body::Accept(Accept { term: Term(0), vote, checkpoint: None }));
    cluster.settle();
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    cluster.settle();
    assert!(cluster.delivered(1));
    assert_eq!(cluster.status(0).0, Term(0));
}

#[test]
fn an_opening_with_wrong_evidence_is_passed_over() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(0);
    cluster.send(2, order(3, 0, 1, 1, b"x"));
    cluster.pass(CHANGE_MS - 5);
    // Server 1 will be the next sequencer, and is broken into as well by now: two faulty servers
    // of three, so nothing need go on, but nothing may break.
    cluster.kill_guest(1);
    cluster.forge(1, &Body::Change(Change { term: Term(0), reason: Reason::Batch }));
    let evidence = vec![Position { writer: ServerId(1), seq: Seq(1) }; 2];
    let propose = Propose { term: Term(1), batch: Batch(0), evidence, orders: vec![] };
    cluster.forge(1, &Body::Propose(propose));
    cluster.pass(5 * CHANGE_MS);
    assert!(cluster.delivered(0));
    cluster.restart_guest(0);
    cluster.pass_until(40 * CHANGE_MS, |c| c.delivered(1));
    assert!(cluster.status(2).0 >= Term(2), "a later term serves the order");
}

#[test]
fn noise_in_the_write_file_harms_nobody_else() {
    let mut cluster = broken_in();
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..200 {
        let bytes: Vec<u8> = (0..round)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        cluster.forge_at(0, Seq(round % 3), &bytes);
        cluster.settle();
    }
    assert_eq!(cluster.servers[0].host.registers().copied(ServerId(0)), Seq(0));
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    cluster.pass_until(10 * CHANGE_MS, |c| c.delivered(1));
    // A clean guest in its place goes on (P6).
    cluster.restart_guest(0);
    cluster.send_all(&order(3, 0, 1, 2, b"y"));
    cluster.settle();
    assert!(cluster.delivered(2));
}

#[test]
fn c2_orders_that_a_base_holds_too_early_are_proposed_again() {
    let mut cluster = Cluster::new(2);
    for i in [0, 2, 3, 4] {
        cluster.kill_guest(i);
    }
    let change = Body::Change(Change { term: Term(0), reason: Reason::Batch });
    let orders: Vec<_> = (1..=2).map(|count| order(5, 0, 1, count, &[count as u8])).collect();
    cluster.forge(2, &change);
    // The broken-in sequencer proposes the second order first; server 1 votes, and loses patience
    // with a batch that nobody else votes for.
    forge(&mut cluster, 1, &orders[1..]);
    cluster.forge(0, &change);
    cluster.pass(CHANGE_MS + 5);
    assert_eq!(cluster.status(1).0, Term(1));
    for order in &orders {
        cluster.send(1, order.clone());
    }
    for i in [2, 3, 4] {
        cluster.restart_guest(i);
    }
    cluster.settle();
    assert!(cluster.delivered(2), "the base's batch delivers nothing; the next one both");
    assert_eq!(cluster.counter(1, "orders_skipped"), 1);
    assert_eq!(cluster.status(1).0, Term(1));
}

#[test]
fn two_lying_clients_do_not_close_the_forwarding_path() {
    let mut cluster = Cluster::new(1);
    for client in [2, 3] {
        for session in 1..=512 {
            cluster.send(1, order(3, client, session, 2, b"never next"));
        }
    }
    cluster.settle();
    cluster.send(1, order(3, 0, 1, 1, b"x"));
    cluster.settle();
    assert!(cluster.delivered(1));
    assert_eq!(cluster.status(0).0, Term(0), "the sequencer had it from server 1");
}
