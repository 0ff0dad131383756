//! Loom: every interleaving of two threads, and every value that a load may still see under the
//! memory model. The rings hold two entries of the smallest size, so that the
//! third wraps, and waits for room.
//!
//! One order is out of loom's reach: a guest must not store into a place before its host's loads
//! from it are done (CONSUMED's release, and the guest's acquire). Loom runs loads in the order of
//! the program, so none sees a store of its future: made relaxed, these two stay green. They were
//! checked by reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loom::sync::atomic::AtomicU64;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{HostRegisters, StreamFull, Taken};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{DropReason, HEADER_BYTES, read, stream_word, write};
use shared_registers::words::News;

use crate::backing::{Modelled, Weakness};
use crate::{body, geometry, record};

const WRITER: ServerId = ServerId(0);
const FIRST_RING_WORD: usize = (HEADER_BYTES / 8) as usize;
/// Two frames with a body of one word.
const WRITE_RING_BYTES: u64 = 64;
/// Two records with a body of one word, and two words more.
const RING_BYTES: u64 = 128;

type Words = Arc<Modelled<AtomicU64>>;
type Files = (HostRegisters<Words, Words>, GuestRegisters<Words, Words>);

/// All of it, in seconds: no bound on preemptions, whatever the environment says.
fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = None;
    model.max_branches = 10_000;
    model.check(test);
}

/// Both sides of both files, with these words of the read file and the write file modelled.
fn files(read: &[usize], write: &[usize], (weak_read, weak_write): (Weakness, Weakness)) -> Files {
    let geometry = geometry(RING_BYTES, WRITE_RING_BYTES);
    let (read, write) = (read.iter().copied(), write.iter().copied());
    let read = Arc::new(Modelled::new(geometry.read_file_bytes(), read, weak_read));
    let write = Arc::new(Modelled::new(geometry.write_file_bytes(), write, weak_write));
    let host = HostRegisters::create(geometry, read.clone(), write.clone()).unwrap();
    let guest = GuestRegisters::attach(geometry, read, write).unwrap();
    (host, guest)
}

fn ring_words(bytes: u64) -> impl Iterator<Item = usize> {
    FIRST_RING_WORD..FIRST_RING_WORD + (bytes / 8) as usize
}

/// A guest writes three frames into a ring for two; its host takes them. Notes in `full` that the
/// guest had to wait.
fn frames(weakness: Weakness, full: &'static AtomicBool) {
    let write: Vec<_> = [write::HEAD].into_iter().chain(ring_words(WRITE_RING_BYTES)).collect();
    let (mut host, mut guest) = files(&[read::CONSUMED], &write, (Weakness::None, weakness));
    let writer = loom::thread::spawn(move || {
        for seq in 1..=3 {
            while guest.write(Seq(seq), &body(seq, 1)).is_err() {
                full.store(true, Ordering::Relaxed);
                loom::thread::yield_now();
            }
        }
    });
    let mut next = 1;
    while next <= 3 {
        match host.take() {
            Taken::Nothing => loom::thread::yield_now(),
            Taken::Garbage => panic!("a frame that is not whole"),
            Taken::Frame(frame) => {
                let whole = (frame.seq.0, frame.body) == (next, &body(next, 1)[..]);
                assert!(whole, "a frame that is not whole");
                host.consume();
                next += 1;
            }
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_host_takes_whole_frames_across_the_wrap_from_a_guest_that_waits_for_room() {
    static FULL: AtomicBool = AtomicBool::new(false);
    check(|| frames(Weakness::None, &FULL));
    assert!(FULL.load(Ordering::Relaxed), "the ring was never full");
}

#[test]
#[should_panic(expected = "a frame that is not whole")]
fn a_head_that_is_stored_relaxed_is_caught() {
    static FULL: AtomicBool = AtomicBool::new(false);
    check(|| frames(Weakness::RelaxedStore(write::HEAD), &FULL));
}

#[test]
#[should_panic(expected = "a frame that is not whole")]
fn a_head_that_is_loaded_relaxed_is_caught() {
    static FULL: AtomicBool = AtomicBool::new(false);
    check(|| frames(Weakness::RelaxedLoad(write::HEAD), &FULL));
}

/// A host appends two records, which fill the ring, and exposes them; its guest reads them.
fn records(weakness: Weakness) {
    let read: Vec<_> =
        [stream_word(WRITER, read::EXPOSED_AT)].into_iter().chain(ring_words(RING_BYTES)).collect();
    let (mut host, mut guest) = files(&read, &[], (weakness, Weakness::None));
    let writer = loom::thread::spawn(move || {
        for seq in 1..=2 {
            let body = body(seq, 1);
            let (record, bytes) = record(seq, &body);
            host.append(&record, &bytes).unwrap();
            assert_ne!(host.expose(), News::default());
        }
        let body = body(3, 1);
        let (record, bytes) = record(3, &body);
        assert_eq!(host.append(&record, &bytes), Err(StreamFull(WRITER)));
    });
    let mut next = 1;
    while next <= 2 {
        match guest.next(WRITER) {
            Next::Nothing => loom::thread::yield_now(),
            Next::Reclaimed | Next::Damaged => panic!("a record that is not whole"),
            Next::Record(record) => {
                let whole = (record.stamp.seq.0, record.body) == (next, &body(next, 1)[..]);
                assert!(whole, "a record that is not whole");
                guest.advance(WRITER);
                next += 1;
            }
        }
    }
    assert!(matches!(guest.next(WRITER), Next::Nothing));
    writer.join().unwrap();
}

#[test]
fn a_guest_reads_whole_records_while_its_host_appends() {
    check(|| records(Weakness::None));
}

#[test]
#[should_panic(expected = "a record that is not whole")]
fn an_exposed_place_that_is_stored_relaxed_is_caught() {
    check(|| records(Weakness::RelaxedStore(stream_word(WRITER, read::EXPOSED_AT))));
}

/// A host overwrites the first record, which is stable, while its guest reads it. Notes in `lost`
/// and `got` which of the two was first.
fn reclaimed(weakness: Weakness, lost: &'static AtomicBool, got: &'static AtomicBool) {
    let state = [read::EXPOSED_AT, read::FIRST_AT].map(|which| stream_word(WRITER, which));
    let read: Vec<_> = state.into_iter().chain(ring_words(RING_BYTES)).collect();
    let (mut host, mut guest) = files(&read, &[], (weakness, Weakness::None));
    let append = |host: &mut HostRegisters<Words, Words>, seq| {
        let body = body(seq, 1);
        let (record, bytes) = record(seq, &body);
        host.append(&record, &bytes).unwrap();
        host.expose();
    };
    append(&mut host, 1);
    append(&mut host, 2);
    host.set_stable(&[2]);
    let writer = loom::thread::spawn(move || append(&mut host, 3));
    match guest.next(WRITER) {
        Next::Nothing => panic!("a record is hidden again"),
        Next::Damaged => panic!("a mixture of records"),
        Next::Reclaimed => lost.store(true, Ordering::Relaxed),
        Next::Record(record) => {
            let whole = (record.stamp.seq.0, record.body) == (1, &body(1, 1)[..]);
            assert!(whole, "a mixture of records");
            got.store(true, Ordering::Relaxed);
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_guest_gets_a_record_whole_or_is_told_while_its_host_overwrites_it() {
    static LOST: AtomicBool = AtomicBool::new(false);
    static GOT: AtomicBool = AtomicBool::new(false);
    check(|| reclaimed(Weakness::None, &LOST, &GOT));
    assert!(LOST.load(Ordering::Relaxed) && GOT.load(Ordering::Relaxed), "only one of the two");
}

#[test]
#[should_panic(expected = "a mixture of records")]
fn missing_fences_around_a_record_that_is_overwritten_are_caught() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    check(|| reclaimed(Weakness::NoFence, &SEEN, &SEEN));
}

/// A host tells of a drop; its guest sees the notice whole or not yet.
fn notice(weakness: Weakness) {
    let read = [read::DROPS, read::DROP_SEQ, read::DROP_REASON, read::DROP_ORDERS];
    let (mut host, mut guest) = files(&read, &[], (weakness, Weakness::None));
    let writer = loom::thread::spawn(move || {
        host.notify_drop(Seq(7), DropReason::OrderMac, &[1, 3]);
    });
    if let Some(notice) = guest.drop_notice() {
        assert_eq!((notice.drops, notice.seq), (1, Seq(7)), "half a notice");
        let why = (notice.reason, &notice.orders[..]);
        assert_eq!(why, (Some(DropReason::OrderMac), &[1, 3][..]), "half a notice");
    }
    writer.join().unwrap();
}

#[test]
fn a_guest_sees_a_drop_notice_whole() {
    check(|| notice(Weakness::None));
}

#[test]
#[should_panic(expected = "half a notice")]
fn a_drop_count_that_is_stored_relaxed_is_caught() {
    check(|| notice(Weakness::RelaxedStore(read::DROPS)));
}

/// A guest writes and rings if it must, while its host goes to sleep.
fn host_sleeps(weakness: Weakness) {
    let (mut host, mut guest) = files(&[read::HOST_NAP], &[write::HEAD], (weakness, weakness));
    let writer = loom::thread::spawn(move || {
        guest.write(Seq(1), &body(1, 1)).unwrap();
        guest.must_ring()
    });
    host.doze();
    let saw = host.has_frames();
    let rang = writer.join().unwrap();
    assert!(saw || rang, "a host sleeps over a frame");
}

#[test]
fn a_host_that_goes_to_sleep_sees_the_frame_or_is_rung() {
    check(|| host_sleeps(Weakness::None));
}

#[test]
#[should_panic(expected = "a host sleeps over a frame")]
fn a_missing_fence_before_a_host_sleeps_is_caught() {
    check(|| host_sleeps(Weakness::NoFence));
}

/// A host exposes a record and rings if it must, while its guest goes to sleep.
fn guest_sleeps(weakness: Weakness) {
    let exposed = stream_word(WRITER, read::EXPOSED_AT);
    let (mut host, mut guest) = files(&[exposed], &[write::GUEST_NAP], (weakness, weakness));
    let writer = loom::thread::spawn(move || {
        let body = body(1, 1);
        let (record, bytes) = record(1, &body);
        host.append(&record, &bytes).unwrap();
        host.expose();
        host.must_ring(News::ALL)
    });
    guest.doze(News::ALL);
    let saw = guest.has_news(News::ALL);
    let rang = writer.join().unwrap();
    assert!(saw || rang, "a guest sleeps over a record");
}

#[test]
fn a_guest_that_goes_to_sleep_sees_the_record_or_is_rung() {
    check(|| guest_sleeps(Weakness::None));
}

#[test]
#[should_panic(expected = "a guest sleeps over a record")]
fn a_missing_fence_before_a_guest_sleeps_is_caught() {
    check(|| guest_sleeps(Weakness::NoFence));
}
