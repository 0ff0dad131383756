//! Catching up (P6, section 6): the way back of a guest whose records are reclaimed, as
//! `guest-replica` goes it.
//!
//! It looks through what is left of the streams for claims, which say what is stable; fetches the
//! snapshot of the newest stable checkpoint from the other guests; and has all streams read on
//! behind its cut. It goes on looking meanwhile, and turns to a newer checkpoint as soon as one is
//! stable, since nobody keeps the one before.

use protocol::messages::ToGuest;
use protocol::replica::Config;
use protocol::snapshot::Snapshot;
use protocol::transfer::{Fetch, FetchConfig};
use shared_registers::checkpoint::Claims;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::{Body, Checkpoint, Record};

use super::GuestOutput;
use crate::memory::Memory;

/// A source that sends nothing for so long is left alone for as long.
const SILENCE: Micros = Micros::from_ms(200);

type Registers = GuestRegisters<Memory, Memory>;

/// A guest without a replica, on its way to one.
pub(super) struct CatchUp {
    config: FetchConfig,
    /// What is left of the streams says so.
    claims: Claims,
    fetch: Option<Fetch>,
}

impl CatchUp {
    /// Begins. `stable` is the last stable checkpoint that is known of.
    pub(super) fn new(
        config: &Config,
        stable: Option<Checkpoint>,
        registers: &mut Registers,
    ) -> CatchUp {
        let Config { me, n, cluster, .. } = *config;
        ServerId::all(n).for_each(|writer| registers.rewind(writer));
        let config = FetchConfig { me, n, cluster, silence: SILENCE };
        CatchUp { config, claims: Claims::new(n, stable), fetch: None }
    }

    /// Goes on.
    pub(super) fn turn(
        &mut self,
        now: Micros,
        registers: &mut Registers,
        out: &mut Vec<GuestOutput>,
    ) {
        for writer in ServerId::all(self.config.n) {
            self.look_at(writer, registers);
        }
        if !self.is_whole(registers) {
            self.choose(registers);
        }
        let Some(fetch) = &mut self.fetch else { return };
        let mut questions = Vec::new();
        fetch.poll(now, &mut questions);
        let ask = |(source, question)| GuestOutput::Transfer(source, question);
        out.extend(questions.into_iter().map(ask));
    }

    /// Counts the claims of the records of `writer` that are there.
    fn look_at(&mut self, writer: ServerId, registers: &mut Registers) {
        loop {
            match registers.next(writer) {
                Next::Nothing => return,
                // It went while it was looked at.
                Next::Reclaimed => registers.rewind(writer),
                Next::Damaged => panic!("a host exposed what is no record of {writer}"),
                Next::Record(record) => {
                    count_claim(&mut self.claims, self.config.n, &record);
                    registers.advance(writer);
                }
            }
        }
    }

    /// Turns to the newest stable checkpoint, if what lies behind its cut is still there.
    fn choose(&mut self, registers: &Registers) {
        let Some(stable) = self.claims.stable() else { return };
        let known = self.fetch.as_ref().is_some_and(|fetch| fetch.wanted() == stable);
        if known || is_reclaimed(stable, registers) {
            return;
        }
        match &mut self.fetch {
            Some(fetch) => fetch.restart(stable.clone()),
            None => self.fetch = Some(Fetch::new(self.config, stable.clone())),
        }
    }

    /// Another guest's answer.
    pub(super) fn answered(&mut self, now: Micros, source: ServerId, answer: ToGuest) {
        if let Some(fetch) = &mut self.fetch {
            fetch.on_message(now, source, answer);
        }
    }

    /// Whether the snapshot is there, and what lies behind its cut too.
    pub(super) fn is_whole(&self, registers: &Registers) -> bool {
        let fetch = self.fetch.as_ref().filter(|fetch| fetch.is_complete());
        fetch.is_some_and(|fetch| !is_reclaimed(fetch.wanted(), registers))
    }

    /// Takes the snapshot, and has all streams read on behind its cut. `None` if that was reclaimed
    /// just now.
    pub(super) fn take_snapshot(&mut self, registers: &mut Registers) -> Option<Snapshot> {
        let snapshot = self.fetch.as_ref()?.snapshot()?;
        for (writer, read) in ServerId::all(self.config.n).zip(&snapshot.checkpoint().cut) {
            if registers.seek(writer, Seq(*read)).is_err() {
                ServerId::all(self.config.n).for_each(|writer| registers.rewind(writer));
                return None;
            }
        }
        Some(snapshot)
    }

    /// The deadline of what others were asked for.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.fetch.as_ref().and_then(Fetch::next_deadline)
    }

    /// How much it holds, and what bounds it: the manifest, which `f + 1` claims vouch for.
    pub(super) fn queue(&self) -> (&'static str, usize, usize) {
        let progress = self.fetch.as_ref().map(Fetch::progress).unwrap_or_default();
        let (got, all) = progress.bytes;
        ("bytes of a snapshot that is fetched", got as usize, all as usize)
    }
}

/// Whether records that come right behind the cut of a checkpoint are reclaimed.
fn is_reclaimed(checkpoint: &Checkpoint, registers: &Registers) -> bool {
    let mut cuts = ServerId::all(checkpoint.cut.len()).zip(&checkpoint.cut);
    cuts.any(|(writer, cut)| registers.first(writer).0 > *cut)
}

fn count_claim(claims: &mut Claims, n: usize, record: &Record<'_>) {
    if let Ok(Body::Accept(accept)) = Body::decode(record.body, n)
        && let Some(claim) = &accept.checkpoint
    {
        claims.count(&record.stamp, claim);
    }
}
