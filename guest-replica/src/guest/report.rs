//! What a guest says of itself.

use protocol::messages::{CatchingUp, Status};
use shared_registers::ids::ServerId;

use super::{Core, Guest};
use crate::counters::list_host;

impl Guest<'_> {
    pub(super) fn make_status(&self) -> Status {
        let mut status = match &self.core {
            Core::Replica { replica, at_work } => {
                let catching_up = (!at_work).then(CatchingUp::default);
                Status { catching_up, ..replica.status() }
            }
            Core::CatchingUp(catch_up) => {
                let catching_up = Some(catch_up.status());
                Status { id: self.config.me, catching_up, ..Status::default() }
            }
        };
        status.host_up = self.registers.has_bell();
        let files = &self.registers.files;
        let bytes = files.geometry().limits.ring_bytes;
        let used = |writer| (bytes.saturating_sub(files.room(writer)), bytes);
        status.rings = ServerId::all(self.n).map(used).collect();
        let mut counters = self.counters.clone();
        self.store.count(&mut counters);
        counters.list(&mut status.counters);
        status.counters.push(("connections".to_owned(), self.connections.len() as u64));
        #[cfg(feature = "faulty-sequencer")]
        status.counters.push(("wrong_proposals".to_owned(), self.faulty.wrong()));
        let (full, recovering) = (files.stream_full(), files.recovering());
        list_host(&files.counters(), full, recovering, &mut status.counters);
        status
    }
}
