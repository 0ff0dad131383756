//! Catching up (P6, section 6): the way back of a guest whose records are reclaimed.
//!
//! It looks through what is left of the streams for checkpoint claims, which say what is stable;
//! fetches the snapshot of the newest stable checkpoint from the other guests, who may lie but not
//! about that; and has all streams read on behind its cut. The cluster does not wait meanwhile: it
//! goes on looking, and as soon as a newer checkpoint is stable it turns to that one, since nobody
//! keeps the one before. What has not changed between the two is not fetched again; nor is what a
//! replica that fell behind knew already. A snapshot that this guest itself has
//! [saved](crate::saved) will do if the streams vouch for it and what lies behind its cut is still
//! there.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::messages::{CatchingUp, Stage, ToGuest};
use protocol::replica::Config;
use protocol::snapshot::{Part, Snapshot};
use protocol::transfer::{Fetch, FetchConfig};
use shared_registers::checkpoint::Claims;
use shared_registers::guest_side::Next;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::{Accept, Body, Checkpoint, Record};

use crate::counters::Counters;
use crate::error::GuestError;
use crate::limits::{RECORDS_PER_PASS, RECORDS_PER_TURN, SOURCE_SILENCE, TRANSFER_LOG_EVERY};
use crate::peers::{News, Peers};
use crate::registers::{Files, Registers};

/// A guest without a replica, on its way to one.
pub(crate) struct CatchUp {
    config: FetchConfig,
    /// What is left of the streams says so.
    claims: Claims,
    /// Everything that is left was looked at once.
    looked: bool,
    fetch: Option<Fetch>,
    /// Parts of a snapshot that are known already.
    known: Vec<Arc<Part>>,
    /// A snapshot that was on disk, and who claims it.
    saved: Option<Snapshot>,
    vouchers: BTreeSet<ServerId>,
    began: Micros,
    /// Who sent something last.
    source: Option<ServerId>,
    bytes: u64,
    lies: u64,
    log_at: Micros,
}

impl CatchUp {
    /// Begins. `known`: parts of a snapshot that are at hand, and one that is there whole;
    /// `stable`: the last stable checkpoint that is known of.
    pub(crate) fn new(
        config: &Config,
        now: Micros,
        (known, saved): (Vec<Arc<Part>>, Option<Snapshot>),
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
            known,
            saved,
            vouchers: BTreeSet::new(),
            began: now,
            source: None,
            bytes: 0,
            lies: 0,
            log_at: now.plus(TRANSFER_LOG_EVERY),
        }
    }

    /// Goes on. Returns whether there is more to do at once.
    pub(crate) fn turn(
        &mut self,
        now: Micros,
        registers: &mut Registers,
        peers: &mut Peers,
        counters: &mut Counters,
    ) -> Result<bool, GuestError> {
        let more = self.look(registers)?;
        self.looked |= !more;
        if self.looked && !self.is_whole(&registers.files) {
            self.choose(&registers.files);
        }
        self.fetch(now, peers, counters);
        Ok(more)
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
                    let saved = self.saved.as_ref().map(Snapshot::checkpoint);
                    if count_claim(&mut self.claims, self.config.n, &record, saved) {
                        self.vouchers.insert(writer);
                    }
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
        tracing::info!(term = %stable.term, batch = %stable.batch.0, "fetching a snapshot");
        match &mut self.fetch {
            Some(fetch) => fetch.restart(stable.clone()),
            None => {
                let mut fetch = Fetch::new(self.config, stable.clone());
                fetch.know(std::mem::take(&mut self.known));
                self.fetch = Some(fetch);
            }
        }
    }

    fn fetch(&mut self, now: Micros, peers: &mut Peers, counters: &mut Counters) {
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
        let mut questions = Vec::new();
        fetch.poll(now, &mut questions);
        for (source, question) in questions {
            peers.ask(source, &question);
        }
        let lies = fetch.lies();
        counters.snapshot_lies += lies - self.lies;
        self.lies = lies;
        if now >= self.log_at && !fetch.is_complete() {
            self.log_at = now.plus(TRANSFER_LOG_EVERY);
            self.log(now, "fetching a snapshot");
        }
    }

    /// The snapshot that was saved, if `f + 1` claim it and what lies behind its cut is there.
    fn saved(&self, files: &Files) -> Option<&Snapshot> {
        let vouched = self.looked && self.vouchers.len() > self.config.n / 2;
        let saved = self.saved.as_ref().filter(|_| vouched);
        saved.filter(|saved| !is_reclaimed(saved.checkpoint(), files))
    }

    /// Whether a snapshot is there, and what lies behind its cut too.
    pub(crate) fn is_whole(&self, files: &Files) -> bool {
        if self.saved(files).is_some() {
            return true;
        }
        let fetch = self.fetch.as_ref().filter(|fetch| fetch.is_complete());
        fetch.is_some_and(|fetch| !is_reclaimed(fetch.wanted(), files))
    }

    /// Takes the snapshot, and has all streams read on behind its cut. `None` if that was reclaimed
    /// just now: then it goes on.
    pub(crate) fn take_snapshot(&mut self, now: Micros, files: &mut Files) -> Option<Snapshot> {
        let snapshot = if self.saved(files).is_some() {
            tracing::info!("this guest itself has saved a snapshot that will do");
            self.saved.take()?
        } else {
            self.log(now, "fetched a snapshot");
            self.fetch.as_ref()?.snapshot()?
        };
        let cut = &snapshot.checkpoint().cut;
        for (writer, read) in ServerId::all(self.config.n).zip(cut) {
            if files.seek(writer, Seq(*read)).is_err() {
                ServerId::all(self.config.n).for_each(|writer| files.rewind(writer));
                self.looked = false;
                return None;
            }
        }
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

    fn log(&self, now: Micros, what: &str) {
        let Some(fetch) = &self.fetch else { return };
        let progress = fetch.progress();
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        tracing::info!(
            parts = %format_args!("{}/{}", progress.parts.0, progress.parts.1),
            mib = %format_args!("{}/{}", mib(progress.bytes.0), mib(progress.bytes.1)),
            from = %self.source.map_or_else(|| "nobody yet".to_owned(), |s| format!("server {s}")),
            lies = progress.lies,
            seconds = %format_args!("{:.1}", now.since(self.began).0 as f64 / 1e6),
            "{what}",
        );
    }
}

/// Whether records that come right behind the cut of a checkpoint are reclaimed.
fn is_reclaimed(checkpoint: &Checkpoint, files: &Files) -> bool {
    let cuts = ServerId::all(checkpoint.cut.len()).zip(&checkpoint.cut);
    cuts.into_iter().any(|(writer, cut)| files.first(writer).0 > *cut)
}

/// Counts the claim of a record, if it has one. Returns whether it claims what was `saved`.
fn count_claim(
    claims: &mut Claims,
    n: usize,
    record: &Record<'_>,
    saved: Option<&Checkpoint>,
) -> bool {
    let Ok(Body::Accept(Accept { checkpoint: Some(claim), .. })) = Body::decode(record.body, n)
    else {
        return false;
    };
    claims.count(&record.stamp, &claim);
    let seen = claim.cut.iter().zip(&record.stamp.seen).all(|(cut, seen)| cut <= seen);
    seen && saved == Some(&claim)
}
