//! Checkpoints (section 6): when a snapshot is taken, when it is claimed, and what a stable one
//! lets go.
//!
//! A snapshot holds what was delivered up to exactly one batch, so its content is captured when
//! that batch is the last that was taken: whenever a checkpoint is due there, in any term. What
//! readers start from is added later, when the term's own votes commit the batch, out of the
//! positions that the reader remembers. Several terms may begin at one batch; they share its content.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shared_registers::canary::{Canary, broken};
use shared_registers::codec::Malformed;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Term};
use shared_registers::limits::CLAIMS_HELD;
use shared_registers::record::{Accept, Body, Checkpoint};

use super::frames::What;
use super::{Config, Output, Replica};
use crate::application::Application;
use crate::history::History;
use crate::ledger::Ledger;
use crate::limits::{PENDING_SNAPSHOTS, PIECE_BYTES, WINDOW_CHECKPOINTS};
use crate::messages::StableAt;
use crate::reader::{CommittedBatch, Reader};
use crate::snapshot::{Content, Kind, Manifest, Part, Snapshot};

/// What was delivered up to a batch at which a checkpoint is due.
struct Pending {
    batch: Batch,
    chain: Digest,
    /// The term whose batch it is, if `K` was passed with it.
    crossed: Option<Term>,
    content: Content,
}

/// What is in the store of a replica that claims nothing before it is there.
#[derive(Default)]
struct Stored {
    /// What was handed out to be stored last.
    handed: Option<(Term, Batch)>,
    /// What is there, oldest first.
    there: VecDeque<Checkpoint>,
}

/// Snapshots, and what was claimed of them.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// In the order of their batches.
    pending: VecDeque<Pending>,
    /// The last batch that was taken, if `K` was passed with it, and its term.
    crossed: Option<(Batch, Term)>,
    /// Those that could be claimed, each the highest when last looked; the newest last. Some were
    /// claimed then, and may be stable for others before this replica reads so.
    made: VecDeque<Arc<Snapshot>>,
    /// Claims in the own stream, oldest first: a restarted replica does not write them again.
    written: VecDeque<Checkpoint>,
    /// The stable checkpoint up to which everything was let go.
    settled: Option<(Term, Batch)>,
    /// What others can start from.
    stable: Option<Arc<Snapshot>>,
    /// The application's part of the last snapshot, by where its chunks lie: they are held here, so
    /// a chunk that lies where one lay is that one.
    chunks: BTreeMap<(usize, usize), Arc<Part>>,
    /// Own snapshots that were not what became stable. Never, but for a fault here.
    differing: u64,
    /// `None` if this replica has no store: then it claims at once.
    stored: Option<Stored>,
}

impl Checkpoints {
    /// Snapshots that wait, those that were made of them, and own claims that are known.
    pub(super) fn held(&self) -> [usize; 3] {
        [self.pending.len(), self.made.len(), self.written.len()]
    }

    pub(super) fn differing(&self) -> u64 {
        self.differing
    }

    pub(super) fn on_taken(&mut self, batch: &CommittedBatch) {
        self.crossed = batch.due.then_some((batch.batch, batch.term));
    }

    /// A claim was read in the own stream.
    pub(super) fn on_own_claim(&mut self, claim: &Checkpoint) {
        if self.written.len() == CLAIMS_HELD {
            self.written.pop_front();
        }
        self.written.push_back(claim.clone());
    }

    /// The application's parts. Only chunks that are new are hashed.
    fn application(&mut self, application: &mut dyn Application) -> Vec<Arc<Part>> {
        let mut parts = Vec::new();
        for chunk in application.snapshot() {
            let place = (chunk.as_ptr() as usize, chunk.len());
            let part = self.chunks.get(&place).cloned();
            let new = || Arc::new(Part::new(Kind::Application, chunk.clone(), Vec::new()));
            parts.push(part.unwrap_or_else(new));
        }
        self.hold(&parts);
        parts
    }

    /// Makes room for one more that waits. What was made of the oldest goes with it, so that this
    /// holds no more content than that, but for the newest, which may be about to be stored.
    fn let_oldest_go(&mut self) {
        if self.pending.len() < PENDING_SNAPSHOTS {
            return;
        }
        let gone = self.pending.pop_front().map(|held| held.batch);
        let newest = self.made.pop_back();
        self.made.retain(|made| Some(made.checkpoint().batch) != gone);
        self.made.extend(newest);
    }

    /// Keeps a snapshot that was made.
    fn keep_made(&mut self, snapshot: &Arc<Snapshot>) {
        if self.made.iter().any(|made| made.checkpoint() == snapshot.checkpoint()) {
            return;
        }
        if self.made.len() == PENDING_SNAPSHOTS {
            self.made.pop_front();
        }
        self.made.push_back(snapshot.clone());
    }

    fn hold(&mut self, parts: &[Arc<Part>]) {
        let place = |part: &Arc<Part>| (part.head().as_ptr() as usize, part.head().len());
        self.chunks = parts.iter().map(|part| (place(part), part.clone())).collect();
    }
}

impl Replica {
    /// Whether the content of a snapshot at the batch that was taken last is of use.
    fn is_wanted(&self, batch: Batch, chain: Digest, crossed: Option<Term>) -> bool {
        let Checkpoints { pending, stable, .. } = &self.checkpoints;
        if pending.iter().any(|held| held.batch == batch) {
            return false;
        }
        // One that is stable already is still good for others to start from.
        if stable.is_none() && self.reader.stable().is_some_and(|known| known.batch == batch) {
            return true;
        }
        let terms = self.reader.based_on(batch, chain).chain(crossed);
        let mut cuts = terms.filter_map(|term| self.reader.term(term)?.cut(batch));
        cuts.any(|cut| self.reader.is_news(cut))
    }

    /// Captures what was delivered so far, if a checkpoint is due exactly here.
    pub(super) fn capture(&mut self) {
        let (batch, chain) = self.reader.taken();
        let crossed = self.checkpoints.crossed.filter(|(at, _)| *at == batch).map(|at| at.1);
        if !self.is_wanted(batch, chain, crossed) {
            return;
        }
        let content = self.content();
        self.checkpoints.let_oldest_go();
        self.checkpoints.pending.push_back(Pending { batch, chain, crossed, content });
    }

    /// What was delivered so far, as a snapshot holds it.
    pub fn content(&mut self) -> Content {
        let mut parts: Vec<_> = self.history.parts().collect();
        parts.extend(self.ledger.parts());
        parts.extend(self.checkpoints.application(&mut *self.application));
        let (delivered, time) = (self.ledger.delivered(), self.ledger.time());
        let (skipped, first) = (self.ledger.skipped(), self.history.first());
        Content { delivered, time, skipped, first, parts }
    }

    /// The highest checkpoint that this replica can claim: it holds the content, the term's own
    /// votes commit the batch, and the cut lies after the last stable one.
    fn claimable(&self) -> Option<(Term, Batch)> {
        let of = |held: &Pending| {
            let based = self.reader.based_on(held.batch, held.chain);
            let ready = based.chain(held.crossed).filter(|term| {
                let cut = self.reader.cut_of(*term, held.batch);
                cut.is_some_and(|cut| self.reader.is_news(cut))
            });
            ready.max().map(|term| (term, held.batch))
        };
        self.checkpoints.pending.iter().filter_map(of).max()
    }

    /// The snapshot at `(term, batch)`, if its content is held.
    fn snapshot_at(&self, (term, batch): (Term, Batch)) -> Option<Arc<Snapshot>> {
        let is_it = |snapshot: &&Arc<Snapshot>| {
            (snapshot.checkpoint().term, snapshot.checkpoint().batch) == (term, batch)
        };
        if let Some(made) = self.checkpoints.made.iter().find(is_it) {
            return Some(made.clone());
        }
        let held = self.checkpoints.pending.iter().find(|held| held.batch == batch)?;
        let start = self.reader.start_at(term, batch)?;
        Some(Arc::new(Snapshot::new(&start, &held.content)))
    }

    /// The snapshot of the highest checkpoint that this replica can claim.
    pub fn claimable_snapshot(&mut self) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshot_at(self.claimable()?)?;
        self.checkpoints.keep_made(&snapshot);
        Some(snapshot)
    }

    /// From now on this replica claims a checkpoint only once its snapshot is in a store: whoever
    /// calls this takes what [`Self::to_store`] gives, and says what [is there](Self::on_stored).
    pub fn claim_after_store(&mut self) {
        self.checkpoints.stored.get_or_insert_default();
    }

    /// A snapshot that is to be stored: the highest that could be claimed, or else the stable one,
    /// if it was not handed out already. A newer one makes an older that still waits needless.
    pub fn to_store(&mut self) -> Option<Arc<Snapshot>> {
        self.checkpoints.stored.as_ref()?;
        let claimable = self.claimable_snapshot();
        let Checkpoints { stored, stable, .. } = &mut self.checkpoints;
        let stored = stored.as_mut()?;
        let mut candidates = claimable.iter().chain(stable.as_ref());
        let missing = candidates.find(|made| !stored.there.contains(made.checkpoint()))?;
        let at = (missing.checkpoint().term, missing.checkpoint().batch);
        (stored.handed.replace(at) != Some(at)).then(|| missing.clone())
    }

    /// The snapshot of this checkpoint is in the store.
    pub fn on_stored(&mut self, checkpoint: &Checkpoint) {
        let Some(Stored { there, .. }) = &mut self.checkpoints.stored else { return };
        if there.contains(checkpoint) {
            return;
        }
        if there.len() == CLAIMS_HELD {
            there.pop_front();
        }
        there.push_back(checkpoint.clone());
    }

    /// The stable checkpoint before which this replica needs nothing any more: what a store holds
    /// of older ones may go.
    pub fn settled(&self) -> Option<(Term, Batch)> {
        self.checkpoints.settled
    }

    /// The highest checkpoint that could be claimed and whose snapshot is where it must be. With a
    /// slow store that may not be the highest of all, which would be another whenever one is there.
    fn ready_claim(&mut self) -> Option<Checkpoint> {
        let stored = self.checkpoints.stored.as_ref().filter(|_| !broken(Canary::S6Store));
        let Some(stored) = stored else {
            return self.claimable_snapshot().map(|snapshot| snapshot.checkpoint().clone());
        };
        let news = stored.there.iter().filter(|claim| self.reader.is_news(&claim.cut));
        news.max_by_key(|claim| (claim.term, claim.batch)).cloned()
    }

    /// The claim that is to be written now, if any. Each is written once.
    pub(super) fn due_claim(&mut self) -> Option<Checkpoint> {
        if self.frames.full() {
            return None;
        }
        let claim = self.ready_claim()?;
        let known = self.checkpoints.written.contains(&claim)
            || self.frames.claimed((claim.term, claim.batch));
        (!known).then_some(claim)
    }

    /// Writes the claim that is due in an ACCEPT of its own: whoever has no vote to write, also
    /// after its own CHANGE (P4).
    pub(super) fn write_claim(&mut self, out: &mut Vec<Output>) {
        let Some(claim) = self.due_claim() else { return };
        self.counters.checkpoints_claimed += 1;
        let what = What::Claim { at: (claim.term, claim.batch) };
        let accept = Accept { term: self.term, vote: None, checkpoint: Some(claim) };
        self.write(what, &Body::Accept(accept), out);
    }

    /// Lets go what lies before the stable checkpoint, once everything up to it was delivered.
    pub(super) fn settle_checkpoint(&mut self) {
        let Some(stable) = self.reader.stable() else { return };
        let at = (stable.term, stable.batch);
        if self.checkpoints.settled == Some(at) || self.reader.taken().0 < at.1 {
            return;
        }
        self.checkpoints.settled = Some(at);
        let own = self.snapshot_at(at);
        self.checkpoints.differing +=
            u64::from(own.as_ref().is_some_and(|own| own.checkpoint() != stable));
        let own = own.filter(|own| own.checkpoint() == stable);
        // An older one is of no use to anyone: the records behind it may be reclaimed.
        self.checkpoints.stable = own;
        self.reader.prune();
        let Checkpoints { pending, made, .. } = &mut self.checkpoints;
        // Terms to come may begin at the same batch.
        pending.retain(|held| held.batch >= at.1);
        let of = |snapshot: &Snapshot| (snapshot.checkpoint().term, snapshot.checkpoint().batch);
        made.retain(|snapshot| of(snapshot) > at);
    }

    /// The snapshot of the last stable checkpoint, for others to start from; `None` if there is
    /// none yet, or this replica passed by it without taking one.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.checkpoints.stable.as_ref()
    }

    /// A piece of what has this digest, out of any snapshot that is held here: see
    /// [`Snapshot::read_at`]. Whoever asks knows that it is stable, which this replica may not have
    /// read yet, or never will, if others claimed more than is kept of them meanwhile.
    pub fn piece_of(&self, digest: &Digest, from: u64) -> Option<(u64, Vec<u8>)> {
        let Checkpoints { stable, made, .. } = &self.checkpoints;
        let mut held = stable.iter().chain(made.iter().rev());
        held.find_map(|snapshot| snapshot.read_at(digest, from, PIECE_BYTES))
    }

    /// What it knows of the streams.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The last stable checkpoint that was read.
    pub fn stable(&self) -> Option<&Checkpoint> {
        self.reader.stable()
    }

    /// The same, for status.
    pub(super) fn stable_at(&self) -> Option<StableAt> {
        let stable = self.reader.stable()?;
        let own = self.checkpoints.stable.as_ref().filter(|own| own.checkpoint() == stable);
        let order = own.map(|own| own.delivered());
        Some(StableAt { term: stable.term, batch: stable.batch.0, order })
    }

    /// What the orders that its sequencer has proposed since the stable checkpoint weigh, and what
    /// they may at most weigh for more to be proposed (R7).
    pub fn window(&self) -> (u64, u64) {
        let used = self.reader.weight_since_stable(self.term);
        let room = self.config.checkpoint_weight.saturating_mul(WINDOW_CHECKPOINTS);
        (used.saturating_add(self.frames.weight(self.term)), room)
    }

    /// R7: whether more may be proposed only once a further checkpoint is stable.
    pub(super) fn window_full(&self) -> bool {
        let (used, room) = self.window();
        used >= room
    }

    /// A replica that starts from a snapshot, of which every part was verified, and reads on from
    /// its cut. `application` is one that has executed nothing.
    pub fn from_snapshot(
        config: Config,
        mut application: Box<dyn Application>,
        snapshot: Snapshot,
    ) -> Result<Replica, Malformed> {
        let checkpoint = snapshot.checkpoint().clone();
        let manifest = Manifest::decode(snapshot.manifest(), &checkpoint)?;
        if manifest.start.writers.len() != config.n {
            return Err(Malformed);
        }
        let of = |kind| {
            let parts = snapshot.parts().iter().filter(move |part| part.entry().kind == kind);
            parts.cloned().collect::<Vec<_>>()
        };
        let retain = (config.retain_messages, config.retain_bytes);
        let history =
            History::restore(retain, manifest.first, manifest.delivered, &of(Kind::History))?;
        let counters = (manifest.delivered, manifest.time, manifest.skipped);
        let ledger = Ledger::restore(config.clients, counters, &of(Kind::Clients))?;
        let chunks = of(Kind::Application);
        application.restore(&chunks.iter().map(|part| part.head().clone()).collect::<Vec<_>>())?;
        let (window, weight) = (config.window, config.checkpoint_weight);
        let (start, cluster) = (&manifest.start, config.cluster);
        let reader = Reader::from_start(cluster, window, weight, start, checkpoint.clone());
        let mut checkpoints = Checkpoints::default();
        checkpoints.hold(&chunks);
        checkpoints.settled = Some((checkpoint.term, checkpoint.batch));
        checkpoints.stable = Some(Arc::new(snapshot));
        let term = reader.entered();
        let mut replica = Replica::new(config, application);
        replica.sequencing.reset();
        Ok(Replica { reader, history, ledger, checkpoints, term, ..replica })
    }
}
