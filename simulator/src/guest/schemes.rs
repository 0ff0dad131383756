//! What a broken-in guest writes of its own accord: votes, CHANGEs and proposals that no replica
//! would think of. Each scheme strikes once for each occasion, so that none drowns the others.

use rand::RngExt;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ServerId, Term};

use super::byzantine::Byzantine;
use super::strategies::{Citing, Deed};

/// Windows (V2) that a proposer who overruns one fills at once: votes must not keep up with it.
const OVERRUN: u64 = 4;
/// Orders that a scheme proposes at once.
const AT_ONCE: usize = 16;

impl Byzantine {
    /// Looks for occasions.
    pub(super) fn schemes(&mut self) {
        self.vote_schemes();
        self.propose_schemes();
        self.opening_schemes();
        self.change_schemes();
        self.claim_schemes();
    }

    fn vote_schemes(&mut self) {
        let segment = self.segment;
        if let Some(left) = segment.0.checked_sub(1).map(Term)
            && let Some((last, chain)) = self.live_end(left)
            && self.view.voted(self.me, left) < Some(last)
            && self.once(|d| *d == Deed::VoteAfterChange, (left.0, last.0)).is_some()
        {
            self.vote(left, last, chain);
        }
        let turns = self.at_work(|deed| *deed == Deed::Turncoat).is_some();
        if !turns && self.once(|d| *d == Deed::VoteOtherTerm, self.occasion(segment)).is_some() {
            self.vote_elsewhere();
        }
        if self.once(|d| *d == Deed::VoteUnseen, self.occasion(segment)).is_some() {
            self.vote_unseen(segment);
        }
        if let Some(announced) = self.script.announced(segment)
            && Some(announced.batch) > self.view.open(segment).map(|state| state.last())
            && self
                .once(|d| *d == Deed::VoteUnseen, (announced.term.0, announced.batch.0 << 1 | 1))
                .is_some()
        {
            self.vote(announced.term, announced.batch, announced.chain);
        }
    }

    /// What there is new of a term.
    fn occasion(&self, term: Term) -> (u64, u64) {
        (term.0, self.live_end(term).map_or(0, |(last, _)| last.0 << 1))
    }

    /// The end of a term that may be voted in.
    fn live_end(&self, term: Term) -> Option<(Batch, Digest)> {
        self.view.open(term).map(|state| (state.last(), state.chain()))
    }

    /// Votes for what is there in the newest earlier term, and for what is not in the next.
    pub(super) fn vote_elsewhere(&mut self) {
        let earlier = (0..self.segment.0).rev().take(8).map(Term);
        let found = earlier.filter_map(|term| Some((term, self.live_end(term)?))).next();
        if let Some((term, (last, chain))) = found {
            self.vote(term, last, chain);
        }
        if let Some((last, chain)) = self.live_end(self.segment) {
            self.vote(self.segment.next(), last, chain);
        }
    }

    /// Votes for the batch that will come next, as this guest imagines it.
    fn vote_unseen(&mut self, term: Term) {
        if self.view.sequences(term) {
            return;
        }
        let Some((last, _)) = self.live_end(term) else { return };
        let waiting = self.view.waiting(term);
        let guess = waiting.first().map(std::slice::from_ref).unwrap_or_default();
        if let Some(chain) = self.view.chain_after(term, guess) {
            self.vote(term, last.next(), chain);
        }
    }

    /// Whether this guest is the sequencer and keeps everybody waiting.
    pub(super) fn hesitates(&mut self) -> bool {
        let term = self.view.term();
        let opened = self.live_end(term).is_some();
        self.view.sequences(term)
            && opened
            && self.segment == term
            && self.view.others_left(term) == 0
            && self.at_work(|deed| *deed == Deed::Hesitate).is_some()
    }

    fn propose_schemes(&mut self) {
        let term = self.view.term();
        if self.view.sequences(term)
            && self.segment == term
            && self.view.others_left(term) > 0
            && let Some((last, _)) = self.live_end(term)
            && self.once(|d| *d == Deed::Hesitate, (term.0, 0)).is_some()
        {
            self.propose_backwards(term, last.next());
        }
        let newest = (0..=term.0).rev().take(self.n).map(Term).find(|t| self.view.sequences(*t));
        let Some(mine) = newest.filter(|mine| self.view.reader.term(*mine).is_some()) else {
            return;
        };
        let Some((last, _)) = self.live_end(mine) else { return };
        let base = self.view.open(mine).map_or(Batch(0), |state| state.base().batch);
        let fresh = last > base && last > self.view.reader.committed();
        let over = self.segment > mine || self.view.reader.term(mine.next()).is_some();
        // With nothing to propose it repeats something, once: it would fill all streams otherwise.
        let news = !self.view.waiting(mine).is_empty();
        let occasion = if news { (mine.0, last.0) } else { (mine.0, u64::MAX) };
        if over && self.once(|d| *d == Deed::ProposeLate, occasion).is_some() {
            self.propose_backwards(mine, last.next());
        }
        if self.segment != mine {
            return;
        }
        if (fresh || self.view.others_voted(mine, last))
            && last > base
            && self.once(|d| *d == Deed::RepeatBatch, (mine.0, last.0)).is_some()
        {
            self.propose_backwards(mine, last);
        }
        let order = self.view.delivered().or(self.view.any_order()).cloned();
        if let Some(order) = order
            && self.once(|d| *d == Deed::Overrun, (mine.0, 0)).is_some()
        {
            let end = self.view.reader.committed().0.max(last.0) + OVERRUN * self.window;
            for batch in last.0 + 1..=end {
                self.propose(mine, Batch(batch), &[], std::slice::from_ref(&order));
            }
            self.tampered = true;
        }
        if last > base
            && mine > Term(0)
            && self.once(|d| *d == Deed::Reopen, (mine.0, last.0)).is_some()
        {
            let evidence = self.evidence(Citing::CherryPicked, Term(mine.0 - 1));
            self.propose(mine, Batch(0), &evidence.unwrap_or_default(), &[]);
            self.propose_backwards(mine, base.next());
        }
    }

    /// Proposes what waits, or anything at all, backwards.
    fn propose_backwards(&mut self, term: Term, batch: Batch) {
        let mut items = self.view.waiting(term);
        items.truncate(AT_ONCE);
        items.reverse();
        if items.is_empty() {
            items.extend(self.view.any_order().cloned());
        }
        if !items.is_empty() {
            self.tampered = true;
            self.propose(term, batch, &[], &items);
        }
    }

    fn change_schemes(&mut self) {
        let term = self.view.term();
        if self.segment == term && self.once(|d| *d == Deed::ChangeEarly, (term.0, 0)).is_some() {
            self.leave(term);
        }
        if self.once(|d| *d == Deed::ChangeJump, (term.0, 0)).is_some() {
            let far = Term(self.segment.0.max(term.0) + self.rng.random_range(1..=4));
            self.leave(far);
            // Most hosts will not have it.
            self.segment = self.view.reader.segment(self.me);
        }
        if self.waits_to_turn(term)
            && self.may_turn(term)
            && self.once(|d| *d == Deed::Turncoat, (term.0, 0)).is_some()
        {
            if self.at_work(|deed| *deed == Deed::VoteFalling).is_some() {
                self.take_back(term);
            }
            if self.at_work(|deed| *deed == Deed::VoteOtherTerm).is_some() {
                self.vote_elsewhere();
            }
            self.leave(term);
        }
    }

    /// Whether this guest has voted in `term` and will take it back before it leaves.
    pub(super) fn waits_to_turn(&mut self, term: Term) -> bool {
        let base = self.view.open(term).map(|state| state.base().batch);
        let voted = self.view.voted(self.me, term);
        self.segment == term
            && self.view.term() == term
            && base.is_some()
            && voted > base
            && self.at_work(|deed| *deed == Deed::Turncoat).is_some()
    }

    fn may_turn(&self, term: Term) -> bool {
        let committed = self.view.reader.committed();
        self.view.others_left(term) > 0 && self.view.voted(self.me, term) <= Some(committed)
    }

    /// All other servers.
    pub(super) fn others(&self) -> impl Iterator<Item = ServerId> + '_ {
        ServerId::all(self.n).filter(|server| *server != self.me)
    }
}
