//! Catching up (P6, section 6): the way back of a guest whose records are reclaimed.
//!
//! It looks through what is left of the streams for checkpoint claims, which say what is stable;
//! takes the snapshot of the newest stable checkpoint out of its own store, as far as it is there,
//! and fetches the rest from the other guests, who may lie but not about that; and has all streams
//! read on behind its cut. The cluster does not wait meanwhile: it goes on looking, and as soon as a
//! newer checkpoint is stable it turns to that one, since nobody keeps the one before. What has not
//! changed between the two is not fetched again; nor is what a replica that fell behind knew already.

use std::sync::Arc;

use protocol::messages::{CatchingUp, Stage, ToGuest};
use protocol::replica::Config;
use protocol::snapshot::{Entry, Part, Snapshot};
use protocol::transfer::{Fetch, FetchConfig};
use shared_registers::checkpoint::Claims;
use shared_registers::guest_side::Next;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::{Accept, Body, Checkpoint, Record};

use crate::counters::Counters;
use crate::error::GuestError;
use crate::limits::{
    RECORDS_PER_PASS, RECORDS_PER_TURN, SOURCE_SILENCE, STORE_BYTES_PER_TURN, TRANSFER_LOG_EVERY,
};
use crate::peers::{News, Peers};
use crate::registers::{Files, Registers};
use crate::store::Store;

/// A guest without a replica, on its way to one.
pub(crate) struct CatchUp {
    config: FetchConfig,
    /// What is left of the streams says so.
    claims: Claims,
    /// Everything that is left was looked at once.
    looked: bool,
    fetch: Option<Fetch>,
    /// The own store was asked for the manifest.
    asked_for_manifest: bool,
    /// Parts that it is still to be asked for; `None` as long as the manifest is not there.
    to_load: Option<Vec<Entry>>,
    /// Parts of a snapshot that are known already.
    known: Vec<Arc<Part>>,
    began: Micros,
    /// Who sent something last.
    source: Option<ServerId>,
    bytes: u64,
    lies: u64,
    log_at: Micros,
}

impl CatchUp {
    /// Begins. `known`: parts of a snapshot that are at hand; `stable`: the last stable checkpoint
    /// that is known of.
    pub(crate) fn new(
        config: &Config,
        now: Micros,
        known: Vec<Arc<Part>>,
        stable: Option<Checkpoint>,
        files: &mut Files,
    ) -> CatchUp {
        let Config { me, n, cluster, .. } = *config;
        ServerId::all(n).for_each(|writer| files.rewind(writer));
        CatchUp {
            config: FetchConfig { me, n, cluster, silence: SOURCE_SILENCE },
            claims: Claims::new(n, stable),
            looked: false,
            fetch: None,
            asked_for_manifest: false,
            to_load: None,
            known,
            began: now,
            source: None,
            bytes: 0,
            lies: 0,
            log_at: now,
        }
    }

    /// Goes on. Returns whether there is more to do at once.
    pub(crate) fn turn(
        &mut self,
        now: Micros,
        registers: &mut Registers,
        peers: &mut Peers,
        store: &Store,
        counters: &mut Counters,
    ) -> Result<bool, GuestError> {
        let more = self.look(registers)?;
        self.looked |= !more;
        if self.looked && !self.is_whole(&registers.files) {
            self.choose(&registers.files);
        }
        self.take_answers(now, peers, counters);
        // Others are asked for what is not here.
        if self.load(store, counters) {
            return Ok(true);
        }
        self.ask(now, peers);
        Ok(more)
    }

    /// Takes out of the own store what is wanted and there, some MiB at a time. Returns whether
    /// there may be more.
    fn load(&mut self, store: &Store, counters: &mut Counters) -> bool {
        let Some(fetch) = &mut self.fetch else { return false };
        if !std::mem::replace(&mut self.asked_for_manifest, true) {
            store.offer_manifest(fetch, counters);
        }
        if !fetch.has_manifest() {
            return false;
        }
        let to_load = self.to_load.get_or_insert_with(|| fetch.missing().copied().collect());
        let mut bytes = 0;
        while bytes < STORE_BYTES_PER_TURN {
            let Some(entry) = to_load.pop() else { return false };
            bytes += entry.size;
            store.offer_part(entry, fetch, counters);
        }
        true
    }

    /// Counts the claims of records that are there. Returns whether there may be more.
    fn look(&mut self, registers: &mut Registers) -> Result<bool, GuestError> {
        let mut count = 0;
        while count < RECORDS_PER_TURN {
            let before = count;
            for writer in ServerId::all(self.config.n) {
                count += self.look_at(writer, registers)?;
            }
            if count == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn look_at(
        &mut self,
        writer: ServerId,
        registers: &mut Registers,
    ) -> Result<usize, GuestError> {
        for count in 0..RECORDS_PER_PASS {
            match registers.files.next(writer) {
                Next::Nothing => return Ok(count),
                // It went while it was looked at.
                Next::Reclaimed => {
                    registers.files.rewind(writer);
                    return Ok(count);
                }
                Next::Damaged => {
                    let path = registers.read_path().to_owned();
                    return Err(GuestError::Damaged { path, writer });
                }
                Next::Record(record) => {
                    count_claim(&mut self.claims, self.config.n, &record);
                }
            }
            registers.files.advance(writer);
        }
        Ok(RECORDS_PER_PASS)
    }

    /// Turns to the newest stable checkpoint, if what lies behind its cut is still there.
    fn choose(&mut self, files: &Files) {
        let Some(stable) = self.claims.stable() else { return };
        let known = self.fetch.as_ref().is_some_and(|fetch| fetch.wanted() == stable);
        if known || is_reclaimed(stable, files) {
            return;
        }
        tracing::info!(term = %stable.term, batch = %stable.batch.0, "a snapshot is wanted");
        (self.asked_for_manifest, self.to_load) = (false, None);
        match &mut self.fetch {
            Some(fetch) => fetch.restart(stable.clone()),
            None => {
                let mut fetch = Fetch::new(self.config, stable.clone());
                fetch.know(std::mem::take(&mut self.known));
                self.fetch = Some(fetch);
            }
        }
    }

    fn take_answers(&mut self, now: Micros, peers: &mut Peers, counters: &mut Counters) {
        let news = peers.take_news();
        let Some(fetch) = &mut self.fetch else { return };
        for news in news {
            match news {
                News::Answer(source, answer) => {
                    if let ToGuest::Piece { bytes, .. } = &answer {
                        self.source = Some(source);
                        self.bytes += bytes.len() as u64;
                        counters.snapshot_bytes_fetched += bytes.len() as u64;
                    }
                    fetch.on_message(now, source, answer);
                }
                News::Lost(source) => fetch.on_lost(now, source),
            }
        }
        let lies = fetch.lies();
        counters.snapshot_lies += lies - self.lies;
        self.lies = lies;
    }

    fn ask(&mut self, now: Micros, peers: &mut Peers) {
        let Some(fetch) = &mut self.fetch else { return };
        let mut questions = Vec::new();
        fetch.poll(now, &mut questions);
        for (source, question) in questions {
            peers.ask(source, &question);
        }
        if now >= self.log_at && !fetch.is_complete() {
            self.log_at = now.plus(TRANSFER_LOG_EVERY);
            self.log(now);
        }
    }

    /// Whether a snapshot is there, and what lies behind its cut too.
    pub(crate) fn is_whole(&self, files: &Files) -> bool {
        let fetch = self.fetch.as_ref().filter(|fetch| fetch.is_complete());
        fetch.is_some_and(|fetch| !is_reclaimed(fetch.wanted(), files))
    }

    /// Takes the snapshot, and has all streams read on behind its cut. `None` if that was reclaimed
    /// just now: then it goes on.
    pub(crate) fn take_snapshot(&mut self, now: Micros, files: &mut Files) -> Option<Snapshot> {
        let snapshot = self.fetch.as_ref()?.snapshot()?;
        let cut = &snapshot.checkpoint().cut;
        for (writer, read) in ServerId::all(self.config.n).zip(cut) {
            if files.seek(writer, Seq(*read)).is_err() {
                ServerId::all(self.config.n).for_each(|writer| files.rewind(writer));
                self.looked = false;
                return None;
            }
        }
        self.log(now);
        Some(snapshot)
    }

    /// The deadline of what others were asked for.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.fetch.as_ref().and_then(Fetch::next_deadline)
    }

    /// How far it is.
    pub(crate) fn status(&self) -> CatchingUp {
        let Some(fetch) = &self.fetch else {
            return CatchingUp { stage: Stage::Looking, ..CatchingUp::default() };
        };
        let progress = fetch.progress();
        CatchingUp {
            stage: Stage::Fetching,
            parts: (progress.parts.0 as u64, progress.parts.1 as u64),
            bytes: progress.bytes,
            from: self.source,
        }
    }

    fn log(&self, now: Micros) {
        let Some(fetch) = &self.fetch else { return };
        let progress = fetch.progress();
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        tracing::info!(
            parts = %format_args!("{}/{}", progress.parts.0, progress.parts.1),
            mib = %format_args!("{}/{}", mib(progress.bytes.0), mib(progress.bytes.1)),
            from = %self.source.map_or_else(|| "nobody yet".to_owned(), |s| format!("server {s}")),
            lies = progress.lies,
            seconds = %format_args!("{:.1}", now.since(self.began).0 as f64 / 1e6),
            "getting a snapshot",
        );
    }
}

/// Whether records that come right behind the cut of a checkpoint are reclaimed.
fn is_reclaimed(checkpoint: &Checkpoint, files: &Files) -> bool {
    let cuts = ServerId::all(checkpoint.cut.len()).zip(&checkpoint.cut);
    cuts.into_iter().any(|(writer, cut)| files.first(writer).0 > *cut)
}

/// Counts the claim of a record, if it has one.
fn count_claim(claims: &mut Claims, n: usize, record: &Record<'_>) {
    if let Ok(Body::Accept(Accept { checkpoint: Some(claim), .. })) = Body::decode(record.body, n) {
        claims.count(&record.stamp, &claim);
    }
}
