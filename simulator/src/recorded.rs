//! Histories of clusters of real processes, for the same checkers.
//!
//! A simulated run notes everything as it happens. Of real processes there are two kinds of
//! witnesses: the clients, which note what they wanted, were told and heard, each with the time of
//! one clock; and the register files, from which every server's part follows. What a server
//! delivered and held for committed is what the production reader concludes from that server's own
//! copy of the streams. What its process said of itself (`Committed`, from its status) is noted
//! too, and has to agree.
//!
//! * A delivery has no time of its own. It stands as late as it may: right before the first time
//!   that anybody knew of it or of a later one.
//! * An order bears its client's name rightly if that client wanted its very payload; no two
//!   broadcasts have the same.
//! * The registers come last, in an order in which each record follows all that it has seen.
//! * A host that was away jumps over records that the others have reclaimed (section 6), and its
//!   guest goes on from a snapshot. What a server concludes must be what it would have concluded from
//!   all records, so here its reader is given those that it lacks, as other hosts have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::ledger::Ledger;
use protocol::reader::{CommittedBatch, Reader};
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, OrderNumber, Seq, ServerId, Term};
use shared_registers::record::{Body, Record};

use crate::checkers::{self, Facts};
use crate::history::{Event, Said};
use crate::records;

/// A record's bytes; none of one that a host jumped over.
pub type Bytes = Arc<[u8]>;

/// What was recorded of a run.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which cluster.
    pub cluster: ClusterId,
    /// How many servers it has.
    pub n: usize,
    /// How many clients hold keys.
    pub clients: u32,
    /// `W` (V2).
    pub window: u64,
    /// Within so much time after the faults, everything that was asked for must be done.
    pub liveness_bound: Micros,
    /// What clients and listeners noted, what servers said of themselves (`Committed`), and when
    /// there was calm. In any order: the times count.
    pub noted: Vec<(Micros, Event)>,
    /// By host and stream: the records that the host has exposed to its guest, or jumped over, from
    /// the first one.
    pub streams: Vec<Vec<Vec<Bytes>>>,
}

impl Recorded {
    /// Asks every checker; returns what they object to.
    pub fn check(self) -> Vec<String> {
        let (cluster, n) = (self.cluster, self.n);
        let lying = vec![false; self.clients as usize];
        let liveness_bound = self.liveness_bound;
        let facts = Facts { cluster, n, f: n / 2, lying, liveness_bound, complaint: None };
        match self.into_events() {
            Ok(events) => checkers::check(&events, &facts),
            Err(why) => vec![why],
        }
    }

    /// The history that the checkers read.
    ///
    /// # Errors
    ///
    /// There is none: records that claim to have seen each other.
    fn into_events(mut self) -> Result<Vec<(Micros, Event)>, String> {
        self.noted.sort_by_key(|(at, _)| *at);
        let end = self.noted.last().map(|(at, _)| *at).unwrap_or_default();
        let known = known_at(&self.noted, end);
        let mut replay = Replay::new(&self);
        let mut noted = std::mem::take(&mut self.noted);
        noted.retain(|(_, event)| !matches!(event, Event::Committed { .. }));
        replay.run(&self.streams)?;
        let Replay { mut sent, delivered, events: registers, .. } = replay;
        let delivered = delivered.into_iter().map(|(order, event)| {
            let at = known.range(order..).next().map_or(end, |(_, at)| *at);
            (at, event)
        });
        let mut all: Vec<(Micros, Event)> = delivered.collect();
        for (at, event) in noted {
            let orders = match &event {
                Event::Broadcast { client, payload, .. } => {
                    sent.remove(&(*client, Digest::of(&[payload]))).unwrap_or_default()
                }
                _ => BTreeSet::new(),
            };
            all.push((at, event));
            let orders = orders.into_iter();
            all.extend(orders.map(|(id, digest)| (at, Event::Sent { id, digest })));
        }
        // Of two things at one time, the one that may have been the cause comes first.
        all.sort_by_key(|(at, event)| (*at, rank(event)));
        all.extend(registers.into_iter().map(|event| (end, event)));
        Ok(all)
    }
}

fn rank(event: &Event) -> u8 {
    match event {
        Event::ClientStarted { .. } | Event::Broadcast { .. } | Event::Sent { .. } => 0,
        Event::Delivered { .. } => 1,
        _ => 2,
    }
}

/// By place: when it was delivered at the latest. It was, as soon as anybody knew of it or of a
/// later one.
fn known_at(noted: &[(Micros, Event)], end: Micros) -> BTreeMap<OrderNumber, Micros> {
    let mut known = BTreeMap::new();
    for (at, event) in noted {
        if let Event::Told { order, .. }
        | Event::Answered { order, .. }
        | Event::Heard { order, .. } = event
        {
            known.entry(*order).or_insert(*at);
        }
    }
    let mut earliest = end;
    for at in known.values_mut().rev() {
        earliest = earliest.min(*at);
        *at = earliest;
    }
    known
}

/// Names and digests of orders.
type Orders = BTreeSet<(OrderId, Digest)>;

/// Reads all hosts' copies of the streams, as their guests would.
struct Replay {
    n: usize,
    cluster: ClusterId,
    readers: Vec<Reader>,
    ledgers: Vec<Ledger>,
    /// What servers said that they hold for committed, and have not been found to yet.
    claimed: Vec<BTreeMap<Batch, BTreeSet<Digest>>>,
    /// By client and digest of a payload: the orders with it that stand in any stream.
    sent: BTreeMap<(ClientId, Digest), Orders>,
    delivered: Vec<(OrderNumber, Event)>,
    /// By writer, the highest term of its CHANGEs so far.
    changes: Vec<Option<Term>>,
    events: Vec<Event>,
}

impl Replay {
    fn new(recorded: &Recorded) -> Replay {
        let Recorded { cluster, n, clients, window, .. } = *recorded;
        let mut claimed = vec![BTreeMap::<Batch, BTreeSet<Digest>>::new(); n];
        for (_, event) in &recorded.noted {
            if let Event::Committed { server, batch, chain } = event {
                claimed[server.index()].entry(*batch).or_default().insert(*chain);
            }
        }
        let mut this = Replay {
            n,
            cluster,
            readers: (0..n).map(|_| Reader::new(cluster, n, window, u64::MAX)).collect(),
            ledgers: (0..n).map(|_| Ledger::new(clients)).collect(),
            claimed,
            sent: BTreeMap::new(),
            delivered: Vec::new(),
            changes: vec![None; n],
            events: Vec::new(),
        };
        for server in ServerId::all(n) {
            this.hold_claims(server, Batch(0));
        }
        this
    }

    fn run(&mut self, streams: &[Vec<Vec<Bytes>>]) -> Result<(), String> {
        let longest = |writer: usize| streams.iter().map(|host| host[writer].len()).max();
        let lengths: Vec<u64> = (0..self.n).map(|w| longest(w).unwrap_or(0) as u64).collect();
        let mut read = vec![0; self.n];
        while read != lengths {
            let before = read.clone();
            for writer in ServerId::all(self.n) {
                let w = writer.index();
                while read[w] < lengths[w] && self.take(streams, writer, Seq(read[w] + 1), &read) {
                    read[w] += 1;
                }
            }
            if read == before {
                return Err(format!(
                    "registers: R4: of streams that are {lengths:?} long, no record after {read:?} \
                     has its causal past there"
                ));
            }
        }
        let held = |host: &Vec<Vec<Bytes>>| host.iter().map(|stream| stream.len() as u64).collect();
        let held: Vec<Vec<u64>> = streams.iter().map(held).collect();
        for (host, upto) in ServerId::all(self.n).zip(&held) {
            self.events.push(Event::Exposed { host, upto: upto.clone() });
        }
        self.events.push(Event::Over { copied: held.into_iter().map(Some).collect() });
        for server in ServerId::all(self.n) {
            self.hold_claims(server, Batch(u64::MAX));
        }
        Ok(())
    }

    /// Takes a record at every host that has it, its own first; `false` if it has seen more than
    /// was read.
    fn take(
        &mut self,
        streams: &[Vec<Vec<Bytes>>],
        writer: ServerId,
        seq: Seq,
        read: &[u64],
    ) -> bool {
        let place =
            |host: ServerId, seq: u64| streams[host.index()][writer.index()].get(seq as usize - 1);
        let at = |host| place(host, seq.0).filter(|bytes| !bytes.is_empty());
        let jumped = |host, seq| place(host, seq).is_some_and(|bytes| bytes.is_empty());
        let others = ServerId::all(self.n).filter(|host| *host != writer);
        let hosts: Vec<ServerId> = std::iter::once(writer).chain(others).collect();
        let Some(first) = hosts.iter().find_map(|host| at(*host)) else { return true };
        let (n, cluster) = (self.n, self.cluster);
        let about = |bytes: &Bytes| Arc::new(records::describe(writer, seq, bytes, n, &cluster));
        let record = about(first);
        if record.seen.iter().zip(read).any(|(seen, read)| seen > read) {
            return false;
        }
        if at(writer).is_some() {
            let (host, seen) = (writer, record.seen.clone());
            let says = records::says(first, self.n, &self.cluster);
            self.events.push(Event::Exposed { host, upto: seen.clone() });
            self.events.push(Event::Admitted { host, seq, seen, says });
        }
        if let Said::Change(term) = record.said {
            let last = &mut self.changes[writer.index()];
            *last = Some(term).max(*last);
        }
        for host in hosts {
            if let Some(bytes) = at(host) {
                let record = if bytes == first { record.clone() } else { about(bytes) };
                self.events.push(Event::Copied { host, record });
                self.note_orders(bytes);
                self.read(host, bytes);
            } else if jumped(host, seq.0) {
                if !jumped(host, seq.0 + 1) {
                    let (to, change) = (seq.0, self.changes[writer.index()]);
                    self.events.push(Event::Jumped { host, writer, to, change });
                }
                self.read(host, first);
            }
        }
        true
    }

    fn note_orders(&mut self, bytes: &Bytes) {
        let Ok(record) = Record::decode(bytes, self.n) else { return };
        if let Ok(Body::Propose(propose)) = Body::decode(record.body, self.n) {
            for order in propose.orders {
                let digest =
                    shared_registers::order::digest(&self.cluster, order.id, order.payload);
                let payload = (order.id.client, Digest::of(&[order.payload]));
                self.sent.entry(payload).or_default().insert((order.id, digest));
            }
        }
    }

    /// A server's reader reads a record, if it has what comes before it.
    fn read(&mut self, server: ServerId, bytes: &Bytes) {
        let Ok(record) = Record::decode(bytes, self.n) else { return };
        let reader = &mut self.readers[server.index()];
        if !reader.can_read(&record.stamp) {
            return;
        }
        reader.read(&record);
        while let Some(batch) = self.readers[server.index()].take_committed() {
            self.deliver(server, &batch);
            let (batch, chain) = (batch.batch, batch.chain);
            self.events.push(Event::Committed { server, batch, chain });
            self.hold_claims(server, batch);
        }
    }

    fn deliver(&mut self, server: ServerId, batch: &CommittedBatch) {
        for order in batch.orders.iter() {
            let (id, digest, payload) = (order.id, order.digest, order.payload.to_vec());
            let ledger = &mut self.ledgers[server.index()];
            if let Some((order, time)) = ledger.deliver(id, batch.time) {
                let event = Event::Delivered { server, order, id, digest, time, payload };
                self.delivered.push((order, event));
            }
        }
    }

    /// What a server said that it holds for committed, up to a batch, stands where its records
    /// have got so far.
    fn hold_claims(&mut self, server: ServerId, upto: Batch) {
        let claimed = &mut self.claimed[server.index()];
        while let Some(entry) = claimed.first_entry().filter(|entry| *entry.key() <= upto) {
            let (batch, chains) = entry.remove_entry();
            let claims = chains.into_iter();
            self.events.extend(claims.map(|chain| Event::Committed { server, batch, chain }));
        }
    }
}

#[cfg(test)]
mod tests;
