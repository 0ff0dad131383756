//! Both register files, holding any words. A host reads a write file that its guest fills as it
//! likes; and a read file may be damaged on its disk, so a host that goes on with it must either
//! say what is wrong or be able to work with it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arbitrary::{Arbitrary, Unstructured};
use host_agent::{Host, HostConfig, Input, Now};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{HostRegisters, Taken};
use shared_registers::ids::{Micros, Seq, ServerId, Term};
use shared_registers::layout::{Geometry, HEADER_BYTES, read, stream_word, write};
use shared_registers::limits::RegisterLimits;
use shared_registers::record::{Body, Change, Reason, Record, Stamp};
use shared_registers::words::{News, VecWords, Words, WordsMut};

use crate::acts;
use crate::drafts::{CLIENTS, CLUSTER, MAX_PAYLOAD, N, order_key};

pub(crate) type Memory = Arc<VecWords>;

/// First word of a frame, upper half.
const FRAME_MAGIC: u64 = 0x4472_4146 << 32;

/// Files small enough that rings wrap and fill up within a story.
pub(crate) fn geometry(server: usize, ring_bytes: u64) -> Geometry {
    let limits =
        RegisterLimits { max_payload_bytes: MAX_PAYLOAD, ring_bytes, write_ring_bytes: ring_bytes };
    Geometry { n: N, server: ServerId(server as u16), cluster: CLUSTER, limits }
}

/// Empty memory for a read file and a write file.
pub(crate) fn memory(geometry: &Geometry) -> (Memory, Memory) {
    let words = |bytes: u64| Arc::new(VecWords::new((bytes / 8) as usize));
    (words(geometry.read_file_bytes()), words(geometry.write_file_bytes()))
}

/// What a host is made with.
pub(crate) fn host_config(server: usize) -> HostConfig {
    let order_keys = (0..CLIENTS).map(|client| order_key(server, client)).collect();
    HostConfig { order_keys, exchange: Micros::from_ms(10) }
}

/// What stands in a word.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Word {
    /// A small number.
    Small(u8),
    /// So much more than now.
    More(i8),
    /// Any number.
    Any(u64),
    /// A number so far below the largest.
    Large(u8),
    /// A frame's first word.
    Magic(u8),
    /// One bit of it is another.
    Flip(u8),
}

impl Word {
    fn of(self, now: u64) -> u64 {
        match self {
            Word::Small(value) => u64::from(value),
            Word::More(by) => now.wrapping_add_signed(i64::from(by)),
            Word::Any(value) => value,
            Word::Large(below) => u64::MAX - u64::from(below),
            Word::Magic(len) => FRAME_MAGIC | u64::from(len),
            Word::Flip(bit) => now ^ 1 << (bit % 64),
        }
    }

    /// Stores it.
    pub(crate) fn poke(self, memory: &Memory, index: usize) {
        let index = index % memory.len();
        memory.store(index, self.of(memory.load(index, Relaxed)), Relaxed);
    }
}

#[derive(Arbitrary, Debug)]
enum Poke {
    /// A word of a stream's state.
    Stream { writer: u8, which: u8, word: Word },
    /// A word of the header.
    Header { at: u16, word: Word },
    /// A word of the file.
    File { at: u16, word: Word },
}

impl Poke {
    fn apply(&self, memory: &Memory) {
        match *self {
            Poke::Stream { writer, which, word } => {
                let writer = ServerId(u16::from(writer) % N as u16);
                let which = usize::from(which) % (read::ARRIVING + 1);
                word.poke(memory, stream_word(writer, which));
            }
            Poke::Header { at, word } => {
                word.poke(memory, usize::from(at) % (HEADER_BYTES / 8) as usize);
            }
            Poke::File { at, word } => word.poke(memory, usize::from(at)),
        }
    }
}

/// Two records of each stream, as a host would have them, all but the last exposed.
fn filled(geometry: Geometry, files: &(Memory, Memory)) {
    let (read, write) = files.clone();
    let mut host = HostRegisters::create(geometry, read, write).expect("files of the right size");
    for seq in 1..=2 {
        for writer in ServerId::all(N) {
            let mut seen: Box<[u64]> = Box::new([seq - 1; N]);
            if seq == 2 && writer == ServerId(2) {
                seen[1] = 3; // It saw more than is here.
            }
            let (mut body, mut bytes) = (Vec::new(), Vec::new());
            let term = Term(seq - 1);
            Body::Change(Change { term, reason: Reason::Batch }).encode(&mut body);
            let stamp = Stamp { writer, seq: Seq(seq), time: Micros(7), incarnation: 0, seen };
            Record::encode(&stamp, &body, &mut bytes);
            let record = Record { stamp, body: &body };
            host.append(&record, &bytes).expect("room for a few records");
        }
    }
    host.expose();
}

/// A read file with any words in it, to a host that goes on with it and to its guest.
pub(crate) fn read_file(bytes: &[u8]) {
    let geometry = geometry(0, 1 << 12);
    let files = memory(&geometry);
    filled(geometry, &files);
    let mut guest = GuestRegisters::attach(geometry, files.0.clone(), files.1.clone()).ok();
    let mut bytes = Unstructured::new(bytes);
    acts(&mut bytes, |poke: Poke| {
        poke.apply(&files.0);
        if let Some(guest) = &mut guest {
            read_all(guest);
        }
    });
    if let Ok(mut guest) = GuestRegisters::attach(geometry, files.0.clone(), files.1.clone()) {
        read_all(&mut guest);
        let _ = guest.write(Seq(3), b"a frame");
    }
    let Ok(registers) = HostRegisters::reopen(geometry, files.0.clone(), files.1.clone()) else {
        return;
    };
    let counts = |host: &HostRegisters<Memory, Memory>| {
        ServerId::all(N).map(|k| (host.copied(k), host.exposed(k))).collect::<Vec<_>>()
    };
    let before = counts(&registers);
    assert!(before.iter().all(|(copied, exposed)| exposed <= copied));
    go_on(Host::new(host_config(0), registers, Now::default()), &files.1);
    // What it goes on with once it can go on with again.
    let again = HostRegisters::reopen(geometry, files.0, files.1).expect("the host's own file");
    let after = counts(&again);
    assert!(before.iter().zip(&after).all(|(before, after)| before.0 <= after.0));
}

/// A host on a file that it went on with does all that hosts do.
fn go_on(mut host: Host<Memory, Memory>, write: &Memory) {
    let now = Now::default();
    Word::Any(host.registers().geometry().limits.write_ring_bytes).poke(write, write::HEAD);
    host.step(now, Input::PeerUp(ServerId(1))).expect("only peers' frames fail");
    let mut lengths = vec![1, 1];
    lengths.extend([0; 8 + 12 * N]);
    let _ = host.step(now, Input::PeerFrame(ServerId(1), &lengths));
    let mut frame = Vec::new();
    for _ in 0..100 {
        if !host.next_frame(ServerId(1), &mut frame) {
            break;
        }
    }
    for _ in 0..4 {
        host.step(now, Input::Guest).expect("only peers' frames fail");
        host.step(now, Input::Tick).expect("only peers' frames fail");
    }
    host.registers_mut().doze();
    host.must_ring();
}

/// A guest reads whatever there is, and asks everything that it can ask.
fn read_all(guest: &mut GuestRegisters<Memory, Memory>) {
    for writer in ServerId::all(N) {
        // A ring of 4096 bytes holds less than so many records.
        for _ in 0..64 {
            match guest.next(writer) {
                Next::Record(record) => assert_eq!(record.stamp.writer, writer),
                Next::Nothing | Next::Reclaimed | Next::Damaged => break,
            }
            guest.advance(writer);
        }
    }
    if let Some(notice) = guest.drop_notice() {
        assert!(notice.orders.len() <= shared_registers::limits::MAX_ORDERS_PER_BATCH);
    }
    assert_eq!(guest.hints().count(), N);
    let _ = (guest.drained(), guest.stream_full(), guest.counters(), guest.has_news(News::ALL));
    guest.doze(News::ALL);
    guest.must_ring();
}

#[derive(Arbitrary, Debug)]
enum WriteAct {
    /// A correct guest writes a frame of so many bytes.
    Write { len: u8 },
    /// A correct guest starts.
    Attach,
    /// A word changes.
    Poke { at: u16, word: Word },
    /// The head changes.
    Head(Word),
    /// The host takes so many frames.
    Take(u8),
    /// The host looks at a frame and leaves it.
    Look,
    /// The host starts again.
    Reopen,
}

/// A write file with any words in it.
pub(crate) fn write_file(bytes: &[u8]) {
    let geometry = geometry(0, 1 << 10);
    let (read, write) = memory(&geometry);
    let mut host = HostRegisters::create(geometry, read.clone(), write.clone())
        .expect("files of the right size");
    let attach = || GuestRegisters::attach(geometry, read.clone(), write.clone());
    let mut guest = attach().expect("files of the right size");
    let mut bytes = Unstructured::new(bytes);
    acts(&mut bytes, |act| match act {
        WriteAct::Write { len } => {
            let _ = guest.write(Seq(1), &vec![len; usize::from(len)]);
        }
        WriteAct::Attach => guest = attach().expect("files of the right size"),
        WriteAct::Poke { at, word } => word.poke(&write, usize::from(at)),
        WriteAct::Head(word) => word.poke(&write, write::HEAD),
        WriteAct::Take(count) => (0..count % 32).for_each(|_| take(&mut host, &geometry, true)),
        WriteAct::Look => take(&mut host, &geometry, false),
        WriteAct::Reopen => {
            let reopened = HostRegisters::reopen(geometry, read.clone(), write.clone());
            host = reopened.expect("the host's own file");
        }
    });
    // A clean guest gets through, whatever the one before it left.
    guest = attach().expect("files of the right size");
    for _ in 0..64 {
        take(&mut host, &geometry, true);
    }
    assert!(guest.drained(), "the host takes what was left");
    guest.write(Seq(9), b"after all that").expect("an empty ring has room");
    assert!(host.has_frames());
    match host.take() {
        Taken::Frame(frame) => {
            assert_eq!((frame.seq, frame.body), (Seq(9), &b"after all that"[..]))
        }
        Taken::Nothing | Taken::Garbage => panic!("a clean guest's frame is lost"),
    }
}

fn take(host: &mut HostRegisters<Memory, Memory>, geometry: &Geometry, consume: bool) {
    match host.take() {
        Taken::Nothing => assert!(!host.has_frames(), "a host looks for nothing, again and again"),
        Taken::Garbage => assert!(!host.has_frames(), "garbage is skipped at once"),
        Taken::Frame(frame) => {
            assert!(frame.body.len() <= geometry.limits.write_ring_bytes as usize);
            assert!(frame.body.len() <= geometry.limits.max_body_bytes());
            if consume {
                host.consume();
            }
        }
    }
}
