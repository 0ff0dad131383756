//! What goes to the own store: a checkpoint is claimed once its snapshot is there (section 6).

use super::Guest;

impl Guest<'_> {
    /// Hands out what is to be stored, and says what may go.
    pub(super) fn store(&mut self) {
        let Some(replica) = self.core.at_work() else { return };
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
