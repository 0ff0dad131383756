//! What others ask, and what they are answered.
//!
//! A guest that is not at work takes no orders: it could not say whether they were delivered. Their
//! clients send them again. It says how it is, and what a snapshot has told it already.

use protocol::messages::{ToClient, ToGuest, ToServer};
use protocol::replica::{Input, Lookup, Output};
use protocol::trace::Moment;
use protocol::transfer;
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, OrderNumber};

use super::Guest;
use crate::connections::Message;
use crate::limits::{MESSAGES_PER_TURN, PIECES_PER_TURN};
use crate::net::Token;

impl Guest<'_> {
    /// Handles what connections have sent: of each as much as is fair.
    pub(super) fn serve(&mut self) {
        let mut pieces = PIECES_PER_TURN;
        for token in self.connections.take_ready() {
            let (before, mut passed_over) = (pieces, false);
            for _ in 0..MESSAGES_PER_TURN {
                // Whoever catches up waits for those who are at work, not the other way round.
                let fetches = self.connections.next_is_fetch(token);
                if fetches && pieces == 0 {
                    passed_over = before == 0;
                    break;
                }
                pieces -= usize::from(fetches);
                let Some(message) = self.connections.next_message(token) else { break };
                self.handle(token, message);
            }
            match passed_over {
                true => self.connections.passed_over(token),
                false => self.connections.served(token),
            }
        }
    }

    fn handle(&mut self, token: Token, message: Message) {
        match message {
            Message::Status => self.answer_status(token),
            Message::Trace(from) => self.answer_trace(token, from),
            // R6: what cannot be proposed is not taken; its sender sends it again.
            Message::Guest(_, ToGuest::Forward(_)) | Message::Client(_, ToServer::Order(_))
                if self.registers.reads_only() => {}
            Message::Guest(from, ToGuest::Forward(order)) => {
                self.counters.forwards_received += 1;
                self.step(Input::Forward(from, order));
            }
            Message::Guest(_, ToGuest::Fetch { digest, from }) => {
                self.serve_piece(token, digest, from)
            }
            // Answers to what this guest asks come on connections that it has dialed.
            Message::Guest(_, ToGuest::Piece { .. } | ToGuest::Gone { .. }) => {}
            Message::Client(client, ToServer::Subscribe { from, messages, bytes }) => {
                tracing::debug!(%client, %from, messages, bytes, "a subscriber");
                self.subscriptions.subscribe(token, from, messages, bytes);
            }
            Message::Client(_, ToServer::Credit { messages, bytes }) => {
                self.subscriptions.give_credit(token, messages, bytes);
            }
            Message::Client(_, ToServer::FetchDelivery { order }) => self.fetch(token, order),
            Message::Client(client, message @ ToServer::FetchReply { .. }) => {
                self.connections.route(client, token);
                // Whoever does not read its answers is not given more of them to hold.
                if !self.connections.has_room(token) {
                    self.counters.dropped_replies += 1;
                    return;
                }
                self.step(Input::Client(client, message));
            }
            Message::Client(client, message @ ToServer::Order(_)) => {
                self.connections.route(client, token);
                self.counters.orders_received += 1;
                if let ToServer::Order(order) = &message {
                    self.trace.note(|| Moment::Received(order.id));
                }
                self.step(Input::Client(client, message));
            }
            // The connection has made the one a Message::Status, and refused the other.
            Message::Client(_, ToServer::Status | ToServer::Trace { .. }) => {}
        }
    }

    /// Gives the core one message, and passes its answers on at once: thus how much they may take
    /// is bounded by the room in their connection.
    fn step(&mut self, input: Input<'_>) {
        let (before, now) = (self.out.len(), self.now);
        let Some(replica) = self.core.at_work() else {
            self.counters.not_at_work += 1;
            return;
        };
        replica.step(now, input, &mut self.out);
        if self.out.len() > before {
            self.pass_answers(before);
        }
    }

    fn pass_answers(&mut self, from: usize) {
        for output in self.out.split_off(from) {
            match output {
                Output::ToClient(client, answer) => self.answer(client, &answer),
                other => self.out.push(other),
            }
        }
    }

    pub(super) fn answer(&mut self, client: ClientId, answer: &ToClient) {
        if self.connections.route_of(client, 0).is_none() {
            // What was delivered while this guest was away is no reply that somebody missed here.
            self.counters.dropped_replies += u64::from(self.core.at_work().is_some());
            return;
        }
        for index in 0.. {
            let Some(token) = self.connections.route_of(client, index) else { break };
            if self.send(token, answer) {
                self.trace.on_sealed(client, answer);
            }
        }
    }

    /// Returns whether it was sent.
    fn send(&mut self, token: Token, message: &ToClient) -> bool {
        let sent = self.connections.send(token, message);
        match sent {
            Some(bytes) => {
                self.counters.replies_sent += 1;
                self.counters.reply_bytes_sent += bytes;
            }
            None => self.counters.dropped_replies += 1,
        }
        sent.is_some()
    }

    fn fetch(&mut self, token: Token, order: OrderNumber) {
        if !self.connections.has_room(token) {
            self.counters.dropped_replies += 1;
            return;
        }
        let Some(replica) = self.core.replica() else { return };
        match replica.delivery(order, true) {
            Lookup::Found(delivery) => {
                if self.send(token, &delivery) {
                    self.subscriptions.on_fetched(token, &delivery);
                }
            }
            Lookup::TooOld { first } => {
                self.send(token, &ToClient::TooOld { from: order, first });
            }
            Lookup::Future => {}
        }
    }

    /// A piece of a snapshot, for a guest that catches up: out of what the replica holds, or else the
    /// own store, where everything is that this server may have claimed. One that has no room for its
    /// answer asks again.
    fn serve_piece(&mut self, token: Token, digest: Digest, from: u64) {
        if !self.connections.has_room(token) {
            self.counters.pieces_dropped += 1;
            return;
        }
        let held = self.core.replica().and_then(|replica| replica.piece_of(&digest, from));
        let found = held.or_else(|| self.store.piece_of(&digest, from));
        let answer = transfer::answer(digest, from, found);
        match self.connections.send_to_guest(token, &answer) {
            Some(bytes) => {
                self.counters.pieces_sent += 1;
                self.counters.piece_bytes_sent += bytes;
            }
            None => self.counters.pieces_dropped += 1,
        }
    }

    /// Sends subscribers what they wait for. Returns whether there is more to do at once.
    pub(super) fn deliver(&mut self) -> bool {
        let Guest { core, subscriptions, connections, counters, .. } = self;
        let Some(replica) = core.replica() else {
            subscriptions.forget_closed(connections);
            return false;
        };
        let lookup = |order| replica.delivery(order, false);
        subscriptions.pump(replica.last_delivered(), lookup, connections, counters)
    }

    fn answer_trace(&mut self, token: Token, from: u64) {
        // Whoever does not read its answers is not given more of them to hold.
        if !self.connections.has_room(token) {
            self.counters.dropped_replies += 1;
            return;
        }
        let points = self.trace.page(self.clock.now(), from);
        match self.connections.send(token, &ToClient::Trace(points)) {
            Some(_) => self.counters.traces_sent += 1,
            None => self.counters.dropped_replies += 1,
        }
    }

    fn answer_status(&mut self, token: Token) {
        let made = self.status.take();
        let answer = made.unwrap_or_else(|| ToClient::Status(Box::new(self.make_status())));
        match self.connections.send(token, &answer) {
            Some(_) => self.counters.status_sent += 1,
            None => self.counters.dropped_replies += 1,
        }
        self.status = Some(answer);
    }
}
