//! When a replica suspects its sequencer, itself included (P3), and how its patience grows (P4).

use std::collections::VecDeque;

use shared_registers::canary::{Canary, broken};
use shared_registers::guest_side::HostHint;
use shared_registers::ids::{Batch, ClientId, Micros, ServerId};
use shared_registers::layout::LinkState;
use shared_registers::record::Reason;

use super::{Config, Replica};
use crate::limits::{ABANDONED_US, HALVE_AFTER_DELIVERIES};
use crate::pool::Source;

/// How a host looks from here (R8).
#[derive(Clone, Copy)]
enum HostView {
    /// Nothing is known yet.
    Unknown,
    /// Its link is up, and it was heard last at this time.
    Heard(Micros),
    /// Its link is broken since this time.
    Lost(Micros),
}

/// Timers and what they measure.
pub(super) struct Suspicion {
    me: ServerId,
    change: Micros,
    change_cap: Micros,
    host_down: Micros,
    /// `T_change` now.
    patience: Micros,
    term_began: Micros,
    new_term: bool,
    deliveries_in_term: u64,
    /// When each client's last order was delivered, so that another became its next.
    delivered_at: Vec<Micros>,
    /// Live batches of the term that are not committed, and when they were read.
    uncommitted: VecDeque<(Batch, Micros)>,
    /// No held order can be overdue before this.
    check_orders_at: Micros,
    /// Whether the sequencer may propose nothing until a checkpoint is stable (R7), and when that
    /// ended last.
    window_full: bool,
    window_opened: Micros,
    /// Each host, as the own host last told of it.
    hosts: Vec<HostView>,
    started: Option<Micros>,
}

impl Suspicion {
    pub(super) fn new(config: &Config) -> Suspicion {
        Suspicion {
            me: config.me,
            change: config.change,
            change_cap: config.change_cap,
            host_down: config.host_down,
            patience: config.change,
            term_began: Micros(0),
            new_term: false,
            deliveries_in_term: 0,
            delivered_at: vec![Micros(0); config.clients as usize],
            uncommitted: VecDeque::new(),
            check_orders_at: Micros(0),
            window_full: false,
            window_opened: Micros(0),
            hosts: vec![HostView::Unknown; config.n],
            started: None,
        }
    }

    /// Live batches that are not committed.
    pub(super) fn len(&self) -> usize {
        self.uncommitted.len()
    }

    // P4: T_change doubles per term up to a cap.
    pub(super) fn on_term(&mut self, now: Micros) {
        self.patience = Micros(self.patience.0.saturating_mul(2)).min(self.change_cap);
        self.term_began = now;
        self.new_term = true;
        self.deliveries_in_term = 0;
        self.uncommitted.clear();
        self.check_orders_at = now;
    }

    /// Whether a term began since the last call.
    pub(super) fn take_news_of_term(&mut self) -> bool {
        std::mem::take(&mut self.new_term)
    }

    /// The replica is about to act. The first time is the end of its replay (P6): what was read
    /// till then does not count as waiting since it was read.
    pub(super) fn on_act(&mut self, now: Micros) {
        if self.started.is_none() {
            self.started = Some(now);
            self.term_began = now;
        }
    }

    /// R7: whether the window is full. It is no sequencer's fault that checkpoints lag, and no
    /// other would be allowed more.
    pub(super) fn on_window(&mut self, now: Micros, full: bool) {
        if self.window_full && !full {
            self.window_opened = now;
        }
        self.window_full = full;
    }

    // P4: T_change halves only after M deliveries within one term.
    pub(super) fn on_delivery(&mut self, now: Micros, client: ClientId) {
        self.deliveries_in_term += 1;
        if self.deliveries_in_term.is_multiple_of(HALVE_AFTER_DELIVERIES) {
            self.patience = Micros(self.patience.0 / 2).max(self.change);
            self.check_orders_at = now; // What was not due so soon may be now.
        }
        if let Some(at) = self.delivered_at.get_mut(client.index()) {
            *at = now;
        }
    }

    pub(super) fn on_proposal(&mut self, now: Micros, last: Batch) {
        self.uncommitted.push_back((last, now));
    }

    pub(super) fn on_committed(&mut self, committed: Batch) {
        while self.uncommitted.front().is_some_and(|(batch, _)| *batch <= committed) {
            self.uncommitted.pop_front();
        }
    }

    // R8. A host that was never heard gets the time of a change to appear.
    pub(super) fn on_hints(&mut self, now: Micros, hints: &[HostHint]) {
        for (view, hint) in self.hosts.iter_mut().zip(hints) {
            let lost = |at: Micros| match *view {
                HostView::Lost(since) => HostView::Lost(since.min(at)),
                _ => HostView::Lost(at),
            };
            *view = match hint.state {
                LinkState::Up => HostView::Heard(Micros(now.0.saturating_sub(hint.silence.0))),
                LinkState::Lost => lost(now),
                LinkState::Never => lost(now.plus(self.change)),
            };
        }
    }

    /// Whether another server's host is out of reach, as hints say.
    pub(super) fn misses_host(&self, server: ServerId) -> bool {
        server != self.me && matches!(self.hosts[server.index()], HostView::Lost(_))
    }

    /// When the host of a sequencer counts as down: its link broken for `host_down`, or up and
    /// silent for as long as this replica's patience with the term.
    fn host_deadline(&self, server: ServerId) -> Option<Micros> {
        if server == self.me {
            return None; // A host says nothing of itself.
        }
        match self.hosts[server.index()] {
            HostView::Unknown => None,
            HostView::Heard(at) => Some(at.max(self.term_began).plus(self.patience)),
            HostView::Lost(since) => Some(since.plus(self.host_down)),
        }
    }

    fn batch_deadline(&self) -> Option<Micros> {
        let (_, read) = self.uncommitted.front()?;
        Some((*read).max(self.term_began).plus(self.patience))
    }

    pub(super) fn next_deadline(&self, sequencer: ServerId, holding: bool) -> Option<Micros> {
        let orders = holding.then_some(self.check_orders_at);
        [orders, self.batch_deadline(), self.host_deadline(sequencer)].into_iter().flatten().min()
    }
}

impl Replica {
    // P3
    pub(super) fn suspects(&mut self, now: Micros) -> Option<Reason> {
        if self.reader.term(self.term).is_some_and(|state| state.is_dead()) {
            return Some(Reason::Dead);
        }
        if self.is_sequencer() && broken(Canary::P3Self) {
            return None;
        }
        let sequencer = self.term.sequencer(self.config.n);
        let due = |deadline: Option<Micros>| deadline.is_some_and(|at| now >= at);
        if due(self.suspicion.host_deadline(sequencer)) {
            return Some(Reason::HostDown);
        }
        if due(self.suspicion.batch_deadline()) {
            return Some(Reason::Batch);
        }
        self.overdue_order(now)
    }

    /// An order that its client sent directly and that C2 would deliver next, not delivered
    /// `T_change` after it came, became its client's next, and the term began.
    fn overdue_order(&mut self, now: Micros) -> Option<Reason> {
        if now < self.suspicion.check_orders_at {
            return None;
        }
        let patience = self.suspicion.patience;
        if self.suspicion.window_full {
            self.suspicion.check_orders_at = now.plus(patience);
            return None;
        }
        let mut abandoned = Vec::new();
        // Whatever arms after this look cannot be due before a whole patience from now.
        let mut earliest = now.plus(patience);
        for client in self.pool.holding() {
            let last = self.ledger.last(client);
            let Some(held) = self.pool.next_of(Source::Client(client), client, last) else {
                continue;
            };
            if now.since(held.refreshed) > Micros(ABANDONED_US) {
                abandoned.push(held.message.id);
                continue;
            }
            let next_since = self.suspicion.delivered_at[client.index()];
            let began = self.suspicion.term_began.max(self.suspicion.window_opened);
            let since = held.arrived.max(next_since).max(began);
            let deadline = since.plus(patience);
            if now >= deadline {
                return Some(Reason::Order(held.message.digest));
            }
            earliest = earliest.min(deadline);
        }
        for id in abandoned {
            self.pool.expire(Source::Client(id.client), id);
        }
        self.suspicion.check_orders_at = earliest;
        None
    }
}
