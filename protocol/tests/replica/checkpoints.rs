//! Stories of checkpoints: claimed, stable, pruned to, started from, and missed (section 6, R7).

use crate::support::{CHANGE_MS, CLUSTER, Cluster, order};
use protocol::limits::WINDOW_CHECKPOINTS;
use protocol::messages::ToGuest;
use protocol::transfer::{self, Fetch, FetchConfig};
use shared_registers::host_side::Counter;
use shared_registers::ids::{Batch, Micros, ServerId, Term};
use shared_registers::order::weight;
use shared_registers::record::{Accept, Body, Checkpoint, Vote};

/// `K`: about eight orders.
const WEIGHT: u64 = 8 * 512;

fn stable(cluster: &Cluster, i: usize) -> Option<Checkpoint> {
    cluster.servers[i].replica.stable().cloned()
}

fn send_each(cluster: &mut Cluster, counts: std::ops::RangeInclusive<u64>) {
    for count in counts {
        let order = order(cluster.n, 0, 1, count, b"");
        cluster.send_all(&order);
        cluster.settle();
    }
}

#[test]
fn s6_checkpoints_become_stable_and_everything_before_is_let_go() {
    for f in 1..=2 {
        let mut cluster = Cluster::with_checkpoints(f, WEIGHT);
        send_each(&mut cluster, 1..=100);
        let first = stable(&cluster, 0).expect("a stable checkpoint");
        assert_eq!(first.batch, Batch(96), "the last multiple of eight");
        for i in 0..cluster.n {
            assert_eq!(stable(&cluster, i).as_ref(), Some(&first));
            let replica = &cluster.servers[i].replica;
            assert_eq!(replica.snapshot().unwrap().checkpoint(), &first);
            let [votes, changes, terms, batches] = replica.reader().held();
            assert!(votes < 20 && batches < 20, "server {i}: {votes} votes, {batches} batches");
            assert_eq!((changes, terms), (0, 1));
            assert_eq!(cluster.counter(i, "checkpoints_differing"), 0);
            assert_eq!(cluster.counter(i, "checkpoints_claimed"), 12, "one each");
        }
        cluster.one_order();
    }
}

#[test]
fn s6_a_checkpoint_is_due_at_the_base_of_every_term() {
    let mut cluster = Cluster::with_checkpoints(1, 1 << 40);
    send_each(&mut cluster, 1..=3);
    for (term, count) in [(1, 4), (2, 5)] {
        let sequencer = (term as usize - 1) % 3;
        cluster.kill_guest(sequencer);
        cluster.send_all(&order(3, 0, 1, count, b""));
        cluster.pass_until(64 * CHANGE_MS, |c| c.delivered(count));
        cluster.restart_guest(sequencer);
        cluster.settle();
        let stable = stable(&cluster, 2).expect("a checkpoint");
        assert_eq!((stable.term, stable.batch), (Term(term), Batch(count - 1)));
    }
}

#[test]
fn s6_a_restarted_guest_does_not_claim_again_what_it_claimed() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    send_each(&mut cluster, 1..=20);
    let accepts = |c: &Cluster| c.servers[2].host.registers().counter(Counter::Accepts);
    let before = accepts(&cluster);
    for _ in 0..3 {
        cluster.restart_guest(2);
        cluster.pass(5);
    }
    assert_eq!(accepts(&cluster), before);
}

#[test]
fn s6_a_guest_starts_from_a_snapshot_and_takes_part() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    send_each(&mut cluster, 1..=30);
    cluster.kill_guest(2);
    send_each(&mut cluster, 31..=60);
    cluster.restart_from_snapshot(2, 0);
    cluster.settle();
    assert!(cluster.delivered(60));
    cluster.one_order();
    // Its votes are needed now, and its claims.
    cluster.kill_guest(1);
    send_each(&mut cluster, 61..=90);
    assert!(cluster.delivered(90));
    assert_eq!(stable(&cluster, 2), stable(&cluster, 0));
    assert_eq!(stable(&cluster, 2).unwrap().batch, Batch(88));
    assert_eq!(cluster.counter(2, "checkpoints_differing"), 0);
    // So does a sequencer that did.
    cluster.restart_guest(1);
    cluster.kill_guest(0);
    cluster.send_all(&order(3, 0, 1, 91, b""));
    cluster.pass_until(64 * CHANGE_MS, |c| c.delivered(91));
    cluster.restart_from_snapshot(0, 2);
    cluster.pass_until(64 * CHANGE_MS, |c| c.delivered(91));
    send_each(&mut cluster, 92..=120);
    assert!(cluster.delivered(120));
    cluster.one_order();
}

#[test]
fn r7_a_sequencer_waits_for_checkpoints_and_nobody_suspects_it_for_that() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    // Server 1 is in an attacker's hands, who votes and claims nothing; server 2 is away.
    cluster.kill_guest(1);
    cluster.kill_guest(2);
    for count in 1..=60 {
        cluster.send(0, order(3, 0, 1, count, b""));
        cluster.settle();
        let state = cluster.servers[0].replica.reader().term(Term(0)).unwrap();
        let vote = Some(Vote { upto: state.last(), chain: state.chain() });
        let voted = cluster.servers[0].replica.reader().vote(ServerId(1), Term(0));
        if voted < Some(state.last()) {
            let body = Body::Accept(Accept { term: Term(0), vote, checkpoint: None });
            cluster.forge(1, &body);
        }
        cluster.settle();
    }
    let (used, room) = cluster.servers[0].replica.window();
    assert_eq!(room, WINDOW_CHECKPOINTS * WEIGHT);
    assert!(used >= room && used < room + weight(0), "{used} of {room}");
    assert_eq!(cluster.status(0).1.0, 24);
    cluster.pass(20 * CHANGE_MS);
    assert_eq!(cluster.status(0).0, Term(0), "its own timers rest");
    assert_eq!(cluster.counter(0, "changes_written"), 0);
    cluster.restart_guest(2);
    cluster.settle();
    cluster.pass(1);
    assert!(cluster.delivered(60), "the claims of server 2 open the window");
    assert_eq!(cluster.status(2).0, Term(0));
    assert!(stable(&cluster, 0).unwrap().batch > Batch(24));
}

/// Whoever asks for a snapshot has read that it is stable; whom it asks may not have.
#[test]
fn s6_a_guest_serves_what_it_claimed_though_nobody_else_has() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    // Server 1 is in an attacker's hands, who votes and claims nothing; server 2 is away.
    cluster.kill_guest(1);
    cluster.kill_guest(2);
    let mut claimed = Vec::new();
    for count in 1..=20 {
        cluster.send(0, order(3, 0, 1, count, b""));
        cluster.settle();
        let state = cluster.servers[0].replica.reader().term(Term(0)).unwrap();
        let vote = Some(Vote { upto: state.last(), chain: state.chain() });
        let body = Body::Accept(Accept { term: Term(0), vote, checkpoint: None });
        cluster.forge(1, &body);
        cluster.settle();
        if cluster.counter(0, "checkpoints_claimed") > claimed.len() as u64 {
            claimed.extend(cluster.servers[0].replica.claimable_snapshot());
        }
    }
    let replica = &cluster.servers[0].replica;
    assert!(claimed.len() == 2 && replica.stable().is_none());
    for snapshot in claimed {
        let (me, n, silence) = (ServerId(2), 3, Micros(1));
        let config = FetchConfig { me, n, cluster: CLUSTER, silence };
        let mut fetch = Fetch::new(config, snapshot.checkpoint().clone());
        let (mut now, mut asked) = (Micros(0), Vec::new());
        while !fetch.is_complete() {
            fetch.poll(now, &mut asked);
            for (source, question) in asked.drain(..) {
                let ToGuest::Fetch { digest, from } = question else { panic!("{question:?}") };
                let found = replica.piece_of(&digest, from).filter(|_| source == ServerId(0));
                fetch.on_message(now, source, transfer::answer(digest, from, found));
            }
            now = now.plus(silence);
            assert!(now < Micros(1000), "{:?}", fetch.progress());
        }
        assert_eq!(fetch.snapshot().unwrap().checkpoint(), snapshot.checkpoint());
    }
}

#[test]
fn r7_only_a_full_window_excuses_a_sequencer() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    send_each(&mut cluster, 1..=10);
    cluster.kill_guest(0);
    cluster.send_all(&order(3, 0, 1, 11, b""));
    cluster.pass_until(16 * CHANGE_MS, |c| c.delivered(11));
}

/// Only what is left free keeps the rings from filling: no checkpoint is due but at bases. Every
/// order is proposed by a sequencer that has room, and those who have none keep theirs for what
/// makes room.
#[test]
fn r7_no_ring_is_ever_full_and_a_sequencer_without_room_is_replaced() {
    let mut cluster = Cluster::with_checkpoints(1, 1 << 40);
    let payload = vec![7; 4096];
    for count in 1..=3000 {
        let order = order(3, 0, 1, count, &payload);
        cluster.send_all(&order);
        cluster.pass_until(64 * CHANGE_MS, |c| {
            let full = c.servers.iter().position(|server| server.registers.stream_full());
            assert_eq!(full, None, "a ring is full at order {count}");
            c.delivered(count)
        });
    }
    assert!(cluster.status(0).0 > Term(0), "12 MB do not fit into a ring of 8");
    assert!(stable(&cluster, 0).is_some());
}

/// A replica with a store claims nothing that is not there, and hands out each snapshot once.
#[test]
fn s6_a_replica_with_a_store_claims_what_is_stored() {
    let mut cluster = Cluster::with_checkpoints(1, WEIGHT);
    for server in &mut cluster.servers {
        server.replica.claim_after_store();
    }
    send_each(&mut cluster, 1..=10);
    assert!((0..3).all(|i| cluster.counter(i, "checkpoints_claimed") == 0));
    let mut first = Vec::new();
    for server in &mut cluster.servers {
        first.push(server.replica.to_store().expect("a snapshot"));
        assert!(server.replica.to_store().is_none(), "handed out already");
    }
    // The next is due before the first is there.
    send_each(&mut cluster, 11..=18);
    for (server, first) in cluster.servers.iter_mut().zip(&first) {
        let second = server.replica.to_store().expect("a newer one");
        assert!(second.delivered() > first.delivered());
        server.replica.on_stored(first.checkpoint());
    }
    cluster.pass(1);
    assert_eq!(stable(&cluster, 0).as_ref(), Some(first[0].checkpoint()));
    assert!((0..3).all(|i| cluster.counter(i, "checkpoints_claimed") == 1));
}
