//! What goes to the own store: a checkpoint is claimed once its snapshot is there (section 6).

use super::{Core, Guest};

impl Guest<'_> {
    /// Hands out what is to be stored, and says what may go. Not on the way through old records,
    /// which is past one checkpoint after the other.
    pub(super) fn store(&mut self, unread: bool) {
        let replica = match &mut self.core {
            Core::Replica { replica, at_work } if *at_work || !unread => replica,
            Core::Replica { .. } | Core::CatchingUp(_) => return,
        };
        if let Some(snapshot) = replica.to_store() {
            self.store.put(snapshot);
        }
        self.store.settle(replica.settled());
    }

    /// Something is stored: it may be claimed.
    pub(super) fn on_stored(&mut self) {
        for checkpoint in self.store.take_stored(&mut self.counters) {
            if let Some(replica) = self.core.replica_mut() {
                replica.on_stored(&checkpoint);
            }
        }
    }
}
