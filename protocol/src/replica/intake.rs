//! Orders that come in: from their clients, or forwarded by other servers (P1, P3, P5).

use shared_registers::canary::{Canary, broken};
use shared_registers::ids::{ClientId, Micros, OrderId, ServerId};

use super::{Output, Replica};
use crate::ledger::{KeptReply, Verdict};
use crate::limits::{EARLY_ORDERS, FORWARD_AGAIN_US, FORWARDED_AT_ONCE, FORWARDED_AT_ONCE_BYTES};
use crate::messages::{Body, OrderMessage, Reply, ToClient, ToServer};
use crate::pool::{Offered, Source};

impl Replica {
    pub(super) fn on_client(
        &mut self,
        now: Micros,
        client: ClientId,
        message: ToServer,
        out: &mut Vec<Output>,
    ) {
        match message {
            ToServer::Order(order) if order.id.client == client => {
                self.on_order(now, client, order, out);
            }
            ToServer::FetchReply { session, count } => {
                let id = OrderId { client, session, count };
                if let Some(kept) = self.ledger.reply(id) {
                    let reply = self.reply(id, kept, true);
                    out.push(Output::ToClient(client, reply));
                }
            }
            _ => {}
        }
    }

    fn on_order(
        &mut self,
        now: Micros,
        client: ClientId,
        order: OrderMessage,
        out: &mut Vec<Output>,
    ) {
        let id = order.id;
        match self.ledger.verdict(id) {
            Verdict::Delivered => {
                // P1: a duplicate gets the kept reply.
                if let Some(kept) = self.ledger.reply(id) {
                    let reply = self.reply(id, kept, self.is_sequencer());
                    self.counters.replies_repeated += 1;
                    out.push(Output::ToClient(client, reply));
                }
            }
            Verdict::Stale => {
                let (session, count) = self.ledger.last(client);
                out.push(Output::ToClient(client, ToClient::Stale { session, count }));
            }
            Verdict::Next | Verdict::Early => {
                // P3: a directly received order goes on to the sequencer at once.
                let backup = !self.is_sequencer() && !broken(Canary::P3Forward);
                let forward = backup.then(|| order.clone());
                let taken = self.hold(now, Source::Client(client), order);
                if let Some(order) = forward.filter(|_| taken) {
                    self.counters.orders_forwarded += 1;
                    out.push(Output::Forward(self.term.sequencer(self.config.n), order));
                }
            }
            Verdict::Unknown => {}
        }
    }

    pub(super) fn on_forward(&mut self, now: Micros, server: ServerId, order: OrderMessage) {
        if let Verdict::Next | Verdict::Early = self.ledger.verdict(order.id) {
            self.hold(now, Source::Server(server), order);
        }
    }

    /// Holds an order, within its source's limits. Returns whether it is to be forwarded.
    fn hold(&mut self, now: Micros, source: Source, order: OrderMessage) -> bool {
        let id = order.id;
        let (session, count) = self.ledger.last(id.client);
        let done = if id.session == session { count } else { 0 };
        let far = id.count > done.saturating_add(EARLY_ORDERS);
        let large = order.payload.len() > self.config.max_payload_bytes;
        if far || large || order.macs.len() != self.config.n {
            self.counters.orders_over_limit += 1;
            return false;
        }
        let ledger = &self.ledger;
        match self.pool.offer(source, order, now, |id| ledger.verdict(id)) {
            Offered::Taken => {
                self.counters.orders_taken += 1;
                match source {
                    Source::Client(client) => self.sequencing.candidate(client),
                    Source::Server(_) => self.sequencing.news_of_forwarded(),
                }
                true
            }
            Offered::Known(last) => {
                self.counters.orders_known += 1;
                // What was forwarded may have been lost, or its copy refused.
                now.since(last) >= Micros(FORWARD_AGAIN_US)
            }
            Offered::Full => {
                self.counters.orders_over_limit += 1;
                false
            }
        }
    }

    /// P3: every order that its client sent directly goes to the new sequencer too.
    pub(super) fn forward_held(&mut self, out: &mut Vec<Output>) {
        if self.is_sequencer() || broken(Canary::P3Forward) {
            return;
        }
        let sequencer = self.term.sequencer(self.config.n);
        let (mut orders, mut bytes) = (0, 0);
        // Every client's first, then every client's second: nobody's many keep out others' few.
        for nth in 0.. {
            let before = orders;
            for held in self.pool.direct_nth(nth) {
                if orders >= FORWARDED_AT_ONCE || bytes >= FORWARDED_AT_ONCE_BYTES {
                    return;
                }
                orders += 1;
                bytes += held.message.payload.len();
                self.counters.orders_forwarded += 1;
                out.push(Output::Forward(sequencer, held.message.clone()));
            }
            if orders == before {
                return;
            }
        }
    }

    /// The REPLY to an order, with its bytes if `bytes` says so.
    pub(super) fn reply(&self, id: OrderId, kept: &KeptReply, bytes: bool) -> ToClient {
        let body = match &kept.body {
            _ if !bytes => Body::Elsewhere,
            Some(body) => Body::Here(body.clone()),
            None => Body::Gone,
        };
        ToClient::Reply(Reply {
            session: id.session,
            count: id.count,
            order: kept.order,
            digest: kept.digest,
            term: self.term,
            body,
        })
    }
}
