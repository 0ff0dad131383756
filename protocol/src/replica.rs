//! What a correct replica does (section 5): the pure core of a guest.
//!
//! Everything goes through [`Replica::step`]: messages from clients and other guests, records of
//! the streams, its host's word on dropped frames and on other hosts, and [`Input::Idle`], on which
//! it acts. It owns no clock, socket or file: `now` is any clock that does not go back.
//!
//! | module | rules |
//! |---|---|
//! | `intake` | orders that come in, kept replies, STALE (P1, P5) |
//! | `reading` | records, deliveries, replies (V0, C2, P5) |
//! | `checkpoints` | snapshots, claims, pruning (section 6) |
//! | `frames` | own frames in flight, and what becomes of them after a drop (R1) |
//! | `sequencing` | batches, openings (P1, P4) |
//! | `room` | what it leaves free of its own ring (R7) |
//! | `suspicion` | time-outs and reasons for a CHANGE (P3, P4) |
//! | `queues` | how long everything is that it keeps |

mod checkpoints;
mod frames;
mod intake;
mod queues;
mod reading;
mod room;
mod sequencing;
mod suspicion;

use shared_registers::canary::{Canary, broken};
use shared_registers::crypto::ClusterId;
use shared_registers::guest_side::{DropNotice, HostHint};
use shared_registers::ids::{ClientId, Micros, OrderNumber, Seq, ServerId, Term};
use shared_registers::record::{Accept, Body, Change, Reason, Record, Stamp, Vote};
use shared_registers::words::News;

use crate::application::Application;
use crate::history::History;
use crate::ledger::Ledger;
use crate::messages::{self, OrderMessage, Status, ToClient, ToServer};
use crate::pool::Pool;
use crate::reader::Reader;
use checkpoints::Checkpoints;
use frames::{Frames, What};
pub use queues::Queue;
use room::Room;
use sequencing::Sequencing;
use suspicion::Suspicion;

/// What a replica is told of its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which server it is.
    pub me: ServerId,
    /// How many servers there are: `2f + 1`.
    pub n: usize,
    /// How many clients there are.
    pub clients: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// Largest payload of an order, and largest reply.
    pub max_payload_bytes: usize,
    /// `W`: batches past the last that the term's own votes commit (V2).
    pub window: u64,
    /// `K`: weight of orders from one checkpoint to the next (section 6): see
    /// [`checkpoint_weight`](shared_registers::limits::RegisterLimits::checkpoint_weight).
    pub checkpoint_weight: u64,
    /// A batch takes no further order once its payloads are past so many bytes: see
    /// [`soft_batch_bytes`](shared_registers::limits::RegisterLimits::soft_batch_bytes).
    pub soft_batch_bytes: usize,
    /// `T_change`, at first.
    pub change: Micros,
    /// What it doubles up to.
    pub change_cap: Micros,
    /// How long the link to a host must be broken for it to count as down.
    pub host_down: Micros,
    /// Messages kept for listeners.
    pub retain_messages: usize,
    /// Bytes of their payloads.
    pub retain_bytes: usize,
}

/// What a replica can be told.
pub enum Input<'a> {
    /// A client's message, from a channel that proved to be its own. Only orders and
    /// [`ToServer::FetchReply`] mean anything here.
    Client(ClientId, ToServer),
    /// An order that another guest forwards.
    Forward(ServerId, OrderMessage),
    /// A stream's next record, for which [`Replica::can_read`] must hold.
    Record(Record<'a>),
    /// The host dropped one of the own frames.
    Dropped(DropNotice),
    /// What the host knows of all hosts (R8).
    Hints(&'a [HostHint]),
    /// Nothing more is at hand, or [`Replica::next_deadline`] has come: act.
    Idle,
}

/// What a replica wants done.
#[derive(Debug)]
pub enum Output {
    /// Write this frame body, meant for position `seq` of the own stream.
    Write {
        /// The position.
        seq: Seq,
        /// The encoded body.
        body: Vec<u8>,
    },
    /// Send this to a client.
    ToClient(ClientId, ToClient),
    /// Forward this to another guest.
    Forward(ServerId, OrderMessage),
}

/// What is known of a delivery.
#[derive(Debug)]
pub enum Lookup {
    /// It has not happened yet.
    Future,
    /// It is kept no longer.
    TooOld {
        /// The oldest that is.
        first: OrderNumber,
    },
    /// Here it is.
    Found(ToClient),
}

/// Counters of the core; see [`Replica::status`].
#[derive(Default)]
struct Counters {
    orders_taken: u64,
    orders_known: u64,
    orders_over_limit: u64,
    orders_forwarded: u64,
    orders_refused: u64,
    replies_repeated: u64,
    batches_proposed: u64,
    votes_written: u64,
    changes_written: u64,
    drops_noticed: u64,
    records_read: u64,
    checkpoints_claimed: u64,
    replies_too_large: u64,
}

/// A replica.
pub struct Replica {
    config: Config,
    reader: Reader,
    ledger: Ledger,
    history: History,
    pool: Pool,
    application: Box<dyn Application>,
    frames: Frames,
    sequencing: Sequencing,
    suspicion: Suspicion,
    checkpoints: Checkpoints,
    /// How much of the own ring is free; `None` if nobody said.
    room: Option<Room>,
    /// The term that `f + 1` CHANGEs let it enter last.
    term: Term,
    counters: Counters,
}

impl Replica {
    /// A replica that has read nothing. A restarted one reads its own stream like all others (P6).
    pub fn new(config: Config, application: Box<dyn Application>) -> Replica {
        Replica {
            reader: Reader::new(config.cluster, config.n, config.window, config.checkpoint_weight),
            ledger: Ledger::new(config.clients),
            history: History::new(config.retain_messages, config.retain_bytes),
            pool: Pool::new(config.clients, config.n),
            application,
            frames: Frames::default(),
            sequencing: Sequencing::default(),
            suspicion: Suspicion::new(&config),
            checkpoints: Checkpoints::default(),
            room: None,
            term: Term(0),
            counters: Counters::default(),
            config,
        }
    }

    /// Takes an input and appends what is to be done to `out`, in the order in which to do it.
    pub fn step(&mut self, now: Micros, input: Input<'_>, out: &mut Vec<Output>) {
        match input {
            Input::Client(client, message) => self.on_client(now, client, message, out),
            Input::Forward(server, order) => self.on_forward(now, server, order),
            Input::Record(record) => self.on_record(now, &record, out),
            Input::Dropped(notice) => self.on_drop(now, &notice, out),
            Input::Hints(hints) => self.suspicion.on_hints(now, hints),
            Input::Idle => self.act(now, out),
        }
    }

    /// Whether a record may be given now (V0). One that may not will be later, when other streams
    /// have been read further.
    pub fn can_read(&self, stamp: &Stamp) -> bool {
        self.reader.can_read(stamp)
    }

    fn act(&mut self, now: Micros, out: &mut Vec<Output>) {
        if self.frames.on_hold(now) {
            return;
        }
        self.suspicion.on_window(now, self.window_full());
        self.follow(now, out);
        self.take_part(now, out);
        // P4: checkpoints are written whatever term it is.
        self.write_claim(out);
    }

    fn take_part(&mut self, now: Micros, out: &mut Vec<Output>) {
        if !self.is_active() {
            // P4: nothing is written and timers rest until f + 1 are done with the term.
            if broken(Canary::P4VoteAfterChange) && !self.is_sequencer() {
                self.vote(out);
            }
            return;
        }
        if let Some(reason) = self.suspects(now) {
            self.write_change(self.term, reason, out);
        } else if self.is_sequencer() {
            self.propose(out);
        } else {
            self.vote(out);
        }
    }

    /// The first segment that the own stream does not close yet, counting frames in flight.
    fn segment(&self) -> Term {
        self.reader.segment(self.config.me).max(self.frames.segment())
    }

    /// Whether this replica takes part in its term: it has closed all before, and not this one.
    fn is_active(&self) -> bool {
        self.segment() == self.term
    }

    fn is_sequencer(&self) -> bool {
        self.term.sequencer(self.config.n) == self.config.me
    }

    // P4: f + 1 are done with the term before, so this replica is too; one that was away appends
    // the newest such CHANGE alone.
    fn follow(&mut self, now: Micros, out: &mut Vec<Output>) {
        if self.segment() < self.term {
            let left = Term(self.term.0 - 1);
            // Who convicts its sequencer counts, also of those that come late.
            let dead = self.reader.term(left).is_some_and(|state| state.is_dead());
            self.write_change(left, if dead { Reason::Dead } else { Reason::Follow }, out);
        }
        if self.suspicion.take_news_of_term() {
            self.forward_held(out);
            self.sequencing.reset();
        }
        self.suspicion.on_act(now);
    }

    fn write_change(&mut self, term: Term, reason: Reason, out: &mut Vec<Output>) {
        self.counters.changes_written += 1;
        self.write(What::Change { term }, &Body::Change(Change { term, reason }), out);
    }

    // P2: one ACCEPT for all live proposals of the term that are not voted for yet; for an empty
    // opening too (P4).
    fn vote(&mut self, out: &mut Vec<Output>) {
        let term = self.term;
        let Some(state) = self.reader.term(term).filter(|state| state.is_open()) else { return };
        let upto = state.last();
        let nothing_yet =
            (term == Term(0) || broken(Canary::P4BaseVote)) && upto == state.base().batch;
        let voted = self.reader.vote(self.config.me, term).max(self.frames.voted(term));
        if nothing_yet || voted >= Some(upto) || self.frames.full() {
            return;
        }
        if !self.has_room_for_a_vote(term) {
            return;
        }
        let vote = Some(Vote { upto, chain: state.chain() });
        self.counters.votes_written += 1;
        let checkpoint = self.due_claim();
        self.counters.checkpoints_claimed += u64::from(checkpoint.is_some());
        let claim = checkpoint.as_ref().map(|claim| (claim.term, claim.batch));
        let accept = Accept { term, vote, checkpoint };
        self.write(What::Vote { term, upto, claim }, &Body::Accept(accept), out);
    }

    /// For which news its host is to ring: what may make it act or deliver. Of the rest it may learn
    /// later, with the next that does: the sequencer need not see its own proposal come back, nor
    /// anybody a vote when all that was proposed is committed. Each ring costs as much as a hop.
    pub fn wanted(&self) -> News {
        let Config { me, n, .. } = self.config;
        let term = self.term;
        let calm = self.is_active()
            && !self.window_full()
            && !self.frames.full()
            && self.has_room_for_a_batch()
            && !self.suspicion.misses_host(term.sequencer(n));
        let state = self.reader.term(term).filter(|s| calm && s.is_open() && !s.is_dead());
        let Some(state) = state else { return News::ALL };
        let untouched = term == Term(0) && state.last() == state.base().batch;
        let committed = untouched || state.committed() == Some(state.last());
        let (idle, sequencer) = (committed && self.frames.in_flight() == 0, self.is_sequencer());
        // C1: whether the own vote makes f + 1 of one batch, or others' would have to come first.
        let others = ServerId::all(n).filter(|writer| *writer != me);
        let mut votes: Vec<_> = others.map(|writer| self.reader.vote(writer, term)).collect();
        votes.sort_unstable();
        let decides = votes[n / 2] > state.committed();
        let wants = |writer: &ServerId| match (sequencer, idle) {
            (true, true) => false,
            (true, false) => *writer != me,
            (false, true) => *writer == term.sequencer(n),
            (false, false) => *writer != me || decides,
        };
        let mut wanted = News::ELSE;
        ServerId::all(n).filter(wants).for_each(|writer| wanted |= News::of(writer));
        wanted
    }

    /// When [`Input::Idle`] must be given even if nothing happens before.
    pub fn next_deadline(&self) -> Option<Micros> {
        let hold = self.frames.held_until();
        if !self.is_active() {
            return hold;
        }
        let sequencer = self.term.sequencer(self.config.n);
        let holding = self.pool.holding().next().is_some();
        let suspicion = self.suspicion.next_deadline(sequencer, holding);
        [hold, suspicion].into_iter().flatten().min()
    }

    /// A delivery, for a subscriber. Its payload comes along if `bytes` asks for it or this server
    /// is the sequencer, whose job it is (section 3).
    pub fn delivery(&self, order: OrderNumber, bytes: bool) -> Lookup {
        if order > self.ledger.delivered() {
            return Lookup::Future;
        }
        let Some(kept) = self.history.get(order) else {
            return Lookup::TooOld { first: self.history.first() };
        };
        let payload = match bytes || self.is_sequencer() {
            true => messages::Body::Here(kept.payload.clone()),
            false => messages::Body::Elsewhere,
        };
        Lookup::Found(ToClient::Delivery(messages::Delivery {
            order,
            id: kept.id,
            digest: kept.digest,
            time: kept.time,
            payload,
        }))
    }

    /// The last order number delivered.
    pub fn last_delivered(&self) -> OrderNumber {
        self.ledger.delivered()
    }

    /// What this replica says of itself.
    pub fn status(&self) -> Status {
        let c = &self.counters;
        let counters = [
            ("sequencer_changes", self.term.0),
            ("orders_skipped", self.ledger.skipped()),
            ("orders_taken", c.orders_taken),
            ("orders_known", c.orders_known),
            ("orders_over_limit", c.orders_over_limit),
            ("orders_forwarded", c.orders_forwarded),
            ("orders_refused", c.orders_refused),
            ("replies_repeated", c.replies_repeated),
            ("replies_too_large", c.replies_too_large),
            ("batches_proposed", c.batches_proposed),
            ("votes_written", c.votes_written),
            ("changes_written", c.changes_written),
            ("drops_noticed", c.drops_noticed),
            ("records_read", c.records_read),
            ("checkpoints_claimed", c.checkpoints_claimed),
            ("checkpoints_differing", self.checkpoints.differing()),
            ("stable_batch", self.reader.stable().map_or(0, |stable| stable.batch.0)),
            ("window_used", self.window().0),
        ];
        let (_, chain) = self.reader.taken();
        Status {
            id: self.config.me,
            host_up: true,
            term: self.term,
            committed: self.reader.committed().0,
            delivered: self.ledger.delivered(),
            chain,
            stable: self.stable_at(),
            window: self.window(),
            rings: Vec::new(),
            held: self.held(),
            catching_up: None,
            counters: counters.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }
}
