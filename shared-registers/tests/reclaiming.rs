//! Reclaiming and jumping, with a host that is killed at every one of their stores in turn.
//!
//! The words under the host stop to change at the n-th store, for every n: that is what a kill
//! leaves. Whatever it is, the host that starts again holds what was there before or what came
//! new, and every guest, wherever it had been reading, gets the records that were appended or is
//! told that they are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared_registers::crypto::ClusterId;
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{HostRegisters, StreamFull};
use shared_registers::ids::{Micros, Seq, ServerId, Term};
use shared_registers::layout::{Geometry, read, stream_word};
use shared_registers::limits::RegisterLimits;
use shared_registers::record::{Body, Change, Reason, Record, Stamp};
use shared_registers::words::{News, VecWords, Words, WordsMut};

const N: usize = 3;
const ME: ServerId = ServerId(0);
const OTHER: ServerId = ServerId(1);
/// Some eight records.
const RING: u64 = 1 << 10;

/// Words that do not change any more once so many stores were made.
#[derive(Clone)]
struct Mortal {
    words: Arc<VecWords>,
    left: Arc<AtomicU64>,
}

impl Words for Mortal {
    fn len(&self) -> usize {
        self.words.len()
    }
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words.load(index, order)
    }
}

impl WordsMut for Mortal {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            self.words.store(index, value, order);
        }
    }
}

type Host = HostRegisters<Mortal, Arc<VecWords>>;
type Guest = GuestRegisters<Arc<VecWords>, Arc<VecWords>>;

struct Files {
    read: Mortal,
    write: Arc<VecWords>,
}

fn geometry() -> Geometry {
    let limits =
        RegisterLimits { max_payload_bytes: 64, ring_bytes: RING, write_ring_bytes: 1 << 9 };
    Geometry { n: N, server: ME, cluster: ClusterId([1; 32]), limits }
}

fn words(bytes: u64) -> Arc<VecWords> {
    Arc::new(VecWords::new((bytes / 8) as usize))
}

impl Files {
    fn new() -> Files {
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let read = Mortal { words: words(geometry().read_file_bytes()), left };
        Files { read, write: words(geometry().write_file_bytes()) }
    }

    fn create(&self) -> Host {
        HostRegisters::create(geometry(), self.read.clone(), self.write.clone()).unwrap()
    }

    fn reopen(&self) -> Host {
        self.read.left.store(u64::MAX, Ordering::Relaxed);
        HostRegisters::reopen(geometry(), self.read.clone(), self.write.clone()).unwrap()
    }

    fn guest(&self) -> Guest {
        let scratch = words(geometry().write_file_bytes());
        GuestRegisters::attach(geometry(), self.read.words.clone(), scratch).unwrap()
    }
}

/// The body of record `seq`: a CHANGE now and then, else bytes that say which it is.
fn body(seq: u64) -> Vec<u8> {
    let mut out = Vec::new();
    match seq.is_multiple_of(5) {
        true => {
            let change = Change { term: Term(seq / 5), reason: Reason::Batch };
            Body::Change(change).encode(&mut out);
        }
        false => out.extend(seq.to_le_bytes().repeat(1 + (seq % 7) as usize)),
    }
    out
}

/// The term of the last CHANGE among the first `upto` records.
fn change(upto: u64) -> Option<Term> {
    (upto >= 5).then_some(Term(upto / 5))
}

fn append(host: &mut Host, writer: ServerId) -> Result<(), StreamFull> {
    let seq = host.copied(writer).0 + 1;
    let mut seen: Box<[u64]> = Box::from([0; N]);
    seen[writer.index()] = seq - 1;
    let stamp = Stamp { writer, seq: Seq(seq), time: Micros(0), incarnation: 0, seen };
    let (body, mut bytes) = (body(seq), Vec::new());
    Record::encode(&stamp, &body, &mut bytes);
    host.append(&Record { stamp, body: &body }, &bytes)
}

/// Appends and exposes records up to `last`, of which the first `stable` may be reclaimed.
fn fill(host: &mut Host, writer: ServerId, stable: u64, last: u64) {
    while host.copied(writer).0 < last {
        let mut cut = [0; N];
        cut[writer.index()] = stable;
        host.set_stable(&cut);
        append(host, writer).unwrap();
        host.expose();
    }
}

/// What counts of a stream.
fn state(host: &Host, writer: ServerId) -> (u64, u64, u64) {
    (host.first(writer).0, host.copied(writer).0, host.exposed(writer).0)
}

/// All records that are here are whole, and the CHANGEs are known.
fn assert_whole(host: &Host, writer: ServerId) {
    let (first, copied, exposed) = state(host, writer);
    for seq in first + 1..=copied {
        let mut bytes = Vec::new();
        assert!(host.record(writer, Seq(seq), &mut bytes));
        let record = Record::decode(&bytes, N).unwrap();
        assert_eq!((record.stamp.seq.0, record.body), (seq, &body(seq)[..]));
    }
    for upto in [first, exposed] {
        assert_eq!(host.last_change(writer, Seq(upto)), change(upto), "record {upto}");
    }
}

/// Reads what there is; checks it. Returns whether the guest was told that something is gone.
fn read(guest: &mut Guest, writer: ServerId, next: &mut u64) -> bool {
    loop {
        match guest.next(writer) {
            Next::Nothing => return false,
            Next::Reclaimed => return true,
            Next::Damaged => panic!("a record that is not whole"),
            Next::Record(record) => {
                assert_eq!((record.stamp.seq.0, record.body), (*next, &body(*next)[..]));
            }
        }
        guest.advance(writer);
        *next += 1;
    }
}

/// Does `act` to hosts as `prepare` leaves them, killed at every store in turn. Each time the host
/// that starts again is as before, or as after, or as `between` allows, and goes on from there.
fn killed_everywhere(
    prepare: impl Fn(&mut Host),
    act: impl Fn(&mut Host),
    between: impl Fn((u64, u64, u64)) -> bool,
) {
    for stores in 0.. {
        let files = Files::new();
        let mut host = files.create();
        prepare(&mut host);
        let before = state(&host, OTHER);
        // One guest that read nothing, one for every record that may be read next, one at the end.
        let mut guests: Vec<_> = (0..=before.2)
            .map(|read| {
                let mut guest = files.guest();
                let _ = guest.seek(OTHER, Seq(read));
                (guest, read + 1)
            })
            .collect();
        files.read.left.store(stores, Ordering::Relaxed);
        act(&mut host);
        let after = state(&host, OTHER);
        let survived = files.read.left.load(Ordering::Relaxed) > 0;
        drop(host);
        // What is left must be right for guests before the host is back, and after.
        for (guest, next) in &mut guests {
            let lost = read(guest, OTHER, next);
            assert!(!lost || *next <= after.0, "record {next} is here");
        }
        // Also for one that begins only now, with record 1 or with whichever is the first.
        let mut late = files.guest();
        let lost = read(&mut late, OTHER, &mut 1);
        assert!(!lost || late.first(OTHER).0 > 0, "record 1 is here");
        late.rewind(OTHER);
        if let Next::Damaged = late.next(OTHER) {
            panic!("no record is damaged");
        }
        let mut host = files.reopen();
        let found = state(&host, OTHER);
        let known = found == before || found == after || between(found);
        assert!(known, "{stores} stores: {before:?}, {after:?}, and found {found:?}");
        assert_whole(&host, OTHER);
        host.expose();
        fill(&mut host, OTHER, u64::MAX, found.1 + 20);
        assert_whole(&host, OTHER);
        for (guest, next) in &mut guests {
            assert!(read(guest, OTHER, next), "record {next} is long gone");
            guest.rewind(OTHER);
            *next = host.first(OTHER).0 + 1;
            assert!(!read(guest, OTHER, next));
            assert_eq!(*next, host.exposed(OTHER).0 + 1);
        }
        if survived {
            return;
        }
    }
}

#[test]
fn a_host_killed_while_it_reclaims_goes_on() {
    for last in 8..60 {
        let prepare = |host: &mut Host| fill(host, OTHER, last - 2, last);
        let act = |host: &mut Host| {
            append(host, OTHER).unwrap();
            host.expose();
        };
        // Reclaimed and not appended, or appended and not exposed; the latter it does itself.
        let between = |(first, copied, exposed): (u64, u64, u64)| {
            first + 2 <= last && copied.max(exposed) <= last + 1 && exposed >= last
        };
        killed_everywhere(prepare, act, between);
    }
}

#[test]
fn a_host_killed_while_it_jumps_has_jumped_or_not() {
    for last in (0..40_u64).step_by(3) {
        for exposed in [last, last.saturating_sub(2)] {
            let prepare = |host: &mut Host| {
                fill(host, OTHER, exposed, exposed);
                while host.copied(OTHER).0 < last {
                    append(host, OTHER).unwrap(); // and not exposed
                }
            };
            let act = |host: &mut Host| {
                assert!(host.jump(&[0, 57, 0], &[None, change(57), None]));
            };
            killed_everywhere(prepare, act, |_| false);
        }
    }
}

/// R1 goes by the last CHANGE that is reclaimed, for which no record vouches any more.
#[test]
fn a_bit_that_is_flipped_in_the_last_change_is_found() {
    let files = Files::new();
    let mut host = files.create();
    fill(&mut host, OTHER, u64::MAX, 40);
    assert!(host.first(OTHER).0 > 0);
    drop(host);
    let at = stream_word(OTHER, read::CHANGED);
    let right = files.read.load(at, Ordering::Relaxed);
    assert_ne!(right, 0);
    let reopen = || HostRegisters::reopen(geometry(), files.read.clone(), files.write.clone());
    for bit in 0..64 {
        files.read.store(at, right ^ 1 << bit, Ordering::Relaxed);
        assert!(reopen().is_err(), "bit {bit}");
    }
    files.read.store(at, right, Ordering::Relaxed);
    assert_whole(&reopen().unwrap(), OTHER);
}

#[test]
fn a_jump_leaves_what_is_so_far_and_the_own_stream() {
    let files = Files::new();
    let mut host = files.create();
    fill(&mut host, ME, 0, 3);
    fill(&mut host, OTHER, 0, 6);
    assert!(host.jump(&[9, 5, 7], &[Some(Term(90)), Some(Term(90)), Some(Term(8))]));
    assert_eq!(state(&host, ME), (0, 3, 3));
    assert_eq!(state(&host, OTHER), (0, 6, 6));
    assert_eq!(state(&host, ServerId(2)), (7, 7, 7));
    assert_whole(&host, OTHER);
    assert_eq!(host.last_change(ServerId(2), Seq(7)), Some(Term(8)));
    assert!(!host.jump(&[9, 5, 7], &[Some(Term(90)); 3]));
    // It is at the end of its ring's life before; the next record follows.
    let mut guest = files.guest();
    assert!(matches!(guest.next(ServerId(2)), Next::Reclaimed));
    guest.seek(ServerId(2), Seq(7)).unwrap();
    assert!(matches!(guest.next(ServerId(2)), Next::Nothing));
    append(&mut host, ServerId(2)).unwrap();
    host.expose();
    assert!(!read(&mut guest, ServerId(2), &mut 8));
}

#[test]
fn a_guest_at_the_end_of_a_stream_is_told_of_a_jump_and_is_not_kept_awake_by_it() {
    let files = Files::new();
    let mut host = files.create();
    fill(&mut host, OTHER, 0, 3);
    let (mut guest, mut next) = (files.guest(), 1);
    assert!(!read(&mut guest, OTHER, &mut next) && !guest.has_news(News::ALL));
    host.jump(&[0, 9, 0], &[None, change(9), None]);
    assert!(guest.has_news(News::ALL), "nothing comes after it, and yet the guest lacks records");
    assert!(read(&mut guest, OTHER, &mut next) && !guest.has_news(News::ALL));
    assert_eq!(guest.first(OTHER), Seq(9));
    // It may start behind what is exposed so far: what its snapshot covers is passed over.
    assert!(guest.seek(OTHER, Seq(8)).is_err());
    assert_eq!(guest.seek(OTHER, Seq(11)), Ok(()));
    next = 12;
    assert!(!read(&mut guest, OTHER, &mut next) && !guest.has_news(News::ALL));
    fill(&mut host, OTHER, 0, 14);
    assert!(!read(&mut guest, OTHER, &mut next));
    assert_eq!(next, 15);
}

#[test]
fn nothing_is_reclaimed_before_it_must_be_nor_past_the_stable_cut() {
    let files = Files::new();
    let mut host = files.create();
    let guest = files.guest();
    let full = |host: &mut Host| {
        while append(host, OTHER).is_ok() {
            host.expose();
        }
        host.copied(OTHER).0
    };
    let last = full(&mut host);
    assert!(last > 5);
    assert_eq!(append(&mut host, OTHER), Err(StreamFull(OTHER)));
    // Ahead of what is exposed, or behind what was stable: neither counts.
    host.set_stable(&[0, 3, 0]);
    host.set_stable(&[0, 2, u64::MAX]);
    assert_eq!(
        (host.first(OTHER), guest.stable(OTHER), guest.stable(ME)),
        (Seq(0), Seq(3), Seq(0))
    );
    append(&mut host, OTHER).unwrap();
    let first = host.first(OTHER).0;
    assert!((1..=3).contains(&first), "{first} for the room of one");
    assert!(full(&mut host) > last && host.first(OTHER).0 <= 3);
    let room = guest.room(OTHER);
    assert!(room < 200, "{room} bytes in a full window");
    host.set_stable(&[0, u64::MAX, 0]);
    assert_eq!(guest.room(OTHER), RING);
    // A host that starts again knows of nothing stable before it is told.
    let mut host = files.reopen();
    let first = host.first(OTHER);
    full(&mut host);
    assert_eq!(host.first(OTHER), first);
}
