//! What becomes of the frames that a broken-in guest's replicas want written.

use rand::RngExt;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Position, Term};
use shared_registers::record::{Accept, Body, Change, Propose, Vote};

use super::byzantine::Byzantine;
use super::script::Announced;
use super::strategies::{Deed, Forgery};
use super::view::{Item, View};

/// The longest time from an announcement to its PROPOSE.
const ANNOUNCED_MS: u64 = 8;

impl Byzantine {
    /// Takes a frame of a replica's and says what the strategies make of it.
    pub(super) fn rewrite(&mut self, bytes: &[u8]) {
        let body = Body::decode(bytes, self.n).expect("a replica encoded it");
        match &body {
            Body::Propose(propose) => {
                let items = View::items_of(&body);
                self.rewrite_propose(propose.term, propose.batch, &propose.evidence, items);
            }
            Body::Accept(accept) => self.rewrite_accept(accept),
            Body::Change(change) => {
                let never = self.at_work(|deed| *deed == Deed::ChangeNever).is_some();
                // One who takes its vote back does so in its own time.
                let stays = self.waits_to_turn(change.term) || self.lets_pass(change.term);
                if never || stays {
                    self.keep_back();
                } else {
                    self.say(&Body::Change(*change));
                }
            }
        }
    }

    /// Says a PROPOSE.
    pub(super) fn propose(
        &mut self,
        term: Term,
        batch: Batch,
        evidence: &[Position],
        items: &[Item],
    ) {
        let orders = items.iter().map(Item::view).collect();
        let propose = Propose { term, batch, evidence: evidence.to_vec(), orders };
        self.say(&Body::Propose(propose));
    }

    /// Says a vote.
    pub(super) fn vote(&mut self, term: Term, upto: Batch, chain: Digest) {
        let vote = Some(Vote { upto, chain });
        self.say(&Body::Accept(Accept { term, vote, checkpoint: None }));
    }

    fn rewrite_propose(
        &mut self,
        term: Term,
        batch: Batch,
        evidence: &[Position],
        mut items: Vec<Item>,
    ) {
        if !evidence.is_empty() && (self.has_opened(term) || self.lets_pass(term)) {
            return self.keep_back();
        }
        let before = items.clone();
        self.spoil_orders(&mut items);
        let skip = batch != Batch(0) && self.at_work(|d| *d == Deed::SkipBatch).is_some();
        let number = if skip { batch.next() } else { batch };
        self.tampered |= before != items || skip;
        if items.is_empty() && batch != Batch(0) {
            return self.keep_back();
        }
        if evidence.is_empty()
            && self.at_work(|deed| *deed == Deed::Announce).is_some()
            && let Some(chain) = self.view.chain_after(term, &items)
        {
            self.script.announce(Announced { term, batch, chain });
            let orders = items.iter().map(Item::view).collect();
            let propose = Propose { term, batch: number, evidence: Vec::new(), orders };
            let after = Micros(self.rng.random_range(0..=ANNOUNCED_MS * 1000));
            return self.say_later(after, &Body::Propose(propose));
        }
        self.propose(term, number, evidence, &items);
    }

    fn spoil_orders(&mut self, items: &mut Vec<Item>) {
        if self.at_work(|deed| *deed == Deed::Reorder).is_some() {
            items.reverse();
        }
        if let Some(first) = items.first().cloned()
            && self.at_work(|deed| *deed == Deed::Repeat).is_some()
        {
            items.push(first);
        }
        if self.at_work(|deed| *deed == Deed::Replay).is_some() {
            let at = self.rng.random_range(0..=items.len());
            if let Some(old) = self.view.delivered().filter(|_| !items.is_empty()) {
                items.insert(at, old.clone());
            }
        }
        if let Some(Deed::Forge(forgery)) = self.at_work(|deed| matches!(deed, Deed::Forge(_)))
            && let Some(forged) = self.forge(items.first(), forgery)
        {
            items.push(forged);
        }
        if let Some(Deed::Starve(client)) = self.at_work(|deed| matches!(deed, Deed::Starve(_))) {
            items.retain(|item| item.id.client != client);
        }
    }

    fn forge(&mut self, like: Option<&Item>, forgery: Forgery) -> Option<Item> {
        let mut forged = like?.clone();
        match forgery {
            Forgery::WrongMac => {
                forged.id.count += 1;
                forged.mac = self.rng.random();
                self.view.name(&mut forged);
            }
            Forgery::OtherClient => {
                let other = if forged.id.client.0 == 0 { 1 } else { 0 };
                forged.id.client = ClientId(other);
                self.view.name(&mut forged);
            }
            // Under the digest that its MAC is right for.
            Forgery::Altered => forged.payload.push(b'!'),
            Forgery::Misnamed => forged.digest = Digest(self.rng.random()),
            Forgery::Accomplice => {
                let (client, keys) = self.lying.first()?;
                let (session, count) = (self.rng.random_range(1..8), self.rng.random_range(1..8));
                forged.id = OrderId { client: *client, session, count };
                self.view.sign(keys, &mut forged);
            }
        }
        Some(forged)
    }

    fn rewrite_accept(&mut self, accept: &Accept) {
        let term = accept.term;
        if let Some(vote) = accept.vote
            && self.at_work(|deed| *deed == Deed::VoteWrongChain).is_some()
        {
            let wrong = Digest(self.rng.random());
            self.vote(term, vote.upto, wrong);
            return self.keep_back();
        }
        // Whoever has voted blindly does not vote again with open eyes.
        if let (Some(vote), Some(announced)) = (accept.vote, self.script.announced(term))
            && announced.batch >= vote.upto
            && self.at_work(|deed| *deed == Deed::VoteUnseen).is_some()
        {
            return self.keep_back();
        }
        let mut said = accept.clone();
        if let Some(claim) = &mut said.checkpoint {
            self.spoil_claim(claim);
        }
        self.say(&Body::Accept(said));
        // One who waits to turn takes back at the end, when it hurts.
        let turns = self.at_work(|deed| *deed == Deed::Turncoat).is_some();
        if !turns && self.at_work(|deed| *deed == Deed::VoteFalling).is_some() {
            self.take_back(term);
        }
    }

    /// Says a vote for no more than the term's base.
    pub(super) fn take_back(&mut self, term: Term) {
        if let Some(base) = self.view.open(term).map(|state| state.base()) {
            self.vote(term, base.batch, base.chain);
        }
    }

    /// Says a CHANGE.
    pub(super) fn leave(&mut self, term: Term) {
        let reason = shared_registers::record::Reason::Batch;
        self.say(&Body::Change(Change { term, reason }));
    }
}
