//! Stories of the normal case, of failures and of restarts, over whole clusters in one thread.

use crate::support::{CHANGE_MS, Cluster, HOST_DOWN_MS, order};
use protocol::messages::{Refusal, ToClient, ToServer};
use shared_registers::host_side::Counter;
use shared_registers::ids::{ClientId, Micros, ServerId, Term};
use shared_registers::record::{Body, Change, Reason};

#[test]
fn orders_are_delivered_by_all_in_one_order() {
    for f in 1..=3 {
        let mut cluster = Cluster::new(f);
        for count in 1..=20 {
            for client in 0..3 {
                cluster.send(0, order(cluster.n, client, 1, count, &[client as u8]));
            }
        }
        cluster.settle();
        assert!(cluster.delivered(60), "f = {f}");
        let log = cluster.one_order();
        for client in 0..3 {
            let counts: Vec<_> = log.iter().filter(|o| o.0 == client).map(|o| o.1).collect();
            assert_eq!(counts, (1..=20).collect::<Vec<_>>(), "each client's in its order");
        }
    }
}

#[test]
fn p5_all_servers_reply_and_one_sends_the_bytes() {
    let mut cluster = Cluster::new(1);
    cluster.send(0, order(3, 2, 1, 1, b"x"));
    cluster.settle();
    assert_eq!(cluster.replies(2, 1), [(0, 1, true), (1, 1, false), (2, 1, false)]);
    cluster.deliver(1, 2, ToServer::FetchReply { session: 1, count: 1 });
    assert_eq!(cluster.replies(2, 1)[2], (1, 1, true), "whoever is asked sends them");
}

#[test]
fn the_normal_case_costs_one_propose_two_accepts_and_six_frames() {
    let mut cluster = Cluster::new(1);
    let count = |cluster: &Cluster, counter| -> u64 {
        cluster.servers.iter().map(|s| s.host.registers().counter(counter)).sum()
    };
    for count in 1..=50 {
        cluster.send(0, order(3, 0, 1, count, b""));
        cluster.settle();
    }
    assert_eq!(count(&cluster, Counter::Proposes), 50);
    assert_eq!(count(&cluster, Counter::Accepts), 100);
    assert_eq!(count(&cluster, Counter::RecordFramesSent), 50 * 6);
    assert_eq!(cluster.received.values().map(Vec::len).sum::<usize>(), 150);
}

#[test]
fn a_guest_is_rung_for_what_it_acts_on_and_nothing_else() {
    for f in 1..=3 {
        let mut cluster = Cluster::new(f);
        cluster.settle_by_ringing();
        for count in 1..=5 {
            cluster.send(0, order(cluster.n, 0, 1, count, b""));
            cluster.look(0); // A message is an event of its own.
            let looks = cluster.settle_by_ringing();
            assert!(cluster.delivered(count), "f = {f}: everyone was rung for what it lacked");
            // Its votes alone; a proposal, and what commits it.
            assert_eq!((looks[0], &looks[1..]), (1, &vec![2; 2 * f][..]), "f = {f}");
        }
        // Votes that nobody was rung for are read with what comes next, or by the clock.
        cluster.settle();
        assert!((1..=2 * f).all(|i| cluster.counter(i, "records_read") == 5 * (2 * f as u64 + 1)));
    }
}

#[test]
fn a_change_of_sequencers_needs_no_look_but_those_that_are_rung_for() {
    let mut cluster = Cluster::new(1);
    cluster.settle();
    cluster.kill_guest(0);
    for to in [1, 2] {
        cluster.send(to, order(3, 0, 1, 1, b""));
    }
    cluster.settle_by_ringing();
    // Both come to suspect the dead one by their own clocks, and act on the other's word.
    cluster.now = cluster.now.plus(Micros::from_ms(CHANGE_MS + 1));
    cluster.look(1);
    cluster.settle_by_ringing();
    assert_eq!(cluster.status(2).0, Term(0), "one is not enough");
    cluster.look(2);
    cluster.settle_by_ringing();
    assert_eq!((cluster.status(1).0, cluster.status(2).0), (Term(1), Term(1)));
    assert_eq!(cluster.replies(0, 1).len(), 2, "and the order is delivered in the new term");
}

#[test]
fn orders_that_wait_travel_in_batches() {
    let mut cluster = Cluster::new(1);
    for count in 1..=200 {
        cluster.send(0, order(3, 0, 1, count, b""));
    }
    cluster.settle();
    assert!(cluster.delivered(200));
    let proposes = cluster.servers[0].host.registers().counter(Counter::Proposes);
    assert!(proposes <= 8, "{proposes} batches for 200 orders");
}

#[test]
fn p1_early_orders_wait_for_those_before_them() {
    let mut cluster = Cluster::new(1);
    for count in [3, 2, 5, 1, 4] {
        cluster.send(0, order(3, 0, 1, count, b""));
        cluster.settle();
    }
    let counts: Vec<_> = cluster.one_order().iter().map(|o| o.1).collect();
    assert_eq!(counts, [1, 2, 3, 4, 5]);
    assert_eq!(cluster.counter(0, "orders_skipped"), 0);
}

#[test]
fn p1_a_duplicate_gets_the_kept_reply_and_an_old_session_is_stale() {
    let mut cluster = Cluster::new(1);
    cluster.send(0, order(3, 0, 7, 1, b"x"));
    cluster.settle();
    cluster.send_all(&order(3, 0, 7, 1, b"x"));
    cluster.settle();
    assert_eq!(cluster.replies(0, 1).len(), 6);
    assert!(cluster.delivered(1), "and is not delivered again");
    cluster.send(1, order(3, 0, 6, 1, b"old clock"));
    let last = cluster.received[&(ClientId(0), ServerId(1))].last().unwrap();
    assert_eq!(*last, ToClient::Stale { session: 7, count: 1 });
}

#[test]
fn any_f_guests_may_die() {
    let pairs = (0..5).flat_map(|i| (0..i).map(move |j| (2, vec![j, i])));
    let ones = (0..3).map(|i| (1, vec![i]));
    let threes = [(3, vec![0, 1, 2]), (3, vec![4, 5, 6])];
    for (f, dead) in ones.chain(pairs).chain(threes) {
        let mut cluster = Cluster::new(f);
        cluster.send_all(&order(cluster.n, 0, 1, 1, b"before"));
        cluster.settle();
        for i in &dead {
            cluster.kill_guest(*i);
        }
        cluster.send_all(&order(cluster.n, 0, 1, 2, b"after"));
        cluster.pass_until(16 * CHANGE_MS, |c| c.delivered(2));
        assert_eq!(cluster.one_order().len(), 2, "f = {f}, dead: {dead:?}");
    }
}

#[test]
fn p3_a_dead_sequencer_is_replaced_after_t_change() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(0);
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    let took = cluster.pass_until(10 * CHANGE_MS, |c| c.delivered(1));
    assert!((CHANGE_MS..CHANGE_MS + 5).contains(&took), "{took} ms");
    assert_eq!(cluster.status(1).0, Term(1));
    // P4: T_change has doubled.
    cluster.kill_guest(1);
    cluster.restart_guest(0);
    cluster.send_all(&order(3, 0, 1, 2, b"y"));
    let took = cluster.pass_until(10 * CHANGE_MS, |c| c.delivered(2));
    assert!(took >= 2 * CHANGE_MS, "{took} ms");
}

#[test]
fn p3_a_sequencer_whose_host_is_down_is_replaced_without_waiting_for_an_order() {
    let mut cluster = Cluster::new(1);
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    cluster.settle();
    cluster.kill_host(0);
    let took = cluster.pass_until(CHANGE_MS, |c| c.live().all(|i| c.status(i).0 == Term(1)));
    assert!(took <= HOST_DOWN_MS + 2, "{took} ms");
    cluster.send_all(&order(3, 0, 1, 2, b"y"));
    cluster.settle();
    assert!(cluster.delivered(2));
}

#[test]
fn p3_an_order_that_only_one_client_copy_reached_is_forwarded_to_the_sequencer() {
    let mut cluster = Cluster::new(1);
    cluster.send(2, order(3, 0, 1, 1, b"x"));
    cluster.settle();
    assert!(cluster.delivered(1));
    assert_eq!(cluster.status(0).0, Term(0), "without a change");
}

#[test]
fn p3_a_batch_that_stays_uncommitted_makes_a_change_at_those_who_hold_no_order() {
    let mut cluster = Cluster::new(2);
    for i in 2..5 {
        cluster.kill_guest(i);
    }
    cluster.send(0, order(5, 0, 1, 1, b"x"));
    cluster.pass(CHANGE_MS - 5);
    assert_eq!(cluster.counter(1, "changes_written"), 0);
    cluster.pass(10);
    assert_eq!(cluster.counter(1, "changes_written"), 1);
}

#[test]
fn p3_every_new_sequencer_is_told_of_the_orders_that_wait() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(0);
    let (everywhere, here) = (order(3, 0, 1, 1, b"x"), order(3, 1, 1, 1, b"y"));
    cluster.send_all(&everywhere);
    cluster.send(2, here);
    cluster.pass_until(2 * CHANGE_MS, |c| c.delivered(2));
    assert_eq!(cluster.status(1).0, Term(1), "server 1 had it from server 2 alone");
}

#[test]
fn p3_a_sequencer_that_proposes_nothing_suspects_itself_too() {
    let mut cluster = Cluster::new(1);
    // Nobody's records reach anyone: the sequencer's batch stays uncommitted at its own place too.
    cluster.disconnect(0, 1);
    cluster.disconnect(0, 2);
    cluster.disconnect(1, 2);
    cluster.send(0, order(3, 0, 1, 1, b"x"));
    cluster.pass(CHANGE_MS + 5);
    assert_eq!(cluster.counter(0, "changes_written"), 1);
}

#[test]
fn p4_a_term_is_opened_with_what_the_last_one_left_uncommitted() {
    let mut cluster = Cluster::new(2);
    // The batch reaches server 1 alone, which votes; then the sequencer's host dies.
    for i in 0..5 {
        for j in 0..i {
            if (i, j) != (1, 0) {
                cluster.disconnect(i, j);
            }
        }
    }
    cluster.send(0, order(5, 0, 1, 1, b"x"));
    cluster.settle();
    cluster.kill_host(0);
    for i in 1..5 {
        for j in 1..i {
            cluster.connect(i, j);
        }
    }
    // R5: the third parties hand it over, and the base, or the new sequencer, keeps it.
    cluster.pass_until(20 * CHANGE_MS, |c| c.delivered(1));
    assert_eq!(cluster.one_order()[0].2, b"x");
}

#[test]
fn p4_an_empty_opening_is_voted_for_and_commits_its_base() {
    let mut cluster = Cluster::new(2);
    for i in 2..5 {
        cluster.kill_guest(i);
    }
    let change = Change { term: Term(0), reason: Reason::Batch };
    cluster.forge(2, &Body::Change(change));
    // Servers 0 and 1 vote, which is one vote too few, and lose patience.
    cluster.send(0, order(5, 0, 1, 1, b"x"));
    cluster.pass(CHANGE_MS + 5);
    assert_eq!(cluster.status(1).0, Term(1));
    cluster.restart_guest(2);
    cluster.settle();
    assert!(cluster.delivered(1), "nothing else waits: only votes for the base can commit it");
    assert_eq!(cluster.counter(1, "batches_proposed"), 0);
}

#[test]
fn p4_one_that_was_away_follows_with_the_newest_change_alone() {
    let mut cluster = Cluster::new(2);
    cluster.kill_guest(4);
    cluster.kill_guest(0);
    cluster.send_all(&order(5, 0, 1, 1, b"x"));
    cluster.pass_until(10 * CHANGE_MS, |c| c.delivered(1));
    cluster.kill_guest(1);
    cluster.restart_guest(0);
    cluster.send_all(&order(5, 0, 1, 2, b"y"));
    cluster.pass_until(20 * CHANGE_MS, |c| c.delivered(2));
    let before = cluster.servers[4].host.registers().counter(Counter::Changes);
    cluster.restart_guest(4);
    cluster.settle();
    assert_eq!(cluster.status(4).0, cluster.status(2).0);
    let written = cluster.servers[4].host.registers().counter(Counter::Changes) - before;
    assert_eq!(written, 1, "one CHANGE closes all the segments that it missed");
    assert_eq!(cluster.one_order().len(), 2);
}

#[test]
fn p6_a_restarted_guest_reads_its_own_stream_and_goes_on() {
    for restarted in 0..3 {
        let mut cluster = Cluster::new(1);
        for count in 1..=10 {
            cluster.send(0, order(3, 0, 1, count, b"x"));
            cluster.settle();
        }
        cluster.kill_guest(restarted);
        cluster.restart_guest(restarted);
        cluster.settle();
        assert!(cluster.delivered(10));
        // The other backup is away, so the restarted one's vote or proposal is needed.
        cluster.kill_guest(if restarted == 2 { 1 } else { 2 });
        cluster.send_all(&order(3, 0, 1, 11, b"y"));
        cluster.settle();
        assert!(cluster.delivered(11), "server {restarted} takes part again");
        assert_eq!(cluster.status(0).0, Term(0), "and no change was needed");
        cluster.one_order();
    }
}

#[test]
fn p1_a_damaged_mac_entry_costs_one_copy_and_not_the_batch_nor_the_term() {
    let mut cluster = Cluster::new(1);
    let mut damaged = order(3, 1, 1, 1, b"good");
    damaged.macs[0][5] ^= 1;
    // Several frames in flight around it, none looked at by the host yet.
    for count in 1..=300 {
        cluster.send(0, order(3, 0, 1, count, b"a"));
        cluster.send(0, order(3, 2, 1, count, b"c"));
        if count == 150 {
            cluster.send(0, damaged.clone());
        }
    }
    cluster.pass(1);
    assert!(cluster.delivered(600), "{:?}", cluster.status(0));
    assert_eq!(cluster.status(0).0, Term(0), "the term is alive");
    assert_eq!(cluster.servers[0].host.registers().counter(Counter::OrderMacFailed), 1);
    let refused = ToClient::Refused { session: 1, count: 1, reason: Refusal::BadMac };
    assert_eq!(cluster.received[&(ClientId(1), ServerId(0))], [refused]);

    // An intact copy is still taken, whether forwarded or direct.
    let mut only_others = damaged.clone();
    only_others.macs[0][5] ^= 1;
    cluster.send(1, only_others);
    cluster.settle();
    assert!(cluster.delivered(601));
    assert_eq!(cluster.one_order()[600].2, b"good");
}

#[test]
fn an_order_that_only_some_hosts_accept_is_delivered_under_one_of_them() {
    let mut cluster = Cluster::new(1);
    let mut partly = order(3, 1, 1, 1, b"x");
    partly.macs[0][0] ^= 1;
    cluster.send_all(&partly);
    cluster.pass_until(10 * CHANGE_MS, |c| c.delivered(1));
    assert_eq!(cluster.status(1).0, Term(1), "section 7: the term moves on to a host that accepts");
}

#[test]
fn a_half_sent_record_reaches_everyone_after_its_hosts_death() {
    let mut cluster = Cluster::new(1);
    cluster.disconnect(0, 2);
    cluster.send(0, order(3, 0, 1, 1, b"x"));
    cluster.settle();
    cluster.kill_host(0);
    cluster.pass(2 * CHANGE_MS);
    assert!(cluster.delivered(1), "server 2 got it from server 1 (R5)");
    assert_eq!(cluster.one_order()[0].2, b"x");
}

#[test]
fn nothing_is_due_while_nothing_waits() {
    let mut cluster = Cluster::new(1);
    cluster.send_all(&order(3, 0, 1, 1, b"x"));
    cluster.pass(20 * CHANGE_MS);
    for i in 0..3 {
        assert_eq!(cluster.status(i).0, Term(0));
        let next = cluster.servers[i].replica.next_deadline();
        assert!(next.is_none_or(|at| at > cluster.now), "server {i} would spin");
    }
}

#[test]
fn p3_a_trusted_network_that_looks_silent_makes_no_storm_of_terms() {
    let mut cluster = Cluster::new(1);
    // Heartbeats come far too rarely for the patience that the replicas begin with.
    cluster.heartbeat_us = 5 * CHANGE_MS * 1000 / 2;
    cluster.pass(50 * CHANGE_MS);
    let term = cluster.status(0).0;
    cluster.pass(50 * CHANGE_MS);
    assert_eq!(cluster.status(0).0, term, "patience has grown past the silences");
}

#[test]
fn p2_one_accept_covers_many_proposals() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(1);
    cluster.kill_guest(2);
    for count in 1..=4 {
        cluster.send(0, order(3, 0, 1, count, b"x"));
        cluster.settle();
    }
    let proposed = cluster.servers[0].host.registers().counter(Counter::Proposes);
    assert_eq!(proposed, 4, "several in flight");
    cluster.restart_guest(1);
    cluster.settle();
    assert!(cluster.delivered(4));
    assert_eq!(cluster.servers[1].host.registers().counter(Counter::Accepts), 1);
}

/// How long server 2 waits until it leaves term after term, all of which are silent.
fn patiences(cluster: &mut Cluster, terms: u64) -> Vec<u64> {
    let mut waits = Vec::new();
    for _ in 0..terms {
        let before = cluster.counter(2, "changes_written");
        let wait =
            cluster.pass_until(200 * CHANGE_MS, |c| c.counter(2, "changes_written") > before);
        waits.push(wait);
        // The other two leave too, and whoever is sequencer then says nothing.
        let term = cluster.status(2).0;
        let change = Body::Change(Change { term, reason: Reason::Batch });
        cluster.forge(0, &change);
        cluster.settle();
    }
    waits
}

#[test]
fn p4_patience_doubles_per_term_up_to_its_cap() {
    let mut cluster = Cluster::new(1);
    cluster.kill_guest(0);
    cluster.kill_guest(1);
    cluster.send(2, order(3, 0, 1, 1, b"never delivered: no vote but its own"));
    let waits = patiences(&mut cluster, 9);
    let grown: Vec<_> = waits.iter().map(|wait| (wait + 5) / CHANGE_MS).collect();
    assert_eq!(grown, [1, 2, 4, 8, 16, 32, 64, 64, 64], "{waits:?}");
}

#[test]
fn p4_patience_halves_only_after_m_deliveries_within_a_term() {
    for (deliveries, factor) in [(99, 2), (100, 1)] {
        let mut cluster = Cluster::new(1);
        cluster.kill_guest(0);
        cluster.send_all(&order(3, 0, 1, 1, b"x"));
        cluster.pass_until(2 * CHANGE_MS, |c| c.delivered(1)); // term 1, patience doubled
        for count in 2..=deliveries {
            cluster.send(1, order(3, 0, 1, count, b"x"));
            cluster.settle();
        }
        assert!(cluster.delivered(deliveries));
        cluster.kill_guest(1);
        cluster.send(2, order(3, 0, 1, deliveries + 1, b"y"));
        let before = cluster.counter(2, "changes_written");
        let wait = cluster.pass_until(5 * CHANGE_MS, |c| c.counter(2, "changes_written") > before);
        assert_eq!((wait + 5) / CHANGE_MS, factor, "{deliveries} deliveries, {wait} ms");
    }
}
