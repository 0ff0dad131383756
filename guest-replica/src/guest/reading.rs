//! Records, and the way back for a guest that missed some (P6, section 6).
//!
//! A guest reads every record of every stream, from the first on or behind the cut of a snapshot.
//! When its host has reclaimed one that it still needs, because it was away or too slow, or has
//! just begun on a machine whose records are old, it gives its replica up and [catches
//! up](crate::catch_up). Connections and subscriptions stay.

use protocol::replica::{Input, Output, Replica};
use protocol::snapshot::Snapshot;
use shared_registers::guest_side::Next;
use shared_registers::ids::ServerId;

use super::{Core, Guest, reading};
use crate::catch_up::CatchUp;
use crate::error::GuestError;
use crate::limits::{OUTPUTS_HELD, RECORDS_PER_PASS, RECORDS_PER_TURN};

impl Guest<'_> {
    /// Gives the core the records that are exposed, each after those that it refers to (V0).
    /// Returns whether there may be more.
    pub(super) fn read_records(&mut self) -> Result<bool, GuestError> {
        let mut count = 0;
        while count < RECORDS_PER_TURN {
            let before = count;
            for writer in ServerId::all(self.n) {
                for _ in 0..RECORDS_PER_PASS {
                    if !self.read_record(writer)? {
                        break;
                    }
                    count += 1;
                }
            }
            if count == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_record(&mut self, writer: ServerId) -> Result<bool, GuestError> {
        let now = self.now;
        let Some(replica) = self.core.replica_mut() else { return Ok(false) };
        match self.registers.files.next(writer) {
            Next::Nothing => return Ok(false),
            Next::Reclaimed => {
                self.fall_behind(writer);
                return Ok(false);
            }
            Next::Damaged => return self.registers.damaged(writer).map(|()| false),
            Next::Record(record) => {
                // V0
                if !replica.can_read(&record.stamp) {
                    return Ok(false);
                }
                let before = self.out.len();
                self.trace.read(&record);
                replica.step(now, Input::Record(record), &mut self.out);
                self.trace.delivered(&self.out[before..]);
                if self.out.len() > before {
                    // Something was executed, which takes what the application takes.
                    self.now = self.clock.now();
                }
            }
        }
        self.registers.files.advance(writer);
        if self.out.len() >= OUTPUTS_HELD {
            self.carry_out();
        }
        Ok(true)
    }

    /// A record that is to be read is reclaimed: all that the replica knows is void, but for parts
    /// of a snapshot that are still the same.
    fn fall_behind(&mut self, writer: ServerId) {
        let Some(replica) = self.core.replica_mut() else { return };
        let delivered = replica.last_delivered();
        tracing::warn!(%writer, %delivered, "records to read are reclaimed: a snapshot is needed");
        self.counters.times_behind += 1;
        let (parts, stable) = (replica.content().parts, replica.stable().cloned());
        // What it wanted to write, and what still waits to be written, is of a replica that is gone.
        self.out.retain(|output| !matches!(output, Output::Write { .. }));
        self.registers.forget_frames();
        let now = self.now;
        let files = &mut self.registers.files;
        let catch_up = CatchUp::new(&self.config, now, parts, stable, files);
        self.core = Core::CatchingUp(Box::new(catch_up));
    }

    /// Goes on with catching up. Returns whether there is more to do at once.
    pub(super) fn catch_up(&mut self) -> Result<bool, GuestError> {
        let now = self.now;
        let Guest { core, registers, peers, store, counters, .. } = self;
        let Core::CatchingUp(catch_up) = core else { return Ok(false) };
        let more = catch_up.turn(now, registers, peers, store, counters)?;
        if !catch_up.is_whole(&registers.files) {
            return Ok(more);
        }
        if let Some(snapshot) = catch_up.take_snapshot(now, &mut registers.files) {
            self.start_from(snapshot)?;
        }
        Ok(true)
    }

    /// P6: everything that was exposed is read, the own stream included, and nothing more is to
    /// come there; now the guest may act.
    pub(super) fn begin_work(&mut self) {
        if let Core::Replica { replica, at_work: at_work @ false } = &mut self.core {
            tracing::info!(delivered = %replica.last_delivered(), "all is read; at work");
            *at_work = true;
        }
    }

    /// Goes on from a snapshot, behind whose cut all streams are about to be read.
    fn start_from(&mut self, snapshot: Snapshot) -> Result<(), GuestError> {
        let application = (self.application)();
        let at = snapshot.checkpoint().batch;
        let replica = Replica::from_snapshot(self.config.clone(), application, snapshot)
            .map_err(|_| GuestError::Snapshot { path: self.cluster_toml.clone() })?;
        let delivered = replica.last_delivered();
        tracing::info!(batch = %at.0, %delivered, "restored from a snapshot; reading on");
        self.counters.snapshots_restored += 1;
        self.core = reading(replica);
        Ok(())
    }
}
