//! What the guests of one collusion tell each other, outside of every network that is simulated:
//! an attacker who has broken into several machines has ways of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, Term};
use shared_registers::record::Checkpoint;

/// Announcements that are remembered.
const ANNOUNCED: usize = 64;

/// A batch that will be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// In which term.
    pub(super) term: Term,
    /// Its number.
    pub(super) batch: Batch,
    /// The chain value after it.
    pub(super) chain: Digest,
}

/// What was said.
#[derive(Debug, Default)]
struct Said {
    announced: VecDeque<Announced>,
    /// The last claim that any of them came to.
    claim: Option<Checkpoint>,
}

/// What the broken-in guests of one cluster share. Clones are the same script.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<Said>>);

impl Script {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().expect("nobody panics while it is held")
    }

    pub(super) fn announce(&self, announced: Announced) {
        let all = &mut self.lock().announced;
        if all.len() == ANNOUNCED {
            all.pop_front();
        }
        all.push_back(announced);
    }

    /// The last batch announced in a term.
    pub(super) fn announced(&self, term: Term) -> Option<Announced> {
        self.lock().announced.iter().rev().find(|a| a.term == term).copied()
    }

    /// One of them will claim this.
    pub(super) fn tell(&self, claim: &Checkpoint) {
        self.lock().claim = Some(claim.clone());
    }

    /// What one of them claims, or will.
    pub(super) fn told(&self) -> Option<Checkpoint> {
        self.lock().claim.clone()
    }
}
