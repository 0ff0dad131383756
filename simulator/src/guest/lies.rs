//! What a broken-in guest tells clients. A lie depends on nothing but what it is about, so that all
//! liars of a collusion tell the same one: a client that believed `f` equal answers would be lost.

use protocol::messages::{Body, Delivery, Refusal, Reply, ToClient, ToServer};
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, OrderNumber, Term};

use super::GuestOutput;
use super::byzantine::Byzantine;
use super::strategies::{Deed, Lie};

/// What a lie says instead of a reply.
const LIE: &[u8] = b"a lie";

impl Byzantine {
    fn lies(&mut self, lie: Lie) -> bool {
        self.at_work(|deed| *deed == Deed::Lie(lie)).is_some()
    }

    /// Sends an answer, or what is made of it.
    pub(super) fn answer(
        &mut self,
        client: ClientId,
        mut answer: ToClient,
        out: &mut Vec<GuestOutput>,
    ) {
        match &mut answer {
            ToClient::Reply(reply) => self.spoil_reply(reply),
            ToClient::Delivery(delivery) => self.spoil_delivery(delivery),
            _ => {}
        }
        out.push(GuestOutput::ToClient(client, answer));
    }

    fn spoil_reply(&mut self, reply: &mut Reply) {
        if self.lies(Lie::Reply) {
            (reply.digest, reply.body) = (Digest::of(&[LIE]), Body::Here(LIE.to_vec().into()));
        }
        if self.lies(Lie::Digest) {
            reply.digest = Digest::of(&[b"another", LIE]);
        }
        if self.lies(Lie::Term) {
            reply.term = Term(u64::MAX - 1);
        }
        if self.lies(Lie::TooSoon) {
            reply.order = OrderNumber(reply.order.0 + 1);
        }
    }

    fn spoil_delivery(&mut self, delivery: &mut Delivery) {
        if self.lies(Lie::Delivery) {
            delivery.payload = Body::Here(LIE.to_vec().into());
            delivery.digest = Digest::of(&[LIE]);
        }
        if self.lies(Lie::Digest) {
            delivery.digest = Digest::of(&[b"another", LIE]);
        }
    }

    /// What a client is told that only asked for something.
    pub(super) fn lie_unasked(
        &mut self,
        client: ClientId,
        message: &ToServer,
        out: &mut Vec<GuestOutput>,
    ) {
        let mut tell = |answer| out.push(GuestOutput::ToClient(client, answer));
        match message {
            ToServer::Order(order) => {
                let (session, count) = (order.id.session, order.id.count);
                if self.lies(Lie::TooSoon) {
                    let order = OrderNumber(count);
                    let (digest, body) = (Digest::of(&[LIE]), Body::Here(LIE.to_vec().into()));
                    let term = Term(0);
                    tell(ToClient::Reply(Reply { session, count, order, digest, term, body }));
                }
                if self.lies(Lie::Refused) {
                    tell(ToClient::Refused { session, count, reason: Refusal::BadMac });
                }
                if self.lies(Lie::Stale) {
                    tell(ToClient::Stale { session: session.wrapping_add(1), count: 1 });
                }
            }
            ToServer::Subscribe { from, .. } if self.lies(Lie::TooOld) => {
                let first = OrderNumber(from.0.saturating_add(1000));
                tell(ToClient::TooOld { from: *from, first });
            }
            _ => {}
        }
    }
}
