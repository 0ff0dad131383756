//! Each strategy does what its name says: on a small stage of real hosts, its guest's stream, its
//! host's counters or its answers hold what they would not without it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use host_agent::{Host, HostConfig, Input, Now};
use protocol::messages::{OrderMessage, ToClient, ToServer};
use protocol::replica;
use shared_registers::crypto::{ClusterId, Digest, MacKey, Secret};
use shared_registers::host_side::{Counter, HostRegisters};
use shared_registers::ids::{
    Batch, ClientId, Micros, OrderId, OrderNumber, Position, Seq, ServerId, Term,
};
use shared_registers::layout::{DropReason, Geometry, read, write};
use shared_registers::limits::RegisterLimits;
use shared_registers::record::{Body, Record};
use shared_registers::words::{Words, WordsMut};

use super::abuse::LOOKS;
use super::script::{Announced, Script};
use super::strategies::{Abuse, Citing, Deed, Forgery, Lie, Strategy, When, all, only};
use super::{Guest, GuestConfig, GuestInput, GuestOutput};
use crate::memory::{Memory, SimWords};

const CLUSTER: ClusterId = ClusterId([9; 32]);
const CHANGE: Micros = Micros::from_ms(100);
const CLIENTS: u32 = 3;

/// A record of the stream of the guest that is watched.
#[derive(Clone, Debug)]
enum Wrote {
    Propose {
        term: Term,
        batch: Batch,
        evidence: Vec<Position>,
        ids: Vec<OrderId>,
    },
    Vote {
        term: Term,
        upto: Batch,
        chain: Digest,
    },
    /// A checkpoint, and no vote.
    Claim,
    Change(Term),
}

struct Actor {
    host: Host<Memory, Memory>,
    guest: Guest,
    read: Memory,
    write: Memory,
}

/// Three servers, one of which may be broken into. Everything arrives at once.
struct Stage {
    n: usize,
    now: Micros,
    actors: Vec<Actor>,
    linked: Vec<bool>,
    answers: Vec<(ServerId, ToClient)>,
}

fn key(client: ClientId, host: usize) -> MacKey {
    Secret::new([client.0 as u8 * 16 + host as u8 + 1; 32]).mac_key()
}

fn order(n: usize, client: u32, count: u64) -> OrderMessage {
    let id = OrderId { client: ClientId(client), session: 1, count };
    let keys: Vec<_> = (0..n).map(|host| key(id.client, host)).collect();
    OrderMessage::new(&CLUSTER, id, vec![client as u8, count as u8], &keys)
}

impl Stage {
    fn new(who: u16, deeds: &[Deed], script: &Script) -> Stage {
        Stage::with(only(3, ServerId(who), deeds), script)
    }

    fn with(strategies: Vec<Option<Vec<Strategy>>>, script: &Script) -> Stage {
        let n = strategies.len();
        let now = Micros(1_000_000);
        let actor = |(i, strategies): (usize, Option<Vec<_>>)| {
            let limits = RegisterLimits {
                max_payload_bytes: 64,
                ring_bytes: 1 << 19,
                write_ring_bytes: 1 << 16,
            };
            let me = ServerId(i as u16);
            let geometry = Geometry { n, server: me, cluster: CLUSTER, limits };
            let read: Memory = Arc::new(SimWords::new(geometry.read_file_bytes()));
            let write: Memory = Arc::new(SimWords::new(geometry.write_file_bytes()));
            let registers = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
            let order_keys = (0..CLIENTS).map(|client| key(ClientId(client), i)).collect();
            let config = HostConfig { order_keys, exchange: Micros::from_ms(10) };
            let host = Host::new(config, registers, Now { wall: now, mono: now });
            let replica = replica::Config {
                me,
                n,
                clients: CLIENTS,
                cluster: CLUSTER,
                max_payload_bytes: 64,
                window: 8,
                checkpoint_weight: limits.checkpoint_weight(),
                soft_batch_bytes: limits.soft_batch_bytes(),
                change: CHANGE,
                change_cap: Micros(CHANGE.0 * 8),
                host_down: Micros::from_ms(30),
                retain_messages: 1000,
                retain_bytes: 1 << 20,
            };
            let config = GuestConfig {
                me,
                n,
                cluster: CLUSTER,
                geometry,
                replica,
                strategies: strategies.unwrap_or_default(),
                seed: 7,
                lying: vec![(ClientId(2), (0..n).map(|host| key(ClientId(2), host)).collect())],
                store: None,
                script: script.clone(),
            };
            let guest = Guest::start(now, &config, read.clone(), write.clone());
            Actor { host, guest, read, write }
        };
        let actors = strategies.into_iter().enumerate().map(actor).collect();
        let mut stage = Stage { n, now, actors, linked: vec![false; n], answers: Vec::new() };
        for i in 0..n {
            stage.connect(i);
            stage.guest(i, GuestInput::Timer);
        }
        stage.settle();
        stage
    }

    fn clock(&self) -> Now {
        Now { wall: self.now, mono: self.now }
    }

    /// Connects a host with all others that are.
    fn connect(&mut self, i: usize) {
        let now = self.clock();
        for j in (0..self.n).filter(|j| *j != i && self.linked[*j]) {
            for (a, b) in [(i, j), (j, i)] {
                let up = Input::PeerUp(ServerId(b as u16));
                self.actors[a].host.step(now, up).unwrap();
            }
        }
        self.linked[i] = true;
    }

    fn cut(&mut self, i: usize) {
        let now = self.clock();
        self.linked[i] = false;
        for j in (0..self.n).filter(|j| *j != i) {
            for (a, b) in [(i, j), (j, i)] {
                let down = Input::PeerDown(ServerId(b as u16));
                self.actors[a].host.step(now, down).unwrap();
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            let mut any = false;
            let now = self.clock();
            for i in 0..self.n {
                while self.actors[i].host.has_frames() {
                    self.actors[i].host.step(now, Input::Guest).unwrap();
                    any = true;
                }
                for j in (0..self.n).filter(|j| *j != i) {
                    let mut frame = Vec::new();
                    while self.linked[i]
                        && self.linked[j]
                        && self.actors[i].host.next_frame(ServerId(j as u16), &mut frame)
                    {
                        let input = Input::PeerFrame(ServerId(i as u16), &frame);
                        self.actors[j].host.step(now, input).unwrap();
                        any = true;
                    }
                }
            }
            for i in 0..self.n {
                if self.actors[i].host.must_ring() {
                    self.guest(i, GuestInput::Registers);
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    fn guest(&mut self, i: usize, input: GuestInput) {
        let mut out = Vec::new();
        self.actors[i].guest.step(self.now, input, &mut out);
        for output in out {
            match output {
                GuestOutput::ToClient(_, answer) => {
                    self.answers.push((ServerId(i as u16), answer));
                }
                GuestOutput::ToGuest(to, order) => {
                    self.guest(to.index(), GuestInput::FromGuest(ServerId(i as u16), order));
                }
                GuestOutput::Transfer(to, message) => {
                    self.guest(to.index(), GuestInput::Transfer(ServerId(i as u16), message));
                }
                GuestOutput::RingHost | GuestOutput::Note(_) => {}
            }
        }
    }

    fn send(&mut self, client: u32, count: u64) {
        for i in 0..self.n {
            let order = order(self.n, client, count);
            let order = ToServer::Order(order);
            self.guest(i, GuestInput::FromClient(ClientId(client), order));
        }
        self.settle();
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now.plus(Micros(1000));
            let now = self.clock();
            for i in 0..self.n {
                if self.now.0.is_multiple_of(10_000) {
                    self.actors[i].host.step(now, Input::Tick).unwrap();
                }
                if self.actors[i].guest.next_deadline().is_some_and(|at| at <= self.now) {
                    self.guest(i, GuestInput::Timer);
                }
            }
            self.settle();
        }
    }

    /// Load, a term change because server 0 is cut off, and more load.
    fn play(&mut self) {
        for count in 1..=4 {
            self.send(0, count);
            self.send(1, count);
            let listen = |from| ToServer::Subscribe { from, messages: 100, bytes: 1 << 20 };
            let from = OrderNumber(1);
            (0..self.n).for_each(|i| {
                self.guest(i, GuestInput::FromClient(ClientId(2), listen(from)));
            });
            self.pass(3);
        }
        self.pass(150);
        self.cut(0);
        self.send(0, 5);
        self.pass(80);
        self.connect(0);
        for count in 5..=8 {
            self.send(1, count);
            self.pass(3);
        }
        self.pass(600);
    }

    /// What a guest has in its stream.
    fn stream(&self, who: u16) -> Vec<Wrote> {
        let registers = self.actors[usize::from(who)].host.registers();
        let mut stream = Vec::new();
        for seq in 1..=registers.copied(ServerId(who)).0 {
            let mut bytes = Vec::new();
            assert!(registers.record(ServerId(who), Seq(seq), &mut bytes));
            let record = Record::decode(&bytes, self.n).unwrap();
            stream.push(match Body::decode(record.body, self.n).unwrap() {
                Body::Propose(p) => Wrote::Propose {
                    term: p.term,
                    batch: p.batch,
                    evidence: p.evidence,
                    ids: p.orders.iter().map(|order| order.id).collect(),
                },
                Body::Accept(a) => match a.vote {
                    Some(vote) => Wrote::Vote { term: a.term, upto: vote.upto, chain: vote.chain },
                    None => Wrote::Claim,
                },
                Body::Change(c) => Wrote::Change(c.term),
            });
        }
        stream
    }

    fn dropped(&self, who: u16, reason: DropReason) -> u64 {
        let words = &self.actors[usize::from(who)].read;
        let word = read::COUNTERS + Counter::dropped(reason);
        words.load(word, Ordering::SeqCst)
    }

    fn said(&self, who: u16) -> impl Iterator<Item = &ToClient> {
        self.answers.iter().filter(move |(from, _)| from.0 == who).map(|(_, answer)| answer)
    }
}

/// What is to be seen of a deed of server `who`'s guest.
type Seen = fn(&Stage, u16) -> bool;

/// A PROPOSE: its term, batch, evidence and orders.
type Proposal = (Term, Batch, Vec<Position>, Vec<OrderId>);

fn proposals(stage: &Stage, who: u16) -> Vec<Proposal> {
    let of = |wrote| match wrote {
        Wrote::Propose { term, batch, evidence, ids } => Some((term, batch, evidence, ids)),
        _ => None,
    };
    stage.stream(who).into_iter().filter_map(of).collect()
}

/// Votes, each with the segment that it stands in.
fn votes(stage: &Stage, who: u16) -> Vec<(Term, Term, Batch, Digest)> {
    let mut segment = Term(0);
    let mut votes = Vec::new();
    for wrote in stage.stream(who) {
        match wrote {
            Wrote::Change(term) => segment = term.next(),
            Wrote::Vote { term, upto, chain } => votes.push((segment, term, upto, chain)),
            Wrote::Propose { .. } | Wrote::Claim => {}
        }
    }
    votes
}

fn openings(stage: &Stage, who: u16) -> Vec<Vec<Position>> {
    let cites = |(_, _, evidence, _): &(_, _, Vec<Position>, _)| !evidence.is_empty();
    proposals(stage, who).into_iter().filter(cites).map(|(_, _, evidence, _)| evidence).collect()
}

fn changes(stage: &Stage, who: u16) -> Vec<Term> {
    let of = |wrote| if let Wrote::Change(term) = wrote { Some(term) } else { None };
    stage.stream(who).into_iter().filter_map(of).collect()
}

fn same_orders_twice(stage: &Stage, who: u16) -> bool {
    proposals(stage, who)
        .iter()
        .any(|(.., ids)| ids.iter().any(|id| ids.iter().filter(|i| *i == id).count() > 1))
}

/// A deed that leaves something to be seen, whose it is to be, and what is seen of it.
type Exhibit = (u16, Vec<Deed>, Seen);

/// Every deed that leaves something to be seen in the course of a [`Stage::play`].
fn exhibits() -> Vec<Exhibit> {
    [vote_exhibits(), proposal_exhibits(), change_exhibits(), lie_exhibits(), abuse_exhibits()]
        .concat()
}

fn vote_exhibits() -> Vec<Exhibit> {
    vec![
        (0, vec![Deed::Silent], |s, w| s.stream(w).is_empty() && s.said(w).count() == 0),
        (1, vec![Deed::VoteOtherTerm], |s, w| votes(s, w).iter().any(|v| v.1 > v.0)),
        (2, vec![Deed::VoteAfterChange, Deed::ChangeEarly], |s, w| {
            votes(s, w).iter().any(|v| v.1 < v.0)
        }),
        (1, vec![Deed::VoteUnseen], |s, w| {
            // It imagines a batch, and votes for the real one when that is there.
            let all = votes(s, w);
            all.windows(2).any(|v| (v[0].1, v[0].2) == (v[1].1, v[1].2) && v[0].3 != v[1].3)
        }),
        (1, vec![Deed::VoteWrongChain], |s, w| {
            let right = votes(s, 2);
            votes(s, w).iter().any(|v| right.iter().any(|r| (r.1, r.2) == (v.1, v.2) && r.3 != v.3))
        }),
        (2, vec![Deed::VoteFalling], |s, w| {
            votes(s, w).windows(2).any(|two| two[0].1 == two[1].1 && two[1].2 < two[0].2)
        }),
        (2, vec![Deed::Turncoat, Deed::VoteFalling], |s, w| {
            votes(s, w).windows(2).any(|two| two[0].1 == two[1].1 && two[1].2 < two[0].2)
        }),
    ]
}

fn proposal_exhibits() -> Vec<Exhibit> {
    vec![
        (0, vec![Deed::Forge(Forgery::WrongMac)], |s, w| s.dropped(w, DropReason::OrderMac) > 0),
        (0, vec![Deed::Forge(Forgery::OtherClient)], |s, w| s.dropped(w, DropReason::OrderMac) > 0),
        (0, vec![Deed::Forge(Forgery::Altered)], |s, w| s.dropped(w, DropReason::OrderMac) > 0),
        (0, vec![Deed::Forge(Forgery::Misnamed)], |s, w| s.dropped(w, DropReason::OrderMac) > 0),
        (0, vec![Deed::Forge(Forgery::Accomplice)], |s, w| {
            // Nobody has heard this client order anything.
            proposals(s, w).iter().flat_map(|p| &p.3).any(|id| id.client == ClientId(2))
        }),
        (0, vec![Deed::Repeat], same_orders_twice),
        (0, vec![Deed::Replay], |s, w| {
            let all: Vec<_> = proposals(s, w).into_iter().flat_map(|p| p.3).collect();
            all.iter().any(|id| all.iter().filter(|other| *other == id).count() > 1)
        }),
        (0, vec![Deed::SkipBatch], |s, w| proposals(s, w).first().is_some_and(|p| p.1 > Batch(1))),
        (0, vec![Deed::RepeatBatch], |s, w| {
            proposals(s, w).windows(2).any(|two| two[0].0 == two[1].0 && two[0].1 == two[1].1)
        }),
        (0, vec![Deed::Overrun], |s, w| {
            // One order, batch after batch.
            let all = proposals(s, w);
            all.iter().filter(|p| p.3 == all[0].3).count() > 8
        }),
        (1, vec![Deed::Reopen], |s, w| {
            let all = proposals(s, w);
            all.iter().zip(1..).any(|(p, i)| all[i..].iter().any(|q| p.0 == q.0 && q.1 == Batch(0)))
        }),
        (0, vec![Deed::ProposeLate], |s, w| {
            let left = s.stream(w).iter().position(|wrote| matches!(wrote, Wrote::Change(_)));
            let rest = s.stream(w).split_off(left.unwrap());
            rest.iter().any(|r| matches!(r, Wrote::Propose { term: Term(0), .. }))
        }),
        (0, vec![Deed::Hesitate], |s, w| {
            // Whatever it proposed, another had lost patience before.
            changes(s, 1).contains(&Term(0)) && proposals(s, w).len() <= 1
        }),
        (0, vec![Deed::Starve(ClientId(1))], |s, w| {
            !proposals(s, w).iter().flat_map(|p| &p.3).any(|id| id.client == ClientId(1))
        }),
    ]
}

fn change_exhibits() -> Vec<Exhibit> {
    vec![
        (2, vec![Deed::ChangeEarly], |s, w| matches!(s.stream(w)[0], Wrote::Change(Term(0)))),
        (2, vec![Deed::ChangeJump], |s, w| s.dropped(w, DropReason::Change) > 0),
        (2, vec![Deed::ChangeNever], |s, w| changes(s, w).is_empty()),
        (1, vec![Deed::Cite(Citing::Few)], |s, w| openings(s, w).iter().any(|e| e.len() == 1)),
        (1, vec![Deed::Cite(Citing::OneWriter)], |s, w| {
            openings(s, w).iter().any(|e| e.len() == 2 && e[0] == e[1])
        }),
        (1, vec![Deed::Cite(Citing::Jumped)], |s, w| {
            // It cites its own term's end.
            let cited = |p: &Position| s.stream(p.writer.0).get(p.seq.0 as usize - 1).cloned();
            let later = |term, p| match cited(p) {
                Some(Wrote::Change(left)) => left >= term,
                _ => false,
            };
            let all = proposals(s, w);
            all.iter().any(|p| !p.2.is_empty() && p.2.iter().all(|cited| later(p.0, cited)))
        }),
        (1, vec![Deed::Cite(Citing::Random)], |s, w| {
            openings(s, w).iter().flatten().any(|cited| cited.seq.0 > 20 || cited.seq.0 == 0)
        }),
    ]
}

fn lie_exhibits() -> Vec<Exhibit> {
    vec![
        (1, vec![Deed::Lie(Lie::Reply)], |s, w| {
            s.said(w)
                .any(|a| matches!(a, ToClient::Reply(r) if r.digest == Digest::of(&[b"a lie"])))
        }),
        (1, vec![Deed::Lie(Lie::Digest)], |s, w| {
            let lie = Digest::of(&[b"another", b"a lie"]);
            s.said(w).any(|a| matches!(a, ToClient::Reply(r) if r.digest == lie))
        }),
        (1, vec![Deed::Lie(Lie::Term)], |s, w| {
            s.said(w).any(|a| matches!(a, ToClient::Reply(r) if r.term.0 > 1000))
        }),
        (1, vec![Deed::Lie(Lie::TooSoon)], |s, w| {
            s.said(w).next().is_some_and(
                |a| matches!(a, ToClient::Reply(r) if r.digest == Digest::of(&[b"a lie"])),
            )
        }),
        (1, vec![Deed::Lie(Lie::Delivery)], |s, w| {
            let lie = Digest::of(&[b"a lie"]);
            s.said(w).any(|a| matches!(a, ToClient::Delivery(d) if d.digest == lie))
        }),
        (1, vec![Deed::Lie(Lie::Refused)], |s, w| {
            s.said(w).any(|a| matches!(a, ToClient::Refused { .. }))
        }),
        (1, vec![Deed::Lie(Lie::Stale)], |s, w| {
            s.said(w).any(|a| matches!(a, ToClient::Stale { .. }))
        }),
        (1, vec![Deed::Lie(Lie::TooOld)], |s, w| {
            s.said(w).any(|a| matches!(a, ToClient::TooOld { .. }))
        }),
    ]
}

fn abuse_exhibits() -> Vec<Exhibit> {
    vec![
        (1, vec![Deed::Abuse(Abuse::Torn)], |s, w| s.dropped(w, DropReason::Framing) > 0),
        (1, vec![Deed::Abuse(Abuse::Length)], |s, w| s.dropped(w, DropReason::Framing) > 0),
        (1, vec![Deed::Abuse(Abuse::Rewrite)], |s, w| s.actors[usize::from(w)].write.altered() > 0),
        (1, vec![Deed::Abuse(Abuse::Number)], |s, w| s.dropped(w, DropReason::Number) > 0),
        (1, vec![Deed::Abuse(Abuse::Flood)], |s, w| votes(s, w).len() > 100),
        (1, vec![Deed::Abuse(Abuse::Noise)], |s, w| {
            s.actors[usize::from(w)].host.registers().counter(Counter::BadHead) > 0
        }),
    ]
}

#[test]
fn each_deed_leaves_its_mark_and_a_correct_guest_leaves_none() {
    let mut unseen = Vec::new();
    for (who, deeds, seen) in exhibits() {
        let mut stage = Stage::new(who, &deeds, &Script::default());
        stage.play();
        if !seen(&stage, who) {
            unseen.push((who, deeds, stage.stream(who)));
        }
    }
    assert!(unseen.is_empty(), "not to be seen: {unseen:?}");
    let mut calm = Stage::new(0, &[], &Script::default());
    calm.play();
    let seen = exhibits().into_iter().filter(|(who, _, seen)| seen(&calm, *who));
    let seen: Vec<_> = seen.map(|(who, deeds, _)| (who, deeds)).collect();
    assert_eq!(seen, [], "this is to be seen of correct guests too");
}

#[test]
fn a_frame_is_rewritten_before_between_and_after_its_hosts_looks() {
    let mut stage = Stage::new(1, &[Deed::Abuse(Abuse::Rewrite)], &Script::default());
    let Actor { guest: Guest::Byzantine(guest), read, write, .. } = &mut stage.actors[1] else {
        panic!("it is broken into")
    };
    let look = |word| write.load(word, Ordering::SeqCst);
    let [before, between, after] = [200, 201, 202];
    guest.rewrite_word(before, 0);
    assert_ne!(look(before), 0);
    guest.rewrite_word(between, 2);
    let looks = [look(between), look(between), look(between)];
    assert!(looks[..2] == [0, 0] && looks[2] != 0, "{looks:?}");
    // The last frame ends far ahead of what is consumed.
    let consumed = read.load(read::CONSUMED, Ordering::SeqCst);
    write.store(write::HEAD, consumed + 64, Ordering::SeqCst);
    guest.rewrite_word(after, LOOKS);
    guest.rewrite_consumed();
    assert_eq!(look(after), 0);
    read.store(read::CONSUMED, consumed + 64, Ordering::SeqCst);
    guest.rewrite_consumed();
    assert_ne!(look(after), 0);
}

/// Orders of one client, 10 ms apart: to which of them a backup lied that does so at this time.
fn lies(when: When) -> Vec<bool> {
    const ORDERS: u64 = 12;
    let lie = Strategy { deed: Deed::Lie(Lie::Reply), when };
    let mut stage = Stage::with(vec![None, Some(vec![lie]), None], &Script::default());
    let mut lies = Vec::new();
    for count in 1..=ORDERS {
        stage.send(0, count);
        let is_lie = |answer: &ToClient| match answer {
            ToClient::Reply(reply) if reply.count == count => {
                Some(reply.digest == Digest::of(&[b"a lie"]))
            }
            _ => None,
        };
        lies.push(stage.said(1).find_map(is_lie).expect("it answers, truly or not"));
        stage.pass(10);
    }
    lies
}

#[test]
fn never_is_at_no_time() {
    assert_eq!(lies(When::Never), [false; 12]);
}

#[test]
fn always_is_every_time() {
    assert_eq!(lies(When::Always), [true; 12]);
}

#[test]
fn by_chance_is_at_some_times() {
    let some = lies(When::Chance(500));
    assert!(some.contains(&true) && some.contains(&false), "{some:?}");
    assert_eq!(
        (lies(When::Chance(0)), lies(When::Chance(1000))),
        (vec![false; 12], vec![true; 12])
    );
}

#[test]
fn from_a_delivery_on_is_from_that_very_one_on() {
    let orders: Vec<bool> = (1..=12).map(|order| order >= 5).collect();
    assert_eq!(lies(When::FromOrder(OrderNumber(5))), orders);
}

#[test]
fn between_two_moments_is_with_the_first_and_without_the_second() {
    // By its own clock the orders come after 0, 10, 20 ms and so on.
    let orders: Vec<bool> = (1..=12).map(|order| (4..7).contains(&order)).collect();
    assert_eq!(lies(When::Between(Micros::from_ms(30), Micros::from_ms(60))), orders);
}

#[test]
fn whoever_colludes_votes_for_what_was_announced() {
    let script = Script::default();
    let chain = Digest([5; 32]);
    script.announce(Announced { term: Term(0), batch: Batch(9), chain });
    let mut stage = Stage::new(1, &[Deed::VoteUnseen], &script);
    stage.play();
    assert!(votes(&stage, 1).contains(&(Term(0), Term(0), Batch(9), chain)));
}

#[test]
fn who_announces_says_what_it_then_proposes() {
    let script = Script::default();
    let mut stage = Stage::new(0, &[Deed::Announce], &script);
    stage.send(0, 1);
    stage.pass(20);
    let announced = script.announced(Term(0)).expect("it was sequencer");
    assert!(votes(&stage, 1).iter().any(|v| (v.2, v.3) == (announced.batch, announced.chain)));
}

#[test]
fn twins_propose_the_same_batch_each_with_its_own_orders() {
    let forked = |deeds: &[Deed]| {
        let mut stage = Stage::new(0, deeds, &Script::default());
        // The first is on its way: what comes meanwhile is proposed at one moment, by both.
        for (client, count) in [(0, 1), (0, 2), (1, 1)] {
            let order = ToServer::Order(order(3, client, count));
            stage.guest(0, GuestInput::FromClient(ClientId(client), order));
        }
        stage.settle();
        let all = proposals(&stage, 0);
        let clients = |ids: &[OrderId]| ids.iter().map(|id| id.client).collect::<BTreeSet<_>>();
        let fork = |p: &Proposal, q: &Proposal| {
            (p.0, p.1) == (q.0, q.1)
                && !p.3.is_empty()
                && !q.3.is_empty()
                && clients(&p.3).is_disjoint(&clients(&q.3))
        };
        let forks = all.iter().zip(1..).any(|(p, i)| all[i..].iter().any(|q| fork(p, q)));
        (forks, all)
    };
    let (twins, all) = forked(&[Deed::Twin]);
    assert!(twins, "{all:?}");
    let (correct, all) = forked(&[]);
    assert!(!correct && all.len() > 1, "{all:?}");
}

#[test]
fn a_slow_sequencer_is_just_not_slow_enough_to_be_replaced() {
    let mut stage = Stage::new(0, &[Deed::Slow], &Script::default());
    stage.send(0, 1);
    stage.pass(CHANGE.0 / 1000 - 15);
    assert!(proposals(&stage, 0).is_empty());
    stage.pass(12);
    assert!(!proposals(&stage, 0).is_empty() && changes(&stage, 1).is_empty());
}

#[test]
fn a_batch_backwards_is_one_that_c2_skips_the_most_of() {
    let mut stage = Stage::new(0, &[Deed::Reorder], &Script::default());
    for count in [1, 2, 3] {
        // Nothing settles in between: they come into one batch.
        let order = ToServer::Order(order(3, 0, count));
        stage.guest(0, GuestInput::FromClient(ClientId(0), order));
    }
    stage.settle();
    let counts = |ids: &[OrderId]| ids.iter().map(|id| id.count).collect::<Vec<_>>();
    assert!(
        proposals(&stage, 0)
            .iter()
            .any(|p| counts(&p.3).is_sorted_by(|a, b| a > b) && p.3.len() > 1)
    );
}

#[test]
fn every_deed_is_shown_here() {
    let shown: Vec<Deed> = exhibits().into_iter().flat_map(|(_, deeds, _)| deeds).collect();
    let elsewhere = [
        Deed::Slow,
        Deed::Twin,
        Deed::Announce,
        Deed::Reorder,
        // Which CHANGEs there are to choose from is shown by the canaries.
        Deed::Cite(Citing::CherryPicked),
        Deed::Cite(Citing::Unseen),
        Deed::Cite(Citing::OtherTerm),
    ];
    let same = |a: &Deed, b: &Deed| a == b || matches!((a, b), (Deed::Starve(_), Deed::Starve(_)));
    for deed in all() {
        assert!(
            shown.iter().chain(&elsewhere).any(|shown| same(shown, &deed)),
            "{deed:?} is shown nowhere"
        );
    }
}
