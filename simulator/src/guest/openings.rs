//! How a broken-in guest opens its terms: at the first moment, citing what suits it (V2, B1).

use rand::RngExt;
use shared_registers::ids::{Batch, Micros, Position, Seq, ServerId, Term};
use shared_registers::record::{Body, Propose};

use super::byzantine::Byzantine;
use super::strategies::{Citing, Deed};

/// The longest time from citing what was not seen to saying so.
const UNSEEN_MS: u64 = 10;

impl Byzantine {
    /// Whether this guest wrote an opening of its own for `term`, or will.
    pub(super) fn has_opened(&mut self, term: Term) -> bool {
        let cites = self.at_work(|deed| matches!(deed, Deed::Cite(_))).is_some();
        cites && self.opened == Some(term)
    }

    /// Whether this guest is to open `term`, and waits for others to leave it first: it cites them.
    pub(super) fn lets_pass(&mut self, term: Term) -> bool {
        term > Term(0)
            && self.segment == term
            && self.view.sequences(term)
            && self.opened != Some(term)
            && self.view.reader.term(term).is_none()
            && self.at_work(|deed| *deed == Deed::Cite(Citing::Jumped)).is_some()
    }

    pub(super) fn opening_schemes(&mut self) {
        let term = self.segment;
        let Some(before) = term.0.checked_sub(1).map(Term) else { return };
        if self.opened == Some(term) {
            return self.pass_by(term);
        }
        if !self.view.sequences(term) || self.view.reader.term(term).is_some() {
            return;
        }
        let Some(Deed::Cite(citing)) = self.at_work(|deed| matches!(deed, Deed::Cite(_))) else {
            return;
        };
        if let Some(evidence) = self.evidence(citing, before) {
            self.opened = Some(term);
            let mut after = Micros(0);
            if citing == Citing::Unseen {
                // Some shall have read what it cites, and others not yet.
                after = Micros(self.rng.random_range(0..UNSEEN_MS * 1000));
            }
            let (batch, orders) = (Batch(0), Vec::new());
            self.say_later(after, &Body::Propose(Propose { term, batch, evidence, orders }));
        }
    }

    /// A base below what is committed would show once the term's batches have passed that by.
    fn pass_by(&mut self, term: Term) {
        let Some(last) = self.view.open(term).map(|state| state.last()) else { return };
        let committed = self.view.reader.committed();
        if last < committed
            && let Some(order) = self.view.any_order().cloned()
            && self.once(|deed| matches!(deed, Deed::Cite(_)), (term.0, 1)).is_some()
        {
            for batch in last.0 + 1..=committed.0 + 1 {
                self.propose(term, Batch(batch), &[], std::slice::from_ref(&order));
            }
            self.tampered = true;
        }
    }

    /// What an opening of the term after `before` cites; none if there is nothing to cite yet.
    pub(super) fn evidence(&mut self, citing: Citing, before: Term) -> Option<Vec<Position>> {
        let needed = self.view.f() + 1;
        match citing {
            Citing::CherryPicked => self.view.lowest_evidence(before, needed),
            Citing::Few => self.view.lowest_evidence(before, needed - 1),
            Citing::OneWriter => {
                let one = *self.view.lowest_evidence(before, 1)?.first()?;
                Some(vec![one; needed])
            }
            Citing::Unseen => {
                // Whoever is left behind by f + 1 others writes nothing before its own CHANGE: so
                // the place of that can be told.
                let left = self.view.changes_of(before);
                if left.len() < needed {
                    return None;
                }
                let stays = |server: &ServerId| left.iter().all(|p| p.writer != *server);
                let candidates: Vec<_> = self.others().filter(stays).collect();
                let mut evidence = self.view.lowest_evidence(before, needed - 1)?;
                let unseen = candidates.get(self.rng.random_range(0..candidates.len().max(1)))?;
                evidence.push(self.view.next_of(*unseen));
                Some(evidence)
            }
            Citing::OtherTerm => {
                of_distinct_writers(self.view.changes_where(|left| left < before), needed)
            }
            Citing::Jumped => {
                of_distinct_writers(self.view.changes_where(|left| left > before), needed)
            }
            Citing::Random => {
                let n = self.n as u16;
                let rng = &mut self.rng;
                let mut any = || Position {
                    writer: ServerId(rng.random_range(0..n)),
                    seq: Seq(rng.random_range(0..40)),
                };
                Some((0..needed).map(|_| any()).collect())
            }
        }
    }
}

/// The first `needed` of these CHANGEs of distinct writers, if there are so many.
fn of_distinct_writers(changes: Vec<Position>, needed: usize) -> Option<Vec<Position>> {
    let mut evidence: Vec<Position> = Vec::new();
    for position in changes {
        if evidence.iter().all(|cited| cited.writer != position.writer) {
            evidence.push(position);
        }
    }
    evidence.truncate(needed);
    (evidence.len() == needed).then_some(evidence)
}
