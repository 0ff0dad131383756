//! The sharpest test of section 6: whoever starts from a snapshot must conclude exactly what
//! whoever has read everything concludes. For tests and simulators: give it whole streams.
//!
//! A [`FullReading`] reads all records with the claims taken out, so that it never prunes, and
//! keeps every snapshot that could be claimed on the way. [`FullReading::compare`] then starts from
//! one of them, or from nothing, reads what lies after its cut in another order, and compares: the
//! verdict on every record, what is committed and delivered, what every term is, where a next one
//! would begin, and every later checkpoint's digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared_registers::ids::{Batch, Micros, ServerId, Term};
use shared_registers::record::{Accept, Body, Record};

use crate::application::Application;
use crate::reader::{Reader, Said, Start};
use crate::replica::{Config, Input, Replica};
use crate::snapshot::{Content, Manifest, Snapshot};

/// Streams: per server, its records from the first on, as hosts encode them.
pub type Streams = [Vec<Vec<u8>>];

/// Makes the application anew.
pub type MakeApplication<'a> = &'a dyn Fn() -> Box<dyn Application>;

/// Picks one of so many: the order in which records are read.
pub type Choose<'a> = &'a mut dyn FnMut(usize) -> usize;

/// Where the two disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("started from {from:?}: {what}")]
pub struct Difference {
    /// The checkpoint's term and batch; `None` if it read everything, pruning as it went.
    pub from: Option<(Term, Batch)>,
    /// What they disagree on.
    pub what: String,
}

/// What was compared and found equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// Verdicts on records.
    pub verdicts: usize,
    /// Digests of checkpoints.
    pub checkpoints: usize,
}

/// One who has read everything.
pub struct FullReading<'a> {
    config: Config,
    application: MakeApplication<'a>,
    streams: &'a Streams,
    replica: Replica,
    verdicts: Vec<Vec<Said>>,
    snapshots: BTreeMap<(Term, Batch), Arc<Snapshot>>,
}

/// Whether claims are read. They decide what is pruned, and must decide nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimsAre {
    /// They are left out: nothing becomes stable.
    LeftOut,
    /// They are read.
    Read,
}

/// Reads all that can be read after `read`, and tells of each record.
fn read_on(
    replica: &mut Replica,
    streams: &Streams,
    claims: ClaimsAre,
    choose: Choose<'_>,
    mut tell: impl FnMut(&mut Replica, &Record<'_>),
) {
    let n = streams.len();
    loop {
        let next = |writer: ServerId| {
            let read = replica.reader().read_count(writer).0 as usize;
            let record = Record::decode(streams[writer.index()].get(read)?, n).ok()?;
            replica.can_read(&record.stamp).then_some(record)
        };
        let ready: Vec<_> = ServerId::all(n).filter_map(next).collect();
        if ready.is_empty() {
            return;
        }
        let record = ready[choose(ready.len()) % ready.len()].clone();
        let stripped = (claims == ClaimsAre::LeftOut).then(|| without_claim(record.body, n));
        let body = stripped.as_deref().unwrap_or(record.body);
        let given = Record { stamp: record.stamp.clone(), body };
        replica.step(Micros(0), Input::Record(given), &mut Vec::new());
        tell(replica, &record);
    }
}

fn without_claim(body: &[u8], n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match Body::decode(body, n) {
        Ok(Body::Accept(accept)) if accept.vote.is_some() => {
            Body::Accept(Accept { checkpoint: None, ..accept }).encode(&mut out);
        }
        // One that says nothing else says nothing.
        Ok(Body::Accept(_)) | Err(_) => {}
        Ok(_) => out.extend_from_slice(body),
    }
    out
}

/// Whether a reader that starts at `start` may judge a record otherwise: what it says was settled
/// by the checkpoint.
fn settled(start: &Start, record: &Record<'_>) -> bool {
    match Body::decode(record.body, start.writers.len()) {
        Ok(Body::Propose(propose)) => propose.term < start.term,
        Ok(Body::Accept(Accept { term, vote: Some(vote), .. })) => {
            term < start.term || term == start.term && vote.upto < start.floor.0
        }
        _ => false,
    }
}

impl<'a> FullReading<'a> {
    /// Reads everything, in the order that `choose` says.
    pub fn new(
        config: Config,
        application: MakeApplication<'a>,
        streams: &'a Streams,
        choose: Choose<'_>,
    ) -> FullReading<'a> {
        let mut replica = Replica::new(config.clone(), application());
        let mut verdicts = vec![Vec::new(); streams.len()];
        let mut snapshots = BTreeMap::new();
        read_on(&mut replica, streams, ClaimsAre::LeftOut, choose, |replica, record| {
            verdicts[record.stamp.writer.index()].push(replica.reader().said());
            if let Some(snapshot) = replica.claimable_snapshot() {
                let checkpoint = snapshot.checkpoint();
                snapshots.insert((checkpoint.term, checkpoint.batch), snapshot);
            }
        });
        FullReading { config, application, streams, replica, verdicts, snapshots }
    }

    /// Every snapshot that could be claimed on the way.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.values()
    }

    /// Compares with one who starts from `snapshot`, or who reads everything from the first record
    /// on. `choose` may pick another order.
    pub fn compare(
        &mut self,
        snapshot: Option<&Snapshot>,
        claims: ClaimsAre,
        choose: Choose<'_>,
    ) -> Result<Compared, Difference> {
        let at = snapshot.map(|s| (s.checkpoint().term, s.checkpoint().batch));
        let differs = |what: String| Difference { from: at, what };
        let (mut other, start) = match snapshot {
            None => (Replica::new(self.config.clone(), (self.application)()), None),
            Some(snapshot) => {
                let (checkpoint, manifest) = (snapshot.checkpoint(), snapshot.manifest());
                let read = Manifest::decode(manifest, checkpoint);
                let start = read.map_err(|_| differs("its manifest is malformed".into()))?.start;
                (self.start(snapshot).map_err(differs)?, Some(start))
            }
        };
        let mut compared = Compared::default();
        let mut wrong = None;
        let (verdicts, snapshots) = (&self.verdicts, &self.snapshots);
        read_on(&mut other, self.streams, claims, choose, |other, record| {
            let stamp = &record.stamp;
            let (said, expected) =
                (other.reader().said(), verdicts[stamp.writer.index()][stamp.seq.0 as usize - 1]);
            let pruned = claims == ClaimsAre::Read;
            let ours = start.as_ref().is_none_or(|start| !settled(start, record)) && !pruned;
            if ours && said != expected {
                let at = (stamp.writer, stamp.seq);
                wrong.get_or_insert(format!("record {at:?} said {said:?}, not {expected:?}"));
            }
            compared.verdicts += usize::from(ours);
            let Some(mine) = other.claimable_snapshot() else { return };
            let at = (mine.checkpoint().term, mine.checkpoint().batch);
            if let Some(theirs) = snapshots.get(&at) {
                compared.checkpoints += 1;
                if mine.checkpoint() != theirs.checkpoint() {
                    let [mine, theirs] = [mine, theirs.clone()]
                        .map(|s| Manifest::decode(s.manifest(), s.checkpoint()));
                    wrong.get_or_insert(format!("it has {mine:?},\nnot {theirs:?}"));
                }
            }
        });
        if let Some(what) = wrong {
            return Err(differs(what));
        }
        self.conclusions(&mut other, claims).map_err(differs)?;
        Ok(compared)
    }

    fn start(&self, snapshot: &Snapshot) -> Result<Replica, String> {
        let (checkpoint, manifest) = (snapshot.checkpoint().clone(), snapshot.manifest().clone());
        let copy = Snapshot::assemble(checkpoint, manifest, snapshot.parts().to_vec());
        let copy = copy.map_err(|_| "the snapshot is malformed".to_owned())?;
        Replica::from_snapshot(self.config.clone(), (self.application)(), copy)
            .map_err(|_| "nothing can start from the snapshot".to_owned())
    }

    /// Compares what both conclude now that everything is read.
    fn conclusions(&mut self, other: &mut Replica, claims: ClaimsAre) -> Result<(), String> {
        let (mine, theirs) = (other.reader(), self.replica.reader());
        for writer in ServerId::all(self.config.n) {
            let read = (mine.read_count(writer), mine.segment(writer));
            if read != (theirs.read_count(writer), theirs.segment(writer)) {
                return Err(format!("it comes to {read:?} of stream {writer}"));
            }
        }
        let so_far = |reader: &Reader| (reader.taken(), reader.committed(), reader.entered());
        if so_far(mine) != so_far(theirs) {
            return Err(format!("{:?}, not {:?}", so_far(mine), so_far(theirs)));
        }
        // P3, P4: the term that it is in, and those that may come of it.
        for term in (mine.oldest().0..=mine.entered().0 + 1).map(Term) {
            let (mine, theirs) = (about(mine, term), about(theirs, term));
            if mine != theirs {
                return Err(format!("term {term}: {mine:?}, not {theirs:?}"));
            }
        }
        if claims == ClaimsAre::LeftOut {
            let [mine, theirs] = [&mut *other, &mut self.replica]
                .map(|replica| replica.claimable_snapshot().map(|s| s.checkpoint().clone()));
            if mine.is_some() && mine != theirs {
                return Err(format!("it would claim {mine:?}, not {theirs:?}"));
            }
        }
        let (mine, theirs) = (delivered(&other.content()), delivered(&self.replica.content()));
        if mine != theirs {
            return Err(format!("delivered: {mine:?}, not {theirs:?}"));
        }
        Ok(())
    }
}

/// All that a reader says of a term, and of how the next may begin.
fn about(reader: &Reader, term: Term) -> impl PartialEq + std::fmt::Debug {
    let state = reader.term(term).map(|state| {
        let committed = state.committed();
        (
            state.is_open(),
            state.is_dead(),
            state.base(),
            state.last(),
            *state.last_mark(),
            committed,
        )
    });
    let evidence = reader.evidence_for(term.next());
    let base = evidence.as_ref().and_then(|cited| reader.base_of(term.next(), cited));
    (state, evidence, base)
}

fn delivered(content: &Content) -> impl PartialEq + std::fmt::Debug + use<> {
    let entries: Vec<_> = content.parts.iter().map(|part| part.entry().digest).collect();
    (content.delivered, content.time, content.skipped, content.first, entries)
}
