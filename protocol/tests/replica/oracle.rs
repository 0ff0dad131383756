//! Random streams, as any guests might write them and hosts would stamp them; every snapshot that
//! could be taken of them must lead to what a full reading leads to (section 6).

use std::sync::Arc;

use protocol::application::{Application, KeyValue};
use protocol::oracle::{ClaimsAre, Difference, FullReading};
use protocol::reader::Start;
use protocol::replica::{Config, Input, Replica};
use protocol::snapshot::{Content, Manifest, Part, Snapshot};
use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Position, Seq, ServerId, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{
    Accept, Body, Change, Checkpoint, Propose, Reason, Record, Stamp, Vote,
};

const CLUSTER: ClusterId = ClusterId([5; 32]);
const CLIENTS: u32 = 3;

fn config(n: usize) -> Config {
    Config {
        me: ServerId(0),
        n,
        clients: CLIENTS,
        cluster: CLUSTER,
        max_payload_bytes: 4096,
        window: 3,
        // Three orders or so.
        checkpoint_weight: 1600,
        soft_batch_bytes: 1 << 18,
        change: Micros(1),
        change_cap: Micros(1),
        host_down: Micros(1),
        retain_messages: 5,
        retain_bytes: 1 << 24,
    }
}

fn application() -> Box<dyn Application> {
    Box::new(KeyValue::default())
}

/// A small generator: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// A cluster whose guests mostly follow the rules, each as far as its host has exposed records.
struct World {
    n: usize,
    random: Random,
    streams: Vec<Vec<Vec<u8>>>,
    /// What each guest concludes. Its `me` is of no matter: it never acts.
    guests: Vec<Replica>,
    last: [(u64, u64); CLIENTS as usize],
    /// How often guests break rules: once in so many records.
    mischief: usize,
    patience: usize,
}

impl World {
    fn new(f: usize, seed: u64) -> World {
        let n = 2 * f + 1;
        let mut random = Random(seed);
        let (mischief, patience) = (4 + random.below(30), 4 + random.below(60));
        let guests = (0..n).map(|_| Replica::new(config(n), application())).collect();
        let (streams, last) = (vec![Vec::new(); n], [(1, 0); CLIENTS as usize]);
        World { n, random, streams, guests, last, mischief, patience }
    }

    fn append(&mut self, i: usize, body: &Body<'_>) {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        let reader = self.guests[i].reader();
        let seen = ServerId::all(self.n).map(|writer| reader.read_count(writer).0).collect();
        let (writer, seq) = (ServerId(i as u16), Seq(self.streams[i].len() as u64 + 1));
        let time = Micros(self.random.below(1000) as u64);
        let stamp = Stamp { writer, seq, time, incarnation: 0, seen };
        let mut record = Vec::new();
        Record::encode(&stamp, &bytes, &mut record);
        self.streams[i].push(record);
        self.expose(i, i);
    }

    /// Host `i` exposes the next record of stream `of` to its guest, if it may (R4).
    fn expose(&mut self, i: usize, of: usize) -> bool {
        let read = self.guests[i].reader().read_count(ServerId(of as u16)).0 as usize;
        let Some(record) = self.streams[of].get(read) else { return false };
        let record = Record::decode(record, self.n).unwrap();
        if !self.guests[i].can_read(&record.stamp) {
            return false;
        }
        self.guests[i].step(Micros(0), Input::Record(record), &mut Vec::new());
        true
    }

    fn run(mut self, records: usize) -> Vec<Vec<Vec<u8>>> {
        // Some servers are slow to be shown anything, for some time.
        let mut slow = self.random.below(self.n);
        for step in 0..records * 3 {
            let i = self.random.below(self.n);
            if step % 50 == 0 {
                slow = self.random.below(2 * self.n);
            }
            let shown = if i == slow { 1 } else { 6 };
            for _ in 0..self.random.below(shown) {
                let of = self.random.below(self.n);
                self.expose(i, of);
            }
            self.act(i);
        }
        self.streams
    }

    fn act(&mut self, i: usize) {
        let me = ServerId(i as u16);
        let reader = self.guests[i].reader();
        let (segment, entered) = (reader.segment(me), reader.entered());
        if segment < entered && !self.random.once_in(4) {
            return self.change(i, Term(entered.0 - 1));
        }
        if self.random.once_in(self.patience * self.n) {
            return self.change(i, segment); // It suspects, perhaps early.
        }
        if segment.sequencer(self.n) == me {
            self.propose(i, segment);
        } else {
            self.vote(i, segment);
        }
        if self.random.once_in(3) {
            self.claim(i, segment);
        }
    }

    // R1
    fn change(&mut self, i: usize, term: Term) {
        let reader = self.guests[i].reader();
        let done = |t: Term| ServerId::all(self.n).filter(move |w| reader.segment(*w) >= t);
        let admitted = term.0 == 0 || done(term).count() > self.n / 2;
        if term >= reader.segment(ServerId(i as u16)) && admitted {
            self.append(i, &Body::Change(Change { term, reason: Reason::Dead }));
        }
    }

    fn propose(&mut self, i: usize, term: Term) {
        let wrong = self.random.once_in(self.mischief);
        let reader = self.guests[i].reader();
        let (evidence, next) = match reader.term(term) {
            Some(state) if state.is_dead() && !wrong => return,
            Some(state) => {
                let from = state.committed().unwrap_or(state.base().batch);
                if state.last().0 >= from.0 + config(self.n).window && !wrong {
                    return;
                }
                (Vec::new(), state.last().next())
            }
            None => match reader.evidence_for(term) {
                Some(evidence) => {
                    let base = reader.base_of(term, &evidence).expect("it is evidence");
                    (evidence, base.batch.next())
                }
                // An opening before its time is dead.
                None if !wrong => return,
                None => (vec![Position { writer: ServerId(0), seq: Seq(1) }], Batch(1)),
            },
        };
        let empty = !evidence.is_empty() && self.random.once_in(2);
        let batch = match () {
            () if empty => Batch(0),
            () if wrong && self.random.once_in(3) => Batch(next.0 + 1),
            () => next,
        };
        let ids: Vec<_> = (0..usize::from(!empty) * (1 + self.random.below(2)))
            .map(|_| self.order_id())
            .collect();
        let payload = KeyValue::put(&[self.random.below(5) as u8], &[self.random.below(99) as u8]);
        let orders = ids.into_iter().map(|id| OrderView {
            id,
            digest: order::digest(&CLUSTER, id, &payload),
            mac: &[0; 32],
            payload: &payload,
        });
        let orders = orders.collect();
        self.append(i, &Body::Propose(Propose { term, batch, evidence, orders }));
    }

    fn order_id(&mut self) -> OrderId {
        let client = self.random.below(CLIENTS as usize);
        // Batches get lost, so a session goes on but seldom; some orders are skipped.
        let (session, count) = &mut self.last[client];
        (*session, *count) = match self.random.below(4) {
            0 => (*session, *count + 1),
            _ => (*session + 1, 1),
        };
        OrderId { client: ClientId(client as u32), session: *session, count: *count }
    }

    fn vote(&mut self, i: usize, term: Term) {
        let me = ServerId(i as u16);
        let wrong = self.random.once_in(self.mischief);
        let reader = self.guests[i].reader();
        let Some(state) = reader.term(term) else { return };
        let (base, last) = (state.base().batch.0, state.last().0);
        let voted = reader.vote(me, term);
        // Often not for all that there is: late votes and low ones are what snapshots must bear.
        let mut upto = match voted {
            Some(voted) if !wrong => {
                voted.0 + self.random.below((last - voted.0) as usize + 1) as u64
            }
            _ => base + self.random.below((last - base) as usize + 1) as u64,
        };
        if self.random.once_in(2) {
            upto = upto.max(last);
        }
        if voted >= Some(Batch(upto)) && !wrong {
            return;
        }
        let chain = state.chain_at(Batch(upto)).unwrap_or_default();
        let chain = if wrong && self.random.once_in(3) { Digest([1; 32]) } else { chain };
        let vote = Some(Vote { upto: Batch(upto), chain });
        self.append(i, &Body::Accept(Accept { term, vote, checkpoint: None }));
    }

    fn claim(&mut self, i: usize, term: Term) {
        let Some(snapshot) = self.guests[i].claimable_snapshot() else { return };
        let claim = snapshot.checkpoint().clone();
        let again = self.streams[i].iter().any(|record| {
            let record = Record::decode(record, self.n).unwrap();
            let Ok(Body::Accept(accept)) = Body::decode(record.body, self.n) else { return false };
            accept.checkpoint.as_ref() == Some(&claim)
        });
        if !again {
            self.append(i, &Body::Accept(Accept { term, vote: None, checkpoint: Some(claim) }));
        }
    }
}

/// What was seen in a run of many worlds.
#[derive(Debug, Default)]
struct Tally {
    comparisons: usize,
    verdicts: usize,
    checkpoints: usize,
    snapshots: usize,
    terms: u64,
    deepest: u64,
    kept: usize,
    next_dead: usize,
    bases: usize,
}

fn starts(full: &FullReading<'_>) -> Vec<(Arc<Snapshot>, Start)> {
    let start = |s: &Arc<Snapshot>| Manifest::decode(s.manifest(), s.checkpoint()).unwrap().start;
    full.snapshots().map(|snapshot| (snapshot.clone(), start(snapshot))).collect()
}

fn examine(f: usize, seed: u64, tally: &mut Tally) -> Result<(), Difference> {
    let streams = World::new(f, seed).run(60 * (f + 1));
    let mut random = Random(!seed);
    let mut choose = |among: usize| random.below(among);
    let mut full = FullReading::new(config(2 * f + 1), &application, &streams, &mut choose);
    full.compare(None, ClaimsAre::Read, &mut choose)?;
    for (snapshot, start) in starts(&full) {
        for claims in [ClaimsAre::LeftOut, ClaimsAre::Read] {
            let compared = full.compare(Some(&snapshot), claims, &mut choose)?;
            tally.comparisons += 1;
            tally.verdicts += compared.verdicts;
            tally.checkpoints += compared.checkpoints;
        }
        tally.snapshots += 1;
        tally.terms = tally.terms.max(start.term.0);
        tally.deepest = tally.deepest.max(start.batch.0.0);
        tally.kept += usize::from(!start.kept.is_empty());
        tally.next_dead += usize::from(start.next_dead);
        tally.bases += usize::from(start.batch.0 == start.base.batch);
    }
    Ok(())
}

#[test]
fn s6_whoever_starts_from_a_snapshot_concludes_what_all_conclude() {
    let (from, worlds) = match std::env::var("ORACLE_SEED") {
        Ok(seed) => (seed.parse().expect("ORACLE_SEED is a number"), 1),
        Err(_) => (0, std::env::var("ORACLE_WORLDS").map_or(500, |n| n.parse().expect("a number"))),
    };
    let mut tally = Tally::default();
    for seed in from..from + worlds {
        for f in 1..=2 {
            if let Err(difference) = examine(f, seed, &mut tally) {
                panic!(
                    "f = {f}: {difference}\nagain: ORACLE_SEED={seed} cargo test -p protocol s6_"
                );
            }
        }
    }
    println!("{tally:?}");
    if worlds > 1 {
        assert!(tally.comparisons > 1000 && tally.checkpoints > 1000, "{tally:?}");
        assert!(tally.kept > 50 && tally.next_dead > 5 && tally.bases > 50, "{tally:?}");
        assert!(tally.terms > 5, "{tally:?}");
    }
}

/// The same snapshot with another start, as if a rule of section 6 were left out.
fn altered(snapshot: &Snapshot, start: &Start) -> Snapshot {
    let manifest = Manifest::decode(snapshot.manifest(), snapshot.checkpoint()).unwrap();
    let Manifest { delivered, time, skipped, first, .. } = manifest;
    let parts = snapshot.parts().to_vec();
    Snapshot::new(start, &Content { delivered, time, skipped, first, parts })
}

/// Whether some world tells a start that `alter` has altered from the right one. `alter` returns
/// whether there was anything to alter.
fn is_told(alter: impl Fn(&mut Start) -> bool) -> bool {
    for seed in 0..200 {
        let streams = World::new(1, seed).run(120);
        let mut random = Random(seed);
        let mut choose = |among: usize| random.below(among);
        let mut full = FullReading::new(config(3), &application, &streams, &mut choose);
        for (snapshot, mut start) in starts(&full) {
            if alter(&mut start) {
                let altered = altered(&snapshot, &start);
                let right = snapshot.checkpoint().digest;
                assert_ne!(altered.checkpoint().digest, right, "the digest covers it");
                if full.compare(Some(&altered), ClaimsAre::LeftOut, &mut choose).is_err() {
                    return true;
                }
            }
        }
    }
    false
}

fn clear<T>(values: impl Iterator<Item = T>, clear: impl Fn(T) -> bool) -> bool {
    values.map(clear).fold(false, |any, one| any | one)
}

#[test]
fn s6_each_part_of_a_start_is_needed() {
    let without_changes =
        |s: &mut Start| clear(s.writers.iter_mut(), |writer| writer.change.take().is_some());
    assert!(is_told(without_changes), "the last CHANGEs");
    let without_votes =
        |s: &mut Start| clear(s.writers.iter_mut(), |writer| writer.vote.take().is_some());
    assert!(is_told(without_votes), "the votes at the cut");
    assert!(is_told(|s| std::mem::take(&mut s.next_dead)), "the next term's death");
    let without_chain = |s: &mut Start| {
        // As if votes below the checkpoint did not matter.
        let last = s.kept.pop();
        s.kept.clear();
        s.floor = last.map_or(s.floor, |mark| (Batch(s.batch.0.0 - 1), mark));
        last.is_some()
    };
    assert!(is_told(without_chain), "the chain that votes after the cut are judged by");
    let with_another_cut = |s: &mut Start| {
        // As if it were the cut of the record before: the last one that the proposer had seen.
        let n = s.writers.len();
        let proposer = s.term.sequencer(n).index();
        s.writers[(proposer + 1) % n].read.0 += 1;
        true
    };
    assert!(is_told(with_another_cut), "the cut");
    let with_another_weight = |s: &mut Start| {
        let last = s.kept.last_mut().unwrap_or(&mut s.floor.1);
        last.history += 700;
        true
    };
    assert!(is_told(with_another_weight), "the history's weight");
    let with_another_base = |s: &mut Start| {
        s.base.parent = s.base.parent.map(|term| Term(term.0 + 1));
        s.base.parent.is_some()
    };
    assert!(is_told(with_another_base), "the base");
    let with_another_opening = |s: &mut Start| {
        s.opening.0 += 3;
        true
    };
    assert!(is_told(with_another_opening), "the opening");
}

#[test]
fn s6_no_altered_snapshot_makes_anything_panic() {
    let streams = World::new(1, 3).run(120);
    let mut random = Random(9);
    let mut full =
        FullReading::new(config(3), &application, &streams, &mut |among| random.below(among));
    let (snapshot, _) = starts(&full).pop().expect("there are some");
    full.compare(Some(&snapshot), ClaimsAre::LeftOut, &mut |_| 0).unwrap();
    let (mut decoded, mut started) = (0, 0);
    for _ in 0..5000 {
        let mut bytes = snapshot.manifest().to_vec();
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 255][random.below(3)],
            _ => bytes.truncate(at),
        }
        // As if f + 1 had claimed it.
        let digest = Manifest::digest(&bytes);
        let checkpoint = Checkpoint { digest, ..snapshot.checkpoint().clone() };
        decoded += usize::from(Manifest::decode(&bytes, &checkpoint).is_ok());
        let parts = snapshot.parts().to_vec();
        let Ok(altered) = Snapshot::assemble(checkpoint, bytes.into(), parts) else { continue };
        started += usize::from(Replica::from_snapshot(config(3), application(), altered).is_ok());
    }
    assert!(decoded > 100 && started > 50, "{decoded}, {started}: nothing was tried");

    for part in snapshot.parts() {
        let whole = part.read_at(0, usize::MAX);
        assert!(Part::verified(part.entry(), whole.clone().into(), &CLUSTER).is_ok());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << random.below(8);
            assert!(Part::verified(part.entry(), bytes.into(), &CLUSTER).is_err(), "byte {at}");
            let short = whole[..at].to_vec().into();
            assert!(Part::verified(part.entry(), short, &CLUSTER).is_err());
        }
    }
}
