//! At most so many clusters run at a time: each is at least six processes, on two cores.

use std::sync::{Condvar, Mutex, PoisonError};

const CLUSTERS: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run a cluster.
pub(crate) struct Permit(());

impl Permit {
    pub(crate) fn wait() -> Permit {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running >= CLUSTERS;
        let running = ENDED.wait_while(running, full);
        *running.unwrap_or_else(PoisonError::into_inner) += 1;
        Permit(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
