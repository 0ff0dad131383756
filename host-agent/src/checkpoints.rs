//! Section 6 at a host: which checkpoint is stable, so that what it covers may be reclaimed.
//!
//! Claims count when their records are exposed. Nothing is kept of a record that claims nothing,
//! and a host that starts again looks at all the records it has: the claims of the last stable
//! checkpoint lie behind its cut, so they are among them.

use shared_registers::checkpoint::Claims;
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{Seq, ServerId};
use shared_registers::record::{Checkpoint, Stamp};
use shared_registers::words::{Words, WordsMut};

/// The claims of the exposed records.
pub(crate) struct Checkpoints {
    claims: Claims,
    /// Per stream, how many records were looked at.
    looked: Vec<u64>,
    /// Per stream, the claim that was found last, if it is not counted yet.
    found: Vec<Option<(Stamp, Checkpoint)>>,
    /// A record that is being looked at.
    bytes: Vec<u8>,
}

impl Checkpoints {
    pub(crate) fn new(n: usize) -> Checkpoints {
        let (looked, found) = (vec![0; n], vec![None; n]);
        Checkpoints { claims: Claims::new(n, None), looked, found, bytes: Vec::new() }
    }

    /// The last stable checkpoint.
    pub(crate) fn stable(&self) -> Option<&Checkpoint> {
        self.claims.stable()
    }

    /// A peer found this checkpoint stable, and hosts do not lie. Returns whether it is news.
    pub(crate) fn adopt(&mut self, checkpoint: &Checkpoint) -> bool {
        self.claims.adopt(checkpoint)
    }

    /// Counts the claims of records that were exposed since. Returns how many checkpoints became
    /// stable.
    pub(crate) fn look<R: WordsMut, W: Words>(&mut self, registers: &HostRegisters<R, W>) -> u64 {
        let mut stable = 0;
        loop {
            for (k, found) in self.found.iter_mut().enumerate() {
                let (writer, looked) = (ServerId(k as u16), &mut self.looked[k]);
                *looked = registers.first(writer).0.max(*looked);
                while found.is_none() && *looked < registers.exposed(writer).0 {
                    *looked += 1;
                    let claim = registers.claim(writer, Seq(*looked), &mut self.bytes);
                    *found =
                        claim.filter(|(stamp, claim)| self.claims.says_something(stamp, claim));
                }
            }
            let Some(became) = self.claims.count_lowest(&mut self.found) else { return stable };
            stable += u64::from(became);
        }
    }
}
