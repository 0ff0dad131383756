//! What happened in a run, as plain events. Checkers read nothing else, so that each can be shown a
//! made-up history that it must reject.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, OrderNumber, Seq, ServerId, Term};
use shared_registers::record::Checkpoint;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client starts a session, its first or after a crash.
    ClientStarted {
        /// Who.
        client: ClientId,
        /// The session's number.
        session: u64,
    },
    /// A client crashed: nobody waits for its unanswered orders any more.
    ClientCrashed {
        /// Who.
        client: ClientId,
    },
    /// A client that crashed will find its clock behind where it was. From then on its sessions
    /// need not grow as section 3 has it: it may give two names to one message.
    ClockWentBack {
        /// Whose.
        client: ClientId,
    },
    /// A correct client's caller wants this ordered, after all that it wanted before.
    Broadcast {
        /// Who.
        client: ClientId,
        /// The caller's name for it; a client's tickets grow, across its restarts too.
        ticket: u64,
        /// The message: no two broadcasts of a run are alike.
        payload: Vec<u8>,
    },
    /// A correct client put its MACs on this order. One broadcast may lead to several, each in a
    /// later session than the one before.
    Sent {
        /// Whose, and which of theirs.
        id: OrderId,
        /// The order's digest.
        digest: Digest,
    },
    /// A server told a correct client that an order was delivered, truly or not.
    Told {
        /// Who was told.
        client: ClientId,
        /// By whom.
        server: ServerId,
        /// Under which name it is said to be delivered.
        id: OrderId,
        /// In which place.
        order: OrderNumber,
        /// The digest of the reply or, in a delivery, of the order.
        digest: Digest,
        /// The time of a delivery; none in a reply.
        time: Option<Micros>,
    },
    /// `f + 1` servers told a correct client that an order was delivered.
    Answered {
        /// Who was told.
        client: ClientId,
        /// Which broadcast.
        ticket: u64,
        /// Under which name it was delivered.
        id: OrderId,
        /// In which place.
        order: OrderNumber,
        /// The reply; none if it is kept no longer.
        reply: Option<Vec<u8>>,
    },
    /// `f + 1` servers told a correct client that an order will not be delivered.
    Refused {
        /// Who was told.
        client: ClientId,
        /// Which broadcast.
        ticket: u64,
    },
    /// A correct client's listener heard a delivery.
    Heard {
        /// Who.
        client: ClientId,
        /// Its place in the one order.
        order: OrderNumber,
        /// Whose, and which of theirs.
        id: OrderId,
        /// Delivery time (C2).
        time: Micros,
        /// The message.
        payload: Vec<u8>,
    },
    /// A listener that starts anew.
    ListenerStarted {
        /// Who.
        client: ClientId,
        /// The place that it wants to hear first.
        from: OrderNumber,
    },
    /// A guest starts and has read nothing yet.
    GuestStarted {
        /// Whose.
        server: ServerId,
        /// Whether it does what the protocol says.
        correct: bool,
    },
    /// A guest is gone.
    GuestStopped {
        /// Whose.
        server: ServerId,
    },
    /// A correct replica holds these batches for committed.
    Committed {
        /// Who.
        server: ServerId,
        /// All up to this one.
        batch: Batch,
        /// The chain value after it.
        chain: Digest,
    },
    /// A correct replica delivered an order.
    Delivered {
        /// Who.
        server: ServerId,
        /// Its place in the one order.
        order: OrderNumber,
        /// Whose, and which of theirs.
        id: OrderId,
        /// The order's digest.
        digest: Digest,
        /// Delivery time (C2).
        time: Micros,
        /// The message.
        payload: Vec<u8>,
    },
    /// A correct replica that is not the sequencer holds an order that its client sent, and has not
    /// forwarded it.
    KeptBack {
        /// Who.
        server: ServerId,
        /// Whose, and which of theirs.
        id: OrderId,
    },
    /// A host agent starts.
    HostStarted {
        /// Which.
        host: ServerId,
        /// It has lost records, or may have, and recovers (R6).
        recovers: bool,
        /// Per stream, how many records its file holds.
        copied: Vec<u64>,
        /// Per stream, how many of them its guest may see.
        exposed: Vec<u64>,
        /// Per stream, the highest term of its CHANGEs among them, as the host has it (R1).
        changes: Vec<Option<Term>>,
    },
    /// A host agent died.
    HostCrashed {
        /// Which.
        host: ServerId,
    },
    /// A host has recovered (R6).
    HostRecovered {
        /// Which.
        host: ServerId,
        /// So many records its stream has.
        end: u64,
    },
    /// An operator has given a server up whose host is down (R6). It comes back by recovering.
    Retired {
        /// Which.
        server: ServerId,
    },
    /// A host has one more record of a stream; of its own, that is an admission (R1).
    Copied {
        /// Which host.
        host: ServerId,
        /// What the record says.
        record: Arc<RecordSeen>,
    },
    /// A host admitted a record from its guest: what it says to those who read it.
    Admitted {
        /// Which host.
        host: ServerId,
        /// Its place.
        seq: Seq,
        /// What its guest could have seen (R4).
        seen: Vec<u64>,
        /// What it says.
        says: Says,
    },
    /// A host exposed records to its guest (R4).
    Exposed {
        /// Which host.
        host: ServerId,
        /// Per stream, how many its guest may see now.
        upto: Vec<u64>,
    },
    /// A host has jumped over records of streams, or begins to (section 6).
    Jumped {
        /// Which host.
        host: ServerId,
        /// Whose stream.
        writer: ServerId,
        /// It has none of the first so many records that it had not before.
        to: u64,
        /// The highest term of the CHANGEs among them, as the host has it (R1).
        change: Option<Term>,
    },
    /// A host has reclaimed records (section 6).
    Reclaimed {
        /// Which host.
        host: ServerId,
        /// Per stream, how many it has reclaimed.
        first: Vec<u64>,
    },
    /// A host admitted a record that claims a checkpoint (section 6).
    Claimed {
        /// Which host.
        host: ServerId,
        /// The record's place.
        seq: Seq,
        /// What its guest could have seen (R4).
        seen: Vec<u64>,
        /// What is claimed.
        claim: Checkpoint,
    },
    /// A correct replica has read that a checkpoint is stable.
    Stable {
        /// Who.
        server: ServerId,
        /// Which.
        checkpoint: Checkpoint,
    },
    /// A correct guest found records that it needs reclaimed: its replica is gone.
    FellBehind {
        /// Whose.
        server: ServerId,
    },
    /// A correct guest starts from a snapshot, and reads on from its cut.
    Restored {
        /// Whose.
        server: ServerId,
        /// The snapshot's checkpoint.
        checkpoint: Checkpoint,
        /// The last order in it.
        order: OrderNumber,
        /// The chain value after the checkpoint's batch.
        chain: Digest,
    },
    /// A host found fault with a peer. Hosts do not lie, so this must not happen.
    HostFault {
        /// Who complains.
        host: ServerId,
        /// Of whom.
        peer: ServerId,
        /// What it says.
        what: String,
    },
    /// Something that is bounded is longer than ever before in this run.
    Queue {
        /// Whose; a client's number comes after all servers'.
        owner: u32,
        /// What.
        name: &'static str,
        /// How long it is.
        length: u64,
        /// How long it may be.
        bound: u64,
    },
    /// The faults are over: the network is calm, and who is faulty now stays so.
    Healed {
        /// Servers that must do their part from now on.
        correct: Vec<ServerId>,
    },
    /// Faults begin again, after a calm.
    Shaken,
    /// Every record that was admitted, at the end of the run.
    Streams(Arc<Streams>),
    /// The run ended.
    Over {
        /// Per server: the records of each stream that its host has, if it is up.
        copied: Vec<Option<Vec<u64>>>,
    },
}

/// All streams from their first records on, and what their readers are told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Streams {
    /// By server, its records, as hosts encode them.
    pub streams: Vec<Vec<Vec<u8>>>,
    /// `W` (V2).
    pub window: u64,
    /// `K` (section 6).
    pub checkpoint_weight: u64,
    /// How many clients there are.
    pub clients: usize,
    /// Largest payload, and reply.
    pub max_payload_bytes: usize,
}

/// A record, as a host's registers hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordSeen {
    /// Whose stream.
    pub writer: ServerId,
    /// Its place there.
    pub seq: Seq,
    /// The writer that its stamp names (R2).
    pub stamped: ServerId,
    /// What its guest could have seen (R4).
    pub seen: Vec<u64>,
    /// Digest of all its bytes.
    pub digest: Digest,
    /// What it says.
    pub said: Said,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    /// A batch of orders, each with its digest; none in an empty opening.
    Propose(Vec<(OrderId, Digest)>),
    /// A vote, a checkpoint or both.
    Accept,
    /// Its writer is done with a term.
    Change(Term),
    /// Not a body that may be in a stream.
    Malformed,
}

/// What a record says to those who read it, in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Says {
    /// A batch, or an empty opening.
    Propose {
        /// In which term.
        term: Term,
        /// Its number; 0 without orders.
        batch: Batch,
        /// It cites CHANGEs.
        opens: bool,
        /// The digest of its orders' digests, as the chain takes it.
        content: Digest,
    },
    /// A vote.
    Vote {
        /// In which term.
        term: Term,
        /// For all up to this one.
        upto: Batch,
        /// The chain value there.
        chain: Digest,
    },
    /// Its writer is done with a term.
    Change(Term),
    /// Nothing that counts.
    Nothing,
}

/// How long each thing has been that is bounded.
#[derive(Clone, Debug, Default)]
pub struct Longest(BTreeMap<&'static str, u64>);

impl Longest {
    /// A thing of `owner`'s is so long now, and may be so long: an event if it never was, or is too
    /// long. What bounds it may shrink.
    pub fn is(
        &mut self,
        owner: u32,
        (name, length, bound): (&'static str, usize, usize),
    ) -> Option<Event> {
        let (length, bound) = (length as u64, bound as u64);
        let longest = self.0.entry(name).or_default();
        let news = length > *longest || length > bound;
        *longest = length.max(*longest);
        news.then_some(Event::Queue { owner, name, length, bound })
    }
}

/// All events of a run, in their order, and the hash of everything that happened in it.
pub struct History {
    events: Vec<(Micros, Event)>,
    hash: DefaultHasher,
    verbose: bool,
}

impl History {
    /// Nothing happened yet. `verbose`: each event is printed as it happens.
    pub fn new(verbose: bool) -> History {
        History { events: Vec::new(), hash: DefaultHasher::new(), verbose }
    }

    /// Something happened at `at` (of the simulation's time).
    pub fn push(&mut self, at: Micros, event: Event) {
        if self.verbose && !matches!(event, Event::Streams(_)) {
            println!("{:>12} {event:?}", at.0);
        }
        (at, &event).hash(&mut self.hash);
        self.events.push((at, event));
    }

    /// Something happened that no checker wants to know, but two runs of a seed must agree on.
    pub fn trace(&mut self, what: impl Hash) {
        what.hash(&mut self.hash);
    }

    /// All events.
    pub fn events(&self) -> &[(Micros, Event)] {
        &self.events
    }

    /// What two runs of one seed must agree on.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }
}
