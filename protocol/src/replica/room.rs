//! What a replica leaves free of its own stream's ring (R7). Only its own stream is at stake, but
//! if more than `f` correct servers filled theirs, no claim would get out and nothing be reclaimed.
//!
//! The sequencer's window keeps a ring from filling as long as what is proposed is committed. What
//! a term leaves behind uncommitted counts in no later term's window, though, and frames of an
//! earlier guest may be such. So a batch is proposed only if behind it the last part of the ring is
//! still free, and that part is for CHANGEs, empty openings, one vote per term, and checkpoints:
//! enough for the checkpoint at the base of a new term, which makes room.

use shared_registers::ids::Term;
use shared_registers::limits::RegisterLimits;
use shared_registers::record::HEADER_BYTES;

use super::Replica;
use crate::limits::LAST_PART;

/// What the host said last.
#[derive(Clone, Copy)]
pub(super) struct Room {
    free: u64,
    last_part: u64,
    largest: u64,
}

impl Replica {
    /// So many bytes of records the own stream still takes before a checkpoint has to be stable. To
    /// be told before [`Input::Idle`](super::Input::Idle); whoever never is has room.
    pub fn on_room(&mut self, free: u64, limits: &RegisterLimits) {
        let last_part = limits.ring_bytes / LAST_PART;
        let largest = limits.max_body_bytes() as u64 + self.stamp_bytes();
        self.room = Some(Room { free, last_part, largest });
    }

    /// What a record takes besides its body, at most.
    fn stamp_bytes(&self) -> u64 {
        (HEADER_BYTES + 8 * self.config.n + 8) as u64
    }

    /// What frames in flight will take, or took already.
    fn room_in_flight(&self) -> u64 {
        self.frames.bytes() + self.frames.in_flight() as u64 * self.stamp_bytes()
    }

    /// Whether the last part of the ring stays free if one more batch is proposed, of any size.
    pub(super) fn has_room_for_a_batch(&self) -> bool {
        let needed = |room: Room| self.room_in_flight() + room.last_part + room.largest;
        self.room.is_none_or(|room| room.free >= needed(room))
    }

    /// Whether another vote may be written in a term: in the last part, one.
    pub(super) fn has_room_for_a_vote(&self, term: Term) -> bool {
        let needed = |room: Room| self.room_in_flight() + room.last_part;
        let me = self.config.me;
        let voted = || self.reader.vote(me, term).max(self.frames.voted(term)).is_some();
        self.room.is_none_or(|room| room.free >= needed(room)) || !voted()
    }
}
