//! What a broken-in guest does to its write file, which it can store to as it likes.

use std::sync::atomic::Ordering;

use rand::RngExt;
use shared_registers::ids::{Batch, Seq};
use shared_registers::layout::{read, write};
use shared_registers::words::{Words, WordsMut};

use super::byzantine::Byzantine;
use super::strategies::{Abuse, Deed};

/// The upper half of a frame's first word: see `shared_registers::layout`.
const FRAME_MAGIC: u64 = 0x4472_4146 << 32;
/// Bytes of a frame before its body.
const FRAME_HEADER_BYTES: u64 = 24;
/// Frames of a flood.
const FLOOD: u64 = 200;
/// More looks than a host takes at a frame.
pub(super) const LOOKS: u32 = 3;
/// Frames that are rewritten when the host has consumed them, at a time.
const USED_UP: usize = 64;
/// Words of noise at a time.
const NOISE: u64 = 32;

impl Byzantine {
    fn abuses(&mut self, abuse: Abuse) -> bool {
        self.at_work(|deed| *deed == Deed::Abuse(abuse)).is_some()
    }

    /// Where the next frame will begin.
    pub(super) fn head(&self) -> u64 {
        self.file.load(write::HEAD, Ordering::Acquire)
    }

    fn set_head(&self, head: u64) {
        self.file.store(write::HEAD, head, Ordering::Release);
    }

    /// The word of the file where place `at` of the ring is.
    fn word_at(&self, at: u64) -> usize {
        let ring = self.registers.geometry().frame_ring();
        ring.base + (at % ring.bytes / 8) as usize
    }

    /// A frame with this body was published at `at`.
    pub(super) fn spoil(&mut self, at: u64, body: &[u8]) {
        if self.abuses(Abuse::Rewrite) {
            let words = FRAME_HEADER_BYTES / 8 + (body.len() as u64).div_ceil(8);
            let word = self.rng.random_range(0..words);
            let looks = self.rng.random_range(0..=LOOKS);
            self.rewrite_word(self.word_at(at + word * 8), looks);
            self.tampered = true;
        }
        if self.abuses(Abuse::Number) {
            let far = Seq(self.next.0 + self.rng.random_range(1..=50));
            let past = Seq(self.next.0.saturating_sub(self.rng.random_range(1..=3)));
            for seq in [past, far] {
                let _ = self.registers.write(seq, body);
            }
            self.tampered = true;
        }
    }

    /// Overwrites a word of the last frame after so many looks of its host: before the first,
    /// between two of them, or when the host is done with the frame.
    pub(super) fn rewrite_word(&mut self, word: usize, looks: u32) {
        let value = self.rng.random();
        match looks {
            0 => self.file.store(word, value, Ordering::Relaxed),
            1..LOOKS => self.file.alter_after(word, looks, value),
            _ if self.used_up.len() < USED_UP => self.used_up.push((self.head(), word, value)),
            _ => {}
        }
    }

    /// Overwrites the words of frames that the host has consumed.
    pub(super) fn rewrite_consumed(&mut self) {
        let consumed = self.shown.load(read::CONSUMED, Ordering::Acquire);
        let is_past = |end: u64| consumed.wrapping_sub(end) as i64 >= 0;
        for (_, word, value) in self.used_up.extract_if(.., |(end, ..)| is_past(*end)) {
            self.file.store(word, value, Ordering::Relaxed);
        }
    }

    /// Stores to the file whatever comes to mind.
    pub(super) fn abuse(&mut self) {
        self.rewrite_consumed();
        let second = (self.now.0 >> 20, 0);
        if self.once(|deed| *deed == Deed::Abuse(Abuse::Torn), second).is_some() {
            let ahead = 8 * self.rng.random_range(1..=8);
            self.set_head(self.head() + ahead);
        }
        if self.once(|deed| *deed == Deed::Abuse(Abuse::Length), second).is_some() {
            let (at, length) = (self.head(), self.rng.random_range(0..1 << 20));
            self.file.store(self.word_at(at), FRAME_MAGIC | length, Ordering::Relaxed);
            let ahead = 8 * self.rng.random_range(1..=16);
            self.set_head(at + ahead);
        }
        if self.once(|deed| *deed == Deed::Abuse(Abuse::Noise), second).is_some() {
            for _ in 0..NOISE {
                let word = self.rng.random_range(0..self.file.len());
                self.file.store(word, self.rng.random(), Ordering::Relaxed);
            }
            let head = self.rng.random();
            self.set_head(head);
        }
        if self.once(|deed| *deed == Deed::Abuse(Abuse::Flood), second).is_some() {
            for i in 0..FLOOD {
                let chain = shared_registers::crypto::Digest(self.rng.random());
                self.vote(self.segment, Batch(i), chain);
            }
            for body in std::mem::take(&mut self.outbox) {
                if self.registers.write(self.next, &body).is_ok() {
                    self.next = self.next.next();
                }
            }
        }
    }
}
