//! Records that were read, and the deliveries that follow from them (C1, C2, P5).

use shared_registers::crypto::Digest;
use shared_registers::ids::Micros;
use shared_registers::record::Record;

use super::{Output, Replica};
use crate::application::Delivered;
use crate::history::Kept;
use crate::reader::{CommittedBatch, ReadOrder, Said};

impl Replica {
    pub(super) fn on_record(&mut self, now: Micros, record: &Record<'_>, out: &mut Vec<Output>) {
        self.counters.records_read += 1;
        let said = self.reader.read(record);
        if record.stamp.writer == self.config.me {
            self.frames.on_own_record(record.stamp.seq);
            if let Some(claim) = self.reader.claim() {
                self.checkpoints.on_own_claim(claim);
            }
        }
        match said {
            Said::Changed(_) if self.reader.entered() > self.term => {
                self.term = self.reader.entered();
                self.suspicion.on_term(now);
            }
            Said::Proposed(term) if term == self.term => {
                if let Some(state) = self.reader.term(term) {
                    self.suspicion.on_proposal(now, state.last());
                }
            }
            _ => {}
        }
        loop {
            // A snapshot holds what was delivered up to exactly one batch.
            self.capture();
            let Some(batch) = self.reader.take_committed() else { break };
            self.deliver(now, &batch, out);
            self.checkpoints.on_taken(&batch);
        }
        self.settle_checkpoint();
        self.suspicion.on_committed(self.reader.committed());
    }

    fn deliver(&mut self, now: Micros, batch: &CommittedBatch, out: &mut Vec<Output>) {
        for order in batch.orders.iter() {
            self.deliver_order(now, order, batch.time, out);
        }
    }

    // C2, P5
    fn deliver_order(
        &mut self,
        now: Micros,
        order: &ReadOrder,
        proposed: Micros,
        out: &mut Vec<Output>,
    ) {
        let id = order.id;
        let Some((number, time)) = self.ledger.deliver(id, proposed) else { return };
        let message = Delivered { order: number, id, time, payload: &order.payload };
        let mut reply = self.application.execute(&message);
        if reply.len() > self.config.max_payload_bytes {
            self.counters.replies_too_large += 1;
            reply = Vec::new();
        }
        let digest = Digest::of(&[&reply]);
        self.ledger.keep(id.client, digest, reply.into_boxed_slice().into());
        let (payload, digest) = (order.payload.clone(), order.digest);
        self.history.push(Kept { id, digest, time, payload });
        self.pool.forget(id.client, self.ledger.last(id.client));
        self.sequencing.news_of_forwarded();
        self.suspicion.on_delivery(now, id.client);
        if let Some(kept) = self.ledger.reply(id) {
            let reply = self.reply(id, kept, self.is_sequencer());
            out.push(Output::ToClient(id.client, reply));
        }
    }
}
