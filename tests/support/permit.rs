//! At most so many clusters run at a time: each is at least six processes, on two cores.

use std::sync::{Condvar, Mutex, PoisonError};

const CLUSTERS: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run so many clusters.
pub(crate) struct Permit(usize);

impl Permit {
    /// For one cluster.
    pub(crate) fn wait() -> Permit {
        Permit::wait_for(1)
    }

    /// For as many as there may be: nobody else runs one meanwhile.
    pub(crate) fn wait_for_all() -> Permit {
        Permit::wait_for(CLUSTERS)
    }

    /// All at once: two who have a part each would wait for each other for ever.
    fn wait_for(count: usize) -> Permit {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running + count > CLUSTERS;
        let running = ENDED.wait_while(running, full);
        *running.unwrap_or_else(PoisonError::into_inner) += count;
        Permit(count)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        // Who is woken may need more than there is, and another less.
        ENDED.notify_all();
    }
}
