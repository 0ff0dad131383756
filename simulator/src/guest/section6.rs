//! What a broken-in guest makes of section 6: claims of checkpoints that are none, and snapshots that
//! are not what was asked for.

use protocol::messages::ToGuest;
use protocol::transfer;
use rand::{Rng, RngExt};
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ServerId, Term};
use shared_registers::record::{Accept, Body, Checkpoint};

use super::GuestOutput;
use super::byzantine::Byzantine;
use super::strategies::{ClaimLie, Deed, SourceLie};

/// Claims of one who makes many: more than anybody counts of one writer.
const MANY: u64 = 20;

/// Cuts behind this one, each of which covers one record more than the last, of those that were
/// read: whoever keeps a few claims of a writer keeps none of those before.
fn rising(mut cut: Vec<u64>, read: &[u64]) -> Vec<Vec<u64>> {
    let rise = |_| {
        let next = cut.iter_mut().zip(read).find(|(cut, read)| **cut < **read)?.0;
        *next += 1;
        Some(cut.clone())
    };
    (0..MANY).map_while(rise).collect()
}

impl Byzantine {
    /// What this guest claims instead of `claim`; of each checkpoint once, so that it gets on.
    pub(super) fn spoil_claim(&mut self, claim: &mut Checkpoint) {
        self.claims += 1;
        self.claimed.clone_from(&claim.cut);
        let occasion = (claim.term.0, claim.batch.0);
        self.script.tell(claim);
        match self.once(|deed| matches!(deed, Deed::Claim(_)), occasion) {
            // Whoever colludes comes to the same.
            Some(Deed::Claim(ClaimLie::Digest)) => {
                claim.digest = Digest::of(&[b"not", &claim.digest.0]);
            }
            Some(Deed::Claim(ClaimLie::Early)) => {
                claim.cut.iter_mut().for_each(|cut| *cut = cut.saturating_sub(1));
            }
            Some(Deed::Claim(ClaimLie::Later)) => {
                let read = ServerId::all(self.n).map(|writer| self.view.read_count(writer).0);
                claim.cut = read.collect();
            }
            Some(Deed::Claim(ClaimLie::Unseen)) => {
                claim.cut.iter_mut().for_each(|cut| *cut += 1000);
            }
            _ => {}
        }
    }

    /// Claims what it was told of, and what nobody would.
    pub(super) fn claim_schemes(&mut self) {
        if let Some(told) = self.script.told()
            && self.is_armed(Deed::Claim(ClaimLie::Told))
            && self
                .once(|d| *d == Deed::Claim(ClaimLie::Told), (told.term.0, told.batch.0))
                .is_some()
        {
            self.claim(told);
        }
        if self.is_armed(Deed::Claim(ClaimLie::Many)) {
            self.claim_many();
        }
    }

    /// Claims many, every so many deliveries and behind each claim of a replica's, as soon as there
    /// are enough records for that.
    fn claim_many(&mut self) {
        let occasion = (self.view.delivered_count() / MANY, self.claims);
        let rising = self.rising_cuts();
        if (rising.len() as u64) < MANY
            || self.once(|d| *d == Deed::Claim(ClaimLie::Many), occasion).is_none()
        {
            return;
        }
        for cut in rising {
            let (term, batch) = (self.segment, Batch(self.rng.random_range(0..1000)));
            let digest = Digest(self.rng.random());
            self.claim(Checkpoint { term, batch, digest, cut });
        }
    }

    /// Cuts that count, right behind what this guest claimed last, or what is stable.
    fn rising_cuts(&self) -> Vec<Vec<u64>> {
        let mut cut = vec![0; self.n];
        let stable = self.view.reader.stable().map(|stable| &stable.cut);
        for behind in stable.into_iter().chain([&self.claimed]) {
            cut.iter_mut().zip(behind).for_each(|(cut, behind)| *cut = (*cut).max(*behind));
        }
        let read: Vec<_> =
            ServerId::all(self.n).map(|writer| self.view.read_count(writer).0).collect();
        rising(cut, &read)
    }

    fn claim(&mut self, claim: Checkpoint) {
        let term: Term = self.segment;
        self.claimed.clone_from(&claim.cut);
        self.tampered = true;
        self.say(&Body::Accept(Accept { term, vote: None, checkpoint: Some(claim) }));
    }

    /// What another guest asks of a snapshot, or answers.
    pub(super) fn on_transfer(
        &mut self,
        server: ServerId,
        message: ToGuest,
        out: &mut Vec<GuestOutput>,
    ) {
        match message {
            ToGuest::Fetch { digest, from } => {
                let held = self.replicas[0].piece_of(&digest, from);
                let answer = transfer::answer(digest, from, held);
                let lie = self.at_work(|deed| matches!(deed, Deed::Source(_)));
                let answer = match lie {
                    Some(Deed::Source(lie)) => self.spoil_answer(lie, answer),
                    _ => Some(answer),
                };
                out.extend(answer.map(|answer| GuestOutput::Transfer(server, answer)));
            }
            answer => self.answered(server, answer),
        }
    }

    fn spoil_answer(&mut self, lie: SourceLie, answer: ToGuest) -> Option<ToGuest> {
        let (digest, from, total, bytes) = match answer {
            ToGuest::Piece { digest, from, total, bytes } => (digest, from, total, bytes),
            other => return Some(other),
        };
        let mut bytes = bytes.to_vec();
        let total = match lie {
            SourceLie::Altered => {
                let at = self.rng.random_range(0..bytes.len().max(1));
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
                total
            }
            SourceLie::Noise => {
                self.rng.fill_bytes(&mut bytes);
                total
            }
            SourceLie::Truncated => {
                bytes.truncate(bytes.len() / 2);
                from + bytes.len() as u64
            }
            SourceLie::Endless => {
                bytes.resize(protocol::limits::PIECE_BYTES, 0);
                protocol::limits::MAX_MANIFEST_BYTES
            }
            SourceLie::Silent if from > 0 || self.rng.random_bool(0.5) => return None,
            SourceLie::Silent => total,
            SourceLie::Gone => return Some(ToGuest::Gone { digest }),
        };
        Some(ToGuest::Piece { digest, from, total, bytes: bytes.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_registers::checkpoint::Claims;
    use shared_registers::ids::{Micros, Seq};
    use shared_registers::limits::CLAIMS_HELD;
    use shared_registers::record::Stamp;

    /// A flood of claims that do not count is none.
    #[test]
    fn many_claims_push_out_a_true_one() {
        let (read, cut) = (vec![14, 12, 30], vec![10; 3]);
        let claim = |cut: &Vec<u64>| {
            let (term, batch, digest) = (Term(0), Batch(7), Digest([1; 32]));
            Checkpoint { term, batch, digest, cut: cut.clone() }
        };
        let stamp = |writer| {
            let (writer, seq, seen) = (ServerId(writer), Seq(31), read.clone().into());
            Stamp { writer, seq, time: Micros(0), incarnation: 0, seen }
        };
        let (mut claims, good) = (Claims::new(3, None), claim(&cut));
        claims.count(&stamp(0), &good);
        let cuts = rising(cut, &read);
        assert_eq!(cuts.len() as u64, MANY);
        assert_eq!(rising(vec![14, 12, 29], &read).len(), 1, "no more than was read");
        for (count, cut) in (2..).zip(&cuts) {
            assert!(claims.says_something(&stamp(0), &claim(cut)), "{cut:?}");
            claims.count(&stamp(0), &claim(cut));
            assert_eq!(claims.waiting(ServerId(0)), CLAIMS_HELD.min(count));
        }
        assert!(claims.count(&stamp(1), &good).is_none(), "it was pushed out");
    }
}
