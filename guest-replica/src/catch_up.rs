//! Catching up (P6, section 6): the way back of a guest whose records are reclaimed.
//!
//! `protocol::catch_up` knows what it wants and when it has it. This shows it what is left of the
//! streams, gives it what the own store has of the snapshot that it wants, carries its questions to
//! the other guests and their answers back, and has all streams read on behind the cut.

use std::sync::Arc;

use protocol::catch_up;
use protocol::messages::{CatchingUp, Stage, ToGuest};
use protocol::replica::Config;
use protocol::snapshot::{Entry, Part, Snapshot};
use protocol::transfer::FetchConfig;
use shared_registers::guest_side::Next;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::Checkpoint;

use crate::counters::Counters;
use crate::error::GuestError;
use crate::limits::{RECORDS_PER_TURN, SOURCE_SILENCE, STORE_BYTES_PER_TURN, TRANSFER_LOG_EVERY};
use crate::peers::{News, Peers};
use crate::registers::{Files, Registers};
use crate::store::Store;

/// A guest without a replica, on its way to one.
pub(crate) struct CatchUp {
    n: usize,
    core: catch_up::CatchUp,
    /// Everything that is left was looked at once.
    looked: bool,
    /// The own store was asked for the manifest.
    asked_for_manifest: bool,
    /// Parts that it is still to be asked for; `None` as long as the manifest is not there.
    to_load: Option<Vec<Entry>>,
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
        let config = FetchConfig { me, n, cluster, silence: SOURCE_SILENCE };
        CatchUp {
            n,
            core: catch_up::CatchUp::new(config, known, stable),
            looked: false,
            asked_for_manifest: false,
            to_load: None,
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
        store: &Store,
        counters: &mut Counters,
    ) -> Result<bool, GuestError> {
        let more = self.look(registers)?;
        self.looked |= !more;
        if self.looked {
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
        let Some(fetch) = self.core.fetch_mut() else { return false };
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

    /// Shows it the records that are there. Returns whether there may be more.
    fn look(&mut self, registers: &mut Registers) -> Result<bool, GuestError> {
        self.core.look(RECORDS_PER_TURN, |core, writer| {
            match registers.files.next(writer) {
                Next::Nothing => return Ok(false),
                // It went while it was looked at.
                Next::Reclaimed => {
                    registers.files.rewind(writer);
                    return Ok(true);
                }
                Next::Damaged => return registers.damaged(writer).map(|()| false),
                Next::Record(record) => core.show(&record),
            }
            registers.files.advance(writer);
            Ok(true)
        })
    }

    fn choose(&mut self, files: &Files) {
        let Some(stable) = self.core.choose(|writer| files.first(writer)) else { return };
        tracing::info!(term = %stable.term, batch = %stable.batch.0, "a snapshot is wanted");
        (self.asked_for_manifest, self.to_load) = (false, None);
    }

    fn take_answers(&mut self, now: Micros, peers: &mut Peers, counters: &mut Counters) {
        let news = peers.take_news();
        let Some(fetch) = self.core.fetch_mut() else { return };
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
        let Some(fetch) = self.core.fetch_mut() else { return };
        let mut questions = Vec::new();
        fetch.poll(now, &mut questions);
        for (source, question) in questions {
            peers.ask(source, &question);
        }
        if now >= self.log_at && !fetch.is_complete() {
            self.log_at = now.plus(TRANSFER_LOG_EVERY);
            self.log(now, "getting a snapshot");
        }
    }

    /// Whether a snapshot is there, and what lies behind its cut too.
    pub(crate) fn is_whole(&self, files: &Files) -> bool {
        self.core.is_whole(|writer| files.first(writer))
    }

    /// Takes the snapshot, and has all streams read on behind its cut. `None` if that was reclaimed
    /// just now: then it goes on.
    pub(crate) fn take_snapshot(&mut self, now: Micros, files: &mut Files) -> Option<Snapshot> {
        self.log(now, "got a snapshot");
        let snapshot = self.core.fetch()?.snapshot()?;
        let cut = &snapshot.checkpoint().cut;
        for (writer, read) in ServerId::all(self.n).zip(cut) {
            if files.seek(writer, Seq(*read)).is_err() {
                ServerId::all(self.n).for_each(|writer| files.rewind(writer));
                self.looked = false;
                return None;
            }
        }
        Some(snapshot)
    }

    /// The deadline of what others were asked for.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.core.fetch().and_then(|fetch| fetch.next_deadline())
    }

    /// How far it is.
    pub(crate) fn status(&self) -> CatchingUp {
        let Some(fetch) = self.core.fetch() else {
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
        let Some(fetch) = self.core.fetch() else { return };
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
