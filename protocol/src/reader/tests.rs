//! One test per clause of section 4: leave the clause out, and the test fails.

use super::*;
use shared_registers::ids::ClientId;
use shared_registers::order::OrderView;
use shared_registers::record::{Change, Reason, Vote};

const CLUSTER: ClusterId = ClusterId([9; 32]);

/// Streams as hosts would stamp them, read as they are appended.
struct World {
    reader: Reader,
    lengths: Vec<u64>,
}

impl World {
    fn new(f: usize) -> World {
        World::with_window(f, 4)
    }

    fn with_window(f: usize, window: u64) -> World {
        let n = 2 * f + 1;
        World { reader: Reader::new(CLUSTER, n, window, u64::MAX), lengths: vec![0; n] }
    }

    fn stamp(&self, writer: u16, seen: &[u64]) -> Stamp {
        let mut seen: Box<[u64]> = seen.into();
        let before = self.lengths[usize::from(writer)];
        seen[usize::from(writer)] = before;
        let (writer, seq) = (ServerId(writer), Seq(before + 1));
        Stamp { writer, seq, time: Micros(0), incarnation: 0, seen }
    }

    /// Appends a record whose writer had seen `seen`, and reads it.
    fn append_seen(&mut self, writer: u16, body: Body<'_>, seen: &[u64]) -> (Said, Position) {
        let stamp = self.stamp(writer, seen);
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        self.lengths[usize::from(writer)] += 1;
        let at = Position { writer: stamp.writer, seq: stamp.seq };
        (self.reader.read(&Record { stamp, body: &bytes }), at)
    }

    /// Appends a record whose writer had seen everything.
    fn append(&mut self, writer: u16, body: Body<'_>) -> Said {
        let seen = self.lengths.clone();
        self.append_seen(writer, body, &seen).0
    }

    fn change(&mut self, writer: u16, term: u64) -> Position {
        let seen = self.lengths.clone();
        let change = Change { term: Term(term), reason: Reason::Dead };
        self.append_seen(writer, Body::Change(change), &seen).1
    }

    fn propose(&mut self, writer: u16, term: u64, batch: u64) -> Said {
        self.append(writer, proposal(term, batch, &[]))
    }

    fn open(&mut self, writer: u16, term: u64, batch: u64, evidence: &[Position]) -> Said {
        self.append(writer, proposal(term, batch, evidence))
    }

    fn vote(&mut self, writer: u16, term: u64, upto: u64) -> Said {
        let seen = self.lengths.clone();
        self.vote_seen(writer, term, upto, &seen)
    }

    fn vote_seen(&mut self, writer: u16, term: u64, upto: u64, seen: &[u64]) -> Said {
        let chain = self.chain(term, upto).unwrap_or_default();
        self.append_seen(writer, ballot(term, upto, chain), seen).0
    }

    fn chain(&self, term: u64, batch: u64) -> Option<Digest> {
        self.reader.term(Term(term))?.chain_at(Batch(batch))
    }

    fn is_dead(&self, term: u64) -> bool {
        self.reader.term(Term(term)).is_some_and(TermState::is_dead)
    }

    fn committed(&self) -> u64 {
        self.reader.committed().0
    }

    /// Every server leaves `term`.
    fn all_change(&mut self, term: u64) -> Vec<Position> {
        (0..self.lengths.len() as u16).map(|writer| self.change(writer, term)).collect()
    }
}

fn ballot(term: u64, upto: u64, chain: Digest) -> Body<'static> {
    let vote = Some(Vote { upto: Batch(upto), chain });
    Body::Accept(Accept { term: Term(term), vote, checkpoint: None })
}

/// A proposal; batch 0 is an empty one. The batch's one order says which term and batch it is of.
fn proposal(term: u64, batch: u64, evidence: &[Position]) -> Body<'static> {
    let id = OrderId { client: ClientId(term as u32), session: batch, count: 1 };
    let order =
        OrderView { id, digest: order::digest(&CLUSTER, id, b"m"), mac: &[0; 32], payload: b"m" };
    let orders = if batch == 0 { vec![] } else { vec![order] };
    let (term, batch) = (Term(term), Batch(batch));
    Body::Propose(Propose { term, batch, evidence: evidence.to_vec(), orders })
}

const fn at(writer: u16, seq: u64) -> Position {
    Position { writer: ServerId(writer), seq: Seq(seq) }
}

#[test]
fn v0_a_record_waits_for_its_causal_past() {
    let mut world = World::new(1);
    let early = world.stamp(1, &[1, 0, 0]);
    assert!(!world.reader.can_read(&early), "its seen names a record that was not read");
    world.propose(0, 0, 1);
    assert!(world.reader.can_read(&early));
    let gap = Stamp { seq: Seq(2), ..early };
    assert!(!world.reader.can_read(&gap), "its stream has a record before it");
}

#[test]
#[should_panic(expected = "V0")]
fn v0_reading_ahead_is_refused_loudly() {
    World::new(1).append_seen(1, ballot(0, 0, Digest::default()), &[1, 0, 0]);
}

#[test]
fn v1_a_change_closes_all_segments_up_to_its_term() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    world.change(1, 2);
    assert_eq!(world.reader.segment(ServerId(1)), Term(3), "a jump closes 0, 1 and 2");
    assert_eq!(world.vote(1, 0, 1), Said::Nothing, "a vote of a closed segment");
    assert_eq!(world.vote(2, 0, 1), Said::Voted(Term(0)));
}

#[test]
fn v1_a_proposal_counts_only_in_the_segment_of_its_term() {
    let mut world = World::new(1);
    world.change(0, 0);
    assert_eq!(world.propose(0, 0, 1), Said::Nothing, "its sequencer has left the term");
    let evidence = [at(0, 1), world.change(1, 0)];
    assert_eq!(world.open(2, 2, 1, &evidence), Said::Nothing, "server 2 is still in segment 0");
    assert_eq!(world.open(1, 1, 1, &evidence), Said::Proposed(Term(1)));
}

#[test]
fn v2_only_the_sequencer_of_the_term_proposes() {
    let mut world = World::new(1);
    assert_eq!(world.propose(1, 0, 1), Said::Nothing);
    assert!(!world.is_dead(0));
    assert_eq!(world.propose(0, 0, 1), Said::Proposed(Term(0)));
}

#[test]
fn v2_batches_are_consecutive_and_never_empty() {
    for wrong in [1, 3, 0] {
        let mut world = World::new(1);
        world.propose(0, 0, 1);
        assert_eq!(world.propose(0, 0, wrong), Said::Nothing);
        assert!(world.is_dead(0), "batch {wrong} after batch 1");
        assert_eq!(world.propose(0, 0, 2), Said::Nothing, "dead from there on");
        assert_eq!(world.vote(1, 0, 1), Said::Voted(Term(0)), "what was live stays so");
        assert_eq!(world.committed(), 1);
    }
}

#[test]
fn v2_no_batch_is_more_than_w_past_what_is_committed_within_its_own_past() {
    let mut world = World::with_window(1, 2);
    world.propose(0, 0, 1);
    world.propose(0, 0, 2);
    world.vote(1, 0, 1);
    assert_eq!(world.committed(), 1);
    // The sequencer's host had not exposed that vote: for its next batch, nothing is committed.
    let seen = [2, 0, 0];
    assert_eq!(world.append_seen(0, proposal(0, 3, &[]), &seen).0, Said::Nothing);
    assert!(world.is_dead(0));

    let mut world = World::with_window(1, 2);
    world.propose(0, 0, 1);
    world.propose(0, 0, 2);
    world.vote(1, 0, 1);
    assert_eq!(world.propose(0, 0, 3), Said::Proposed(Term(0)));
    assert_eq!(world.propose(0, 0, 4), Said::Nothing);
}

#[test]
fn v2_an_opening_needs_f_plus_one_changes_of_exactly_the_term_before() {
    let cases: [(&str, &[Position], bool); 6] = [
        ("two of the term before", &[at(0, 1), at(2, 1)], true),
        ("one", &[at(0, 1)], false),
        ("one of them twice", &[at(0, 1), at(0, 1)], false),
        ("three", &[at(0, 1), at(1, 1), at(2, 1)], false),
        ("a record that is no change", &[at(0, 1), at(2, 2)], false),
        ("one that does not exist", &[at(0, 1), at(2, 9)], false),
    ];
    for (what, evidence, valid) in cases {
        let mut world = World::new(1);
        world.all_change(0);
        world.vote(2, 0, 0);
        world.open(1, 1, 1, evidence);
        assert_eq!(!world.is_dead(1), valid, "{what}");
    }

    let mut world = World::new(1);
    world.all_change(0);
    let wrong_term = world.all_change(1);
    world.open(2, 2, 0, &[wrong_term[0], at(1, 1)]);
    assert!(world.is_dead(2), "CHANGE(0) does not open term 2");
}

#[test]
fn v2_evidence_must_lie_within_the_openings_own_past() {
    let mut world = World::new(1);
    let evidence = [world.change(0, 0), world.change(1, 0)];
    // Server 1's host had not exposed server 0's CHANGE yet.
    world.append_seen(1, proposal(1, 1, &evidence), &[0, 1, 0]);
    assert!(world.is_dead(1));
}

#[test]
fn v2_an_opening_with_a_wrong_batch_opens_nothing() {
    let mut world = World::new(1);
    let evidence = world.all_change(0);
    world.open(1, 1, 2, &evidence[..2]);
    assert!(world.is_dead(1));
    assert_eq!(world.vote(0, 1, 0), Said::Nothing);
}

#[test]
fn v3_a_vote_needs_the_batch_and_the_opening_within_its_own_past() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    world.propose(0, 0, 2);
    assert_eq!(world.vote_seen(1, 0, 2, &[1, 0, 0]), Said::Nothing, "batch 2 was not exposed");
    assert_eq!(world.vote_seen(1, 0, 1, &[1, 0, 0]), Said::Voted(Term(0)));

    let mut world = World::new(1);
    let evidence = world.all_change(0);
    world.open(1, 1, 0, &evidence[..2]);
    assert_eq!(world.vote_seen(0, 1, 0, &[1, 1, 1]), Said::Nothing, "the opening was not exposed");
    assert_eq!(world.vote_seen(0, 1, 0, &[1, 2, 1]), Said::Voted(Term(1)));
}

#[test]
fn v3_a_vote_names_the_terms_chain_and_does_not_go_down() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    world.propose(0, 0, 2);
    let wrong = ballot(0, 1, Digest([1; 32]));
    assert_eq!(world.append(1, wrong), Said::Nothing);
    assert_eq!(world.vote(1, 0, 3), Said::Nothing, "no such batch");
    assert_eq!(world.vote(1, 0, 2), Said::Voted(Term(0)));
    assert_eq!(world.vote(1, 0, 1), Said::Nothing, "below its earlier vote");
    assert_eq!(world.vote(1, 0, 2), Said::Voted(Term(0)), "the same again");
}

#[test]
fn v3_a_live_proposal_and_an_opening_are_votes() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    assert_eq!(world.reader.vote(ServerId(0), Term(0)), Some(Batch(1)));
    let evidence = world.all_change(0);
    world.open(1, 1, 0, &evidence[..2]);
    assert_eq!(world.reader.vote(ServerId(1), Term(1)), Some(Batch(1)), "the base");
}

#[test]
fn b1_the_base_is_the_highest_cited_vote_whoever_is_the_sequencer() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    world.propose(0, 0, 2);
    world.vote(2, 0, 2);
    assert_eq!(world.committed(), 2);
    let evidence = world.all_change(0);
    // Server 1 has voted for nothing; its own stream, or the lowest, would lose what is committed.
    let base = world.reader.base_of(Term(1), &evidence[1..]).unwrap();
    assert_eq!((base.batch, base.parent), (Batch(2), Some(Term(0))));
    assert_eq!(base.chain, world.chain(0, 2).unwrap());
    assert_eq!(world.open(1, 1, 3, &evidence[1..]), Said::Proposed(Term(1)));
}

#[test]
fn b1_only_votes_before_the_cited_change_count() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    let cited = [world.change(1, 0), world.change(2, 0)];
    assert_eq!(world.reader.base_of(Term(1), &cited).unwrap().batch, Batch(0));
    let base = world.reader.base_of(Term(1), &[cited[0], at(0, 1)]);
    assert_eq!(base, None, "a PROPOSE is no CHANGE");
}

#[test]
fn b1_a_later_terms_vote_is_higher_than_a_larger_batch_of_an_earlier() {
    let mut world = World::new(2);
    for batch in 1..=3 {
        world.propose(0, 0, batch);
    }
    // Only server 0 voted for 1 to 3; the others leave with nothing, and term 1 begins anew.
    let first: Vec<_> = (1..=4).map(|writer| world.change(writer, 0)).collect();
    world.open(1, 1, 1, &first[..3]);
    world.vote(2, 1, 1);
    world.vote(3, 1, 1);
    assert_eq!(world.committed(), 1);
    let late = world.change(0, 0);
    let second = [world.change(0, 1), world.change(1, 1), world.change(2, 1)];
    let base = world.reader.base_of(Term(2), &second).unwrap();
    assert_eq!((base.batch, base.parent), (Batch(1), Some(Term(1))), "not batch 3 of term 0");
    assert_eq!(late, at(0, 4));
}

#[test]
fn c1_f_plus_one_votes_of_one_term_commit() {
    for f in 1..=3 {
        let mut world = World::new(f);
        world.propose(0, 0, 1);
        for voter in 1..=f as u16 {
            assert_eq!(world.committed(), 0, "f = {f}, {voter} votes");
            world.vote(voter, 0, 1);
        }
        assert_eq!(world.committed(), 1, "f = {f}");
    }
}

#[test]
fn c1_votes_of_different_terms_do_not_add_up() {
    let mut world = World::new(2);
    world.propose(0, 0, 1);
    world.vote(1, 0, 1);
    let evidence: Vec<_> = (1..=4).map(|writer| world.change(writer, 0)).collect();
    // Without server 1's CHANGE nobody cited has voted for it: the new term proposes another.
    let others = [evidence[1], evidence[2], evidence[3]];
    world.open(1, 1, 1, &others);
    world.vote(2, 1, 1);
    assert_eq!(world.committed(), 0, "two votes of term 0 and two of term 1");
    world.vote(3, 1, 1);
    assert_eq!(world.committed(), 1);
}

#[test]
fn c1_what_an_old_term_commits_late_is_in_every_later_chain() {
    let mut world = World::new(1);
    world.propose(0, 0, 1);
    let evidence = [world.change(1, 0), world.change(0, 0)];
    assert_eq!(world.reader.entered(), Term(1));
    // Server 2 has not left term 0: its vote is late, and counts.
    assert_eq!(world.vote(2, 0, 1), Said::Voted(Term(0)));
    assert_eq!(world.committed(), 1);
    world.open(1, 1, 2, &evidence);
    world.change(2, 0);
    world.vote(2, 1, 2);
    let taken: Vec<_> = std::iter::from_fn(|| world.reader.take_committed()).collect();
    let orders: Vec<_> = taken.iter().map(|b| (b.orders[0].id.client.0, b.batch.0)).collect();
    assert_eq!(orders, [(0, 1), (1, 2)], "term 1's chain begins with term 0's batch");
    assert_eq!(taken[1].chain, world.chain(1, 2).unwrap());
}

#[test]
fn the_chain_is_over_the_orders_without_their_macs() {
    let chain = |mac: [u8; 32], payload: &[u8]| {
        let mut world = World::new(1);
        let id = OrderId { client: ClientId(0), session: 1, count: 1 };
        let digest = order::digest(&CLUSTER, id, payload);
        let orders = vec![OrderView { id, digest, mac: &mac, payload }];
        let (term, batch) = (Term(0), Batch(1));
        world.append(0, Body::Propose(Propose { term, batch, evidence: vec![], orders }));
        world.chain(0, 1).unwrap()
    };
    assert_eq!(chain([1; 32], b"a"), chain([2; 32], b"a"));
    assert_ne!(chain([1; 32], b"a"), chain([1; 32], b"b"));
}

#[test]
fn orders_are_forgotten_once_their_batch_is_taken() {
    let mut world = World::new(1);
    for batch in 1..=3 {
        world.propose(0, 0, batch);
        world.vote(1, 0, batch);
        assert_eq!(world.reader.untaken(Term(0)).count(), 1);
        assert_eq!(world.reader.take_committed().unwrap().batch, Batch(batch));
        assert_eq!(world.reader.untaken(Term(0)).count(), 0);
    }
    assert!(world.reader.holding.is_empty());
    let held = world.reader.terms[&Term(0)].get(Batch(2)).unwrap();
    assert!(held.orders.is_none());
}

/// A writer's votes and changes of many terms: what a snapshot of the past sees.
#[test]
fn a_vote_is_found_within_any_prefix() {
    let mut writer = Writer::default();
    for (seq, term, upto) in [(1, 0, 1), (2, 0, 3), (5, 2, 3), (6, 2, 4)] {
        writer.vote(Seq(seq), Term(term), Batch(upto));
    }
    let within = |term, read| writer.vote_within(Term(term), read).map(|b| b.0);
    assert_eq!((within(0, 0), within(0, 1), within(0, 4)), (None, Some(1), Some(3)));
    assert_eq!((within(0, 9), within(1, 9)), (Some(3), None));
    assert_eq!((within(2, 4), within(2, 5), within(2, u64::MAX)), (None, Some(3), Some(4)));
}
