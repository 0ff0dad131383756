//! A host whose guest is broken into, and whose links bring any frames. After every act its own
//! stream is read back and judged by rules written down here a second time: only well-formed
//! bodies, right MACs, allowed CHANGEs (R1), its own name (R2), one history (R3), causal stamps
//! and causal exposure (R4).

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use host_agent::{Host, Input, Now, PeerFault};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{Counter, HostRegisters};
use shared_registers::ids::{Micros, Position, Seq, ServerId, Term};
use shared_registers::layout::{Geometry, read, write};
use shared_registers::record::{Body, Record, Stamp};
use shared_registers::words::{Words, WordsMut, padded};

use crate::acts;
use crate::drafts::{BodyDraft, F, Facts, N, verifies};
use crate::files::{Memory, Word, geometry, host_config, memory};

const ME: ServerId = ServerId(0);
const LENGTHS: u8 = 1;
const RECORD: u8 = 2;
const JUMP: u8 = 3;
const FRAME_MAGIC: u64 = 0x4472_4146 << 32;

#[derive(Arbitrary, Debug)]
enum Act<'a> {
    /// The guest writes a frame for a position that is so far off, having missed so many drops.
    Frame { off: i8, missed: u8, body: BodyDraft<'a> },
    /// The guest writes a frame that is right in its number.
    RightFrame { body: BodyDraft<'a> },
    /// The guest changes a word of its file.
    Poke { at: u16, word: Word },
    /// The guest moves the head.
    Head(Word),
    /// The host looks at the write file.
    Look,
    /// A link comes up, or goes down.
    Link { peer: bool, up: bool },
    /// A peer sends any bytes.
    Bytes { peer: bool, bytes: &'a [u8] },
    /// A peer says what it has.
    Lengths { peer: bool, linked: u8, full: u8, counts: [u8; N] },
    /// A peer says where to go on, with a CHANGE of each writer's.
    Jump { peer: bool, batch: u8, cut: [u8; N], changes: [u8; N] },
    /// A peer hands over a record, in its place or so far off.
    Record { peer: bool, writer: u8, off: i8, seen: [u8; N], body: BodyDraft<'a> },
    /// The host's frames to a peer are taken.
    Send { peer: bool, count: u8 },
    /// Time passes.
    Tick { ms: u16 },
    /// The host starts again, with its files as they are (R6).
    Restart,
}

struct World {
    geometry: Geometry,
    files: (Memory, Memory),
    host: Option<Host<Memory, Memory>>,
    guest: GuestRegisters<Memory, Memory>,
    now: Now,
    judge: Judge,
}

/// What is known of the streams, from what was read back of them.
#[derive(Default)]
struct Judge {
    /// Per stream, the records as they were first seen: they never change (R3).
    records: [BTreeMap<u64, Vec<u8>>; N],
    /// All CHANGEs.
    changes: Vec<(Term, Position)>,
    /// How many records of each stream the guest has read.
    read: [u64; N],
}

/// The host's story: see the [module](self).
pub(crate) fn run(bytes: &[u8]) {
    let mut world = World::new();
    let mut bytes = Unstructured::new(bytes);
    acts(&mut bytes, |act| {
        world.act(act);
        world.check();
    });
}

/// One frame from a peer, of any bytes. The first says whether a record's length and CRC are put
/// right.
pub(crate) fn peer_frame(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let mut world = World::new();
    world.link(1, true);
    world.link(2, true);
    world.lengths(1, 0, 0, [0; N]);
    world.lengths(2, 0, 0, [0; N]);
    let mut frame = bytes.to_vec();
    if first & 1 == 1 && frame.len() > 9 && frame[0] == RECORD {
        let (len, crc) = (frame.len() as u32 - 1, crc32fast::hash(&frame[9..]));
        frame[1..5].copy_from_slice(&len.to_le_bytes());
        frame[5..9].copy_from_slice(&crc.to_le_bytes());
    }
    world.peer_frame(1, &frame);
    world.check();
    world.send(2, u8::MAX);
    world.check();
}

impl World {
    fn new() -> World {
        let geometry = geometry(ME.index(), 1 << 12);
        let files = memory(&geometry);
        let registers = HostRegisters::create(geometry, files.0.clone(), files.1.clone())
            .expect("files of the right size");
        let guest = GuestRegisters::attach(geometry, files.0.clone(), files.1.clone())
            .expect("files of the right size");
        let now = Now { wall: Micros(1_700_000_000_000_000), mono: Micros(0) };
        let host = Some(Host::new(host_config(ME.index()), registers, now));
        World { geometry, files, host, guest, now, judge: Judge::default() }
    }

    fn host(&mut self) -> &mut Host<Memory, Memory> {
        self.host.as_mut().expect("it is gone only while it starts again")
    }

    fn act(&mut self, act: Act<'_>) {
        let peer = |second| if second { 2 } else { 1 };
        match act {
            Act::Frame { off, missed, body } => self.write(off, missed, &body),
            Act::RightFrame { body } => {
                self.write(0, 0, &body);
                self.look();
            }
            Act::Poke { at, word } => word.poke(&self.files.1, usize::from(at)),
            Act::Head(word) => word.poke(&self.files.1, write::HEAD),
            Act::Look => self.look(),
            Act::Link { peer: second, up } => self.link(peer(second), up),
            Act::Bytes { peer: second, bytes } => {
                let limit = self.geometry.max_record_bytes() + 1;
                self.peer_frame(peer(second), &bytes[..bytes.len().min(limit)]);
            }
            Act::Lengths { peer: second, linked, full, counts } => {
                self.lengths(peer(second), linked, full, counts);
            }
            Act::Jump { peer: second, batch, cut, changes } => {
                let mut frame = vec![JUMP];
                let head = [0, u64::from(batch), 0, 0, 0, 0];
                head.iter().for_each(|word| frame.extend(word.to_le_bytes()));
                for (cut, change) in cut.iter().zip(changes) {
                    frame.extend(u64::from(*cut).to_le_bytes());
                    frame.extend(u64::from(change).to_le_bytes());
                }
                self.peer_frame(peer(second), &frame);
            }
            Act::Record { peer: second, writer, off, seen, body } => {
                let frame = self.record(ServerId(u16::from(writer) % N as u16), off, seen, &body);
                self.peer_frame(peer(second), &frame);
            }
            Act::Send { peer: second, count } => self.send(peer(second), count),
            Act::Tick { ms } => {
                let passed = Micros::from_ms(u64::from(ms));
                self.now.mono = self.now.mono.plus(passed);
                let now = self.now;
                self.host().step(now, Input::Tick).expect("only peers' frames fail");
            }
            Act::Restart => self.restart(),
        }
    }

    fn facts(&self) -> Facts {
        let term = self.judge.changes.iter().map(|(term, _)| *term).max().unwrap_or_default();
        Facts { changes: self.judge.changes.clone(), term, ..Facts::default() }
    }

    /// Writes a frame where the host will look next.
    fn write(&mut self, off: i8, missed: u8, body: &BodyDraft<'_>) {
        let body = body.encode(ME.index(), &self.facts());
        let ring = self.geometry.frame_ring();
        let head = self.files.1.load(write::HEAD, std::sync::atomic::Ordering::Relaxed);
        let (copied, drops) =
            (self.host().registers().copied(ME).0, self.host().registers().drops());
        let seq = copied.wrapping_add(1).wrapping_add_signed(i64::from(off));
        let mut frame = (FRAME_MAGIC | (16 + body.len() as u64)).to_le_bytes().to_vec();
        frame.extend(seq.to_le_bytes());
        frame.extend(drops.saturating_sub(u64::from(missed)).to_le_bytes());
        frame.extend(body);
        frame.truncate(ring.bytes as usize);
        let at = head & !7;
        ring.put(&self.files.1, at, &frame);
        let head = at.wrapping_add(padded(frame.len()));
        self.files.1.store(write::HEAD, head, std::sync::atomic::Ordering::Release);
    }

    fn look(&mut self) {
        let now = self.now;
        // A ring of 4096 bytes holds less than 3 turns of 64 frames.
        for _ in 0..4 {
            let turn = self.host().step(now, Input::Guest).expect("only peers' frames fail");
            if !turn.more {
                return;
            }
        }
        panic!("a host never comes to the end of a finite write file");
    }

    fn link(&mut self, peer: u16, up: bool) {
        let (now, peer) = (self.now, ServerId(peer));
        let input = if up { Input::PeerUp(peer) } else { Input::PeerDown(peer) };
        self.host().step(now, input).expect("only peers' frames fail");
    }

    fn lengths(&mut self, peer: u16, linked: u8, full: u8, counts: [u8; N]) {
        let mut frame = vec![LENGTHS];
        frame.extend(u32::from(linked).to_le_bytes());
        frame.extend(u32::from(full).to_le_bytes());
        frame.push(0); // it does not recover
        for count in counts {
            frame.extend(u64::from(count).to_le_bytes());
            frame.extend([0; 4]);
        }
        self.peer_frame(peer, &frame);
    }

    /// A RECORD frame, in its place in the stream or so far off.
    fn record(
        &mut self,
        writer: ServerId,
        off: i8,
        seen: [u8; N],
        body: &BodyDraft<'_>,
    ) -> Vec<u8> {
        let body = body.encode(writer.index(), &self.facts());
        let copied = self.host().registers().copied(writer).0;
        let seq = copied.wrapping_add(1).wrapping_add_signed(i64::from(off));
        let mut seen: Box<[u64]> = seen.map(|seen| u64::from(seen % 8)).into();
        seen[writer.index()] = seq.wrapping_sub(1);
        let stamp = Stamp { writer, seq: Seq(seq), time: Micros(1), incarnation: 0, seen };
        let mut frame = vec![RECORD];
        Record::encode(&stamp, &body, &mut frame);
        frame
    }

    fn peer_frame(&mut self, peer: u16, bytes: &[u8]) {
        let now = self.now;
        let refused = |world: &mut World| world.host().registers().counter(Counter::LinkRefused);
        let before = refused(self);
        let own = self.host().registers().copied(ME);
        let copied = |world: &mut World| {
            ServerId::all(N).map(|k| world.host().registers().copied(k)).collect::<Vec<_>>()
        };
        let had = copied(self);
        let result = self.host().step(now, Input::PeerFrame(ServerId(peer), bytes));
        let malformed = matches!(result, Err(PeerFault::Malformed(_)));
        assert_eq!(refused(self) - before, u64::from(malformed), "refused and not counted");
        if let Err(PeerFault::Rollback { theirs, ours }) = result {
            assert!(theirs > ours && ours == own);
        }
        assert_eq!(self.host().registers().copied(ME), own, "a peer wrote the own stream");
        if bytes.first() == Some(&JUMP) {
            let has = copied(self);
            self.judge.jumped(bytes, &had, &has);
        }
    }

    fn send(&mut self, peer: u16, count: u8) {
        let mut frame = Vec::new();
        for _ in 0..count {
            if !self.host().next_frame(ServerId(peer), &mut frame) {
                return;
            }
            match frame.first() {
                Some(&LENGTHS) => assert_eq!(frame.len(), 10 + 12 * N),
                Some(&JUMP) => assert_eq!(frame.len(), 49 + 16 * N),
                Some(&RECORD) => {
                    let record = Record::decode(&frame[1..], N).expect("a host sends records");
                    let Stamp { writer, seq, .. } = record.stamp;
                    let known = &self.judge.records[writer.index()][&seq.0];
                    assert_eq!(known, &frame[1..], "a record changed on its way");
                }
                other => panic!("a host sends a frame of kind {other:?}"),
            }
        }
    }

    fn restart(&mut self) {
        self.host = None;
        let registers =
            HostRegisters::reopen(self.geometry, self.files.0.clone(), self.files.1.clone())
                .expect("a host's own file is whole");
        self.host = Some(Host::new(host_config(ME.index()), registers, self.now));
    }

    fn check(&mut self) {
        let host = self.host.as_ref().expect("it is gone only while it starts again");
        let registers = host.registers();
        self.judge.read_back(registers);
        assert_eq!(registers.copied(ME), registers.exposed(ME));
        let incarnation = registers.header(read::INCARNATION);
        assert_eq!(incarnation, 0, "nothing but recovery changes it");
        self.judge.read_as_guest(&mut self.guest, &registers.exposed_all());
    }
}

impl Judge {
    /// Reads what is new in the streams, and judges it.
    fn read_back(&mut self, registers: &HostRegisters<Memory, Memory>) {
        let mut bytes = Vec::new();
        for writer in ServerId::all(N) {
            let known = self.records[writer.index()].last_key_value().map_or(0, |(seq, _)| *seq);
            let (first, copied) = (registers.first(writer).0, registers.copied(writer).0);
            assert!(known <= copied, "R3: a stream shrinks");
            let exposed = registers.exposed(writer).0;
            assert!(first <= exposed && exposed <= copied, "reclaimed unseen, or seen unborn");
            for seq in first.max(known) + 1..=copied {
                bytes.clear();
                assert!(registers.record(writer, Seq(seq), &mut bytes));
                self.judge(writer, Seq(seq), &bytes);
                self.records[writer.index()].insert(seq, bytes.clone());
            }
        }
        self.check_exposure(registers);
    }

    /// R1: CHANGEs that a host jumped over count, each as its peer says.
    fn jumped(&mut self, frame: &[u8], had: &[Seq], has: &[Seq]) {
        for (k, (had, has)) in had.iter().zip(has).enumerate().filter(|(_, (had, has))| had < has) {
            let word = |at: usize| {
                let bytes = &frame[49 + 16 * k + at..][..8];
                u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
            };
            assert!(word(0) == has.0 && *had < Seq(word(0)), "jumped, and not to the cut");
            if let Some(term) = word(8).checked_sub(1) {
                let at = Position { writer: ServerId(k as u16), seq: *has };
                self.changes.push((Term(term), at));
            }
        }
    }

    fn judge(&mut self, writer: ServerId, seq: Seq, bytes: &[u8]) {
        let record = Record::decode(bytes, N).expect("only records enter a stream");
        // R2, R3
        assert_eq!((record.stamp.writer, record.stamp.seq), (writer, seq));
        let body = Body::decode(record.body, N);
        if writer == ME {
            match body.as_ref().expect("R1: only well-formed bodies") {
                Body::Propose(propose) => {
                    let right = propose.orders.iter().all(|order| verifies(ME.index(), order));
                    assert!(right, "R1: an order without its MAC");
                }
                Body::Accept(_) => {}
                Body::Change(change) => self.judge_change(&record.stamp, change.term),
            }
        }
        if let Ok(Body::Change(change)) = body {
            self.changes.push((change.term, Position { writer, seq }));
        }
    }

    // R1: the rule on CHANGE.
    fn judge_change(&self, stamp: &Stamp, term: Term) {
        let seen = self.changes.iter().filter(|(_, at)| stamp.saw(*at));
        let before = |of: Term| term == Term(0) || of.next() >= term;
        let mut writers = [false; N];
        for (of, at) in seen {
            assert!(at.writer != ME || *of < term, "R1: a CHANGE of a term that it left");
            writers[at.writer.index()] |= before(*of);
        }
        let count = writers.iter().filter(|w| **w).count();
        assert!(term == Term(0) || count > F, "R1: a CHANGE that too few allow");
    }

    // R4: what is exposed has its causal past exposed. Looking at the newest of each stream is
    // enough while earlier ones were looked at before.
    fn check_exposure(&self, registers: &HostRegisters<Memory, Memory>) {
        let exposed = registers.exposed_all();
        for writer in ServerId::all(N) {
            // Of what it jumped over nothing is known.
            let newest = self.records[writer.index()].get(&exposed[writer.index()]);
            let Some(bytes) = newest else { continue };
            let record = Record::decode(bytes, N).expect("judged before");
            let past = record.stamp.seen.iter().zip(&exposed).all(|(seen, here)| seen <= here);
            assert!(past, "R4: exposed before its causal past");
        }
    }

    /// What the guest reads is what is exposed, and no more.
    fn read_as_guest(&mut self, guest: &mut GuestRegisters<Memory, Memory>, exposed: &[u64]) {
        for writer in ServerId::all(N) {
            loop {
                match guest.next(writer) {
                    Next::Nothing => break,
                    Next::Reclaimed => {
                        let first = guest.first(writer);
                        assert!(first.0 > self.read[writer.index()], "told of what is here");
                        self.read[writer.index()] = first.0;
                        guest.seek(writer, first).expect("nobody moves it now");
                        continue;
                    }
                    Next::Damaged => panic!("a host exposes a damaged record"),
                    Next::Record(record) => {
                        self.read[writer.index()] += 1;
                        assert_eq!(record.stamp.seq.0, self.read[writer.index()]);
                    }
                }
                guest.advance(writer);
            }
        }
        assert_eq!(self.read[..], exposed[..]);
    }
}
