//! Catching up (P6, section 6): the way back of a guest whose records are reclaimed, as
//! `guest-replica` goes it.
//!
//! `protocol::catch_up` knows what it wants and when it has it; this is what is around that.

use std::convert::Infallible;
use std::sync::Arc;

use protocol::catch_up;
use protocol::messages::ToGuest;
use protocol::replica::Config;
use protocol::snapshot::{Part, Snapshot};
use protocol::transfer::{Fetch, FetchConfig};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::Checkpoint;

use super::GuestOutput;
use super::store::Disk;
use crate::memory::Memory;

/// A source that sends nothing for so long is left alone for as long.
const SILENCE: Micros = Micros::from_ms(200);

/// It looks at so many records before it asks whether there are more.
const RECORDS_AT_ONCE: usize = 7;

type Registers = GuestRegisters<Memory, Memory>;

/// A guest without a replica, on its way to one.
pub(super) struct CatchUp {
    n: usize,
    core: catch_up::CatchUp,
}

impl CatchUp {
    /// Begins. `known`: parts of a snapshot that are at hand; `stable`: the last stable checkpoint
    /// that is known of.
    pub(super) fn new(
        config: &Config,
        known: Vec<Arc<Part>>,
        stable: Option<Checkpoint>,
        registers: &mut Registers,
    ) -> CatchUp {
        let Config { me, n, cluster, .. } = *config;
        ServerId::all(n).for_each(|writer| registers.rewind(writer));
        let config = FetchConfig { me, n, cluster, silence: SILENCE };
        CatchUp { n, core: catch_up::CatchUp::new(config, known, stable) }
    }

    /// Goes on, with what `disk` has.
    pub(super) fn turn(
        &mut self,
        now: Micros,
        registers: &mut Registers,
        disk: Option<&Disk>,
        out: &mut Vec<GuestOutput>,
    ) {
        while self.look(registers) {}
        let chosen = self.core.choose(|writer| registers.first(writer)).is_some();
        let Some(fetch) = self.core.fetch_mut() else { return };
        if let Some(disk) = disk.filter(|_| chosen) {
            load(disk, fetch);
        }
        let mut questions = Vec::new();
        fetch.poll(now, &mut questions);
        let ask = |(source, question)| GuestOutput::Transfer(source, question);
        out.extend(questions.into_iter().map(ask));
    }

    /// Shows it some of the records that are there. Returns whether there may be more.
    fn look(&mut self, registers: &mut Registers) -> bool {
        let shown = self.core.look(RECORDS_AT_ONCE, |core, writer| {
            match registers.next(writer) {
                Next::Nothing => return Ok::<_, Infallible>(false),
                // It went while it was looked at.
                Next::Reclaimed => {
                    registers.rewind(writer);
                    return Ok(true);
                }
                Next::Damaged => panic!("a host exposed what is no record of {writer}"),
                Next::Record(record) => core.show(&record),
            }
            registers.advance(writer);
            Ok(true)
        });
        let Ok(more) = shown;
        more
    }

    /// Another guest's answer.
    pub(super) fn answered(&mut self, now: Micros, source: ServerId, answer: ToGuest) {
        if let Some(fetch) = self.core.fetch_mut() {
            fetch.on_message(now, source, answer);
        }
    }

    /// The connection to another guest is gone.
    pub(super) fn lost(&mut self, now: Micros, source: ServerId) {
        if let Some(fetch) = self.core.fetch_mut() {
            fetch.on_lost(now, source);
        }
    }

    /// Whether the snapshot is there, and what lies behind its cut too.
    pub(super) fn is_whole(&self, registers: &Registers) -> bool {
        self.core.is_whole(|writer| registers.first(writer))
    }

    /// Takes the snapshot, and has all streams read on behind its cut. `None` if that was reclaimed
    /// just now.
    pub(super) fn take_snapshot(&mut self, registers: &mut Registers) -> Option<Snapshot> {
        let snapshot = self.core.fetch()?.snapshot()?;
        for (writer, read) in ServerId::all(self.n).zip(&snapshot.checkpoint().cut) {
            if registers.seek(writer, Seq(*read)).is_err() {
                ServerId::all(self.n).for_each(|writer| registers.rewind(writer));
                return None;
            }
        }
        Some(snapshot)
    }

    /// The deadline of what others were asked for.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.core.fetch().and_then(Fetch::next_deadline)
    }

    /// How much it holds, and what bounds it: the manifest, which `f + 1` claims vouch for.
    pub(super) fn queue(&self) -> (&'static str, usize, usize) {
        let progress = self.core.fetch().map(Fetch::progress).unwrap_or_default();
        let (got, all) = progress.bytes;
        ("bytes of a snapshot that is fetched", got as usize, all as usize)
    }
}

/// Gives a transfer what the own store has of the snapshot, and of those before it.
fn load(disk: &Disk, fetch: &mut Fetch) {
    let (found, all) = disk.look_for(fetch.wanted());
    fetch.know(all.iter().flat_map(|snapshot| snapshot.parts()).cloned());
    if let Some(found) = found {
        assert!(fetch.offer_manifest(found.manifest().clone()), "it was stored under this name");
    }
}
