//! The frames that this guest has written for its host and that the write file had no room for.
//!
//! They wait in order; when too many wait, the rest is given up, and once there is room again the
//! core is told so as if its host had dropped them: it then writes them anew.

use std::collections::VecDeque;

use shared_registers::guest_side::{GuestRegisters, WriteFull};
use shared_registers::ids::Seq;
use shared_registers::words::{Words, WordsMut};

use crate::counters::Counters;
use crate::limits::{FRAME_BYTES_QUEUED, FRAMES_QUEUED};

/// Frames on their way into the write file.
#[derive(Default)]
pub(crate) struct Frames {
    queue: VecDeque<(Seq, Vec<u8>)>,
    bytes: usize,
    /// The first frame that was given up. All after it are, too.
    lost: Option<Seq>,
}

impl Frames {
    /// Writes a frame, or keeps it until there is room.
    pub(crate) fn write<R: Words, W: WordsMut>(
        &mut self,
        seq: Seq,
        body: Vec<u8>,
        files: &mut GuestRegisters<R, W>,
        counters: &mut Counters,
    ) {
        self.pump(files, counters);
        let behind = self.lost.is_some() || !self.queue.is_empty();
        if !behind && files.write(seq, &body).is_ok() {
            counters.frames_written += 1;
        } else if self.lost.is_some()
            || self.queue.len() >= FRAMES_QUEUED
            || self.bytes >= FRAME_BYTES_QUEUED
        {
            self.lost.get_or_insert(seq);
            counters.frames_given_up += 1;
        } else {
            self.bytes += body.len();
            self.queue.push_back((seq, body));
        }
    }

    /// Writes what waits, as far as there is room.
    pub(crate) fn pump<R: Words, W: WordsMut>(
        &mut self,
        files: &mut GuestRegisters<R, W>,
        counters: &mut Counters,
    ) {
        while let Some((seq, body)) = self.queue.front() {
            match files.write(*seq, body) {
                Ok(()) => counters.frames_written += 1,
                Err(WriteFull) => return,
            }
            self.bytes -= body.len();
            self.queue.pop_front();
        }
    }

    /// Once all that waited is written: the first frame that was given up meanwhile, if any.
    pub(crate) fn take_lost(&mut self) -> Option<Seq> {
        if self.queue.is_empty() { self.lost.take() } else { None }
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.lost.is_none()
    }

    /// Forgets everything: the core writes it anew.
    pub(crate) fn clear(&mut self) {
        *self = Frames::default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared_registers::crypto::ClusterId;
    use shared_registers::host_side::{HostRegisters, Taken};
    use shared_registers::ids::ServerId;
    use shared_registers::layout::Geometry;
    use shared_registers::limits::RegisterLimits;
    use shared_registers::words::VecWords;

    use super::*;

    /// What a host finds in the write file now.
    fn taken(host: &mut HostRegisters<Arc<VecWords>, Arc<VecWords>>) -> Vec<u64> {
        let mut seqs = Vec::new();
        while let Taken::Frame(frame) = host.take() {
            seqs.push(frame.seq.0);
            host.consume();
        }
        seqs
    }

    #[test]
    fn frames_wait_in_order_and_the_first_one_given_up_is_named() {
        let limits = RegisterLimits {
            max_payload_bytes: 64,
            ring_bytes: 1 << 26,
            write_ring_bytes: 1 << 22,
        };
        let geometry = Geometry { n: 3, server: ServerId(0), cluster: ClusterId([1; 32]), limits };
        let words = |bytes: u64| Arc::new(VecWords::new((bytes / 8) as usize));
        let (read, write) = (words(geometry.read_file_bytes()), words(geometry.write_file_bytes()));
        let mut host = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
        let mut files = GuestRegisters::attach(geometry, read, write).unwrap();
        let (mut frames, mut counters) = (Frames::default(), Counters::default());

        // The file holds three frames of this size, and the queue its bound.
        let body = vec![7; 1 << 20];
        let small = vec![7; 1];
        let kept = 3 + FRAMES_QUEUED as u64;
        for seq in 1..=kept + 2 {
            let body = if seq <= 4 { &body } else { &small };
            frames.write(Seq(seq), body.clone(), &mut files, &mut counters);
        }
        assert_eq!(frames.take_lost(), None, "earlier frames still wait");
        let mut seen = Vec::new();
        loop {
            let now = taken(&mut host);
            frames.pump(&mut files, &mut counters);
            if now.is_empty() {
                break;
            }
            seen.extend(now);
        }
        assert_eq!(seen, (1..=kept).collect::<Vec<_>>());
        assert_eq!(counters.frames_given_up, 2);
        assert_eq!(frames.take_lost(), Some(Seq(kept + 1)));

        // The core writes it anew, and it passes.
        frames.write(Seq(kept + 1), small, &mut files, &mut counters);
        assert_eq!(taken(&mut host), [kept + 1]);
    }
}
