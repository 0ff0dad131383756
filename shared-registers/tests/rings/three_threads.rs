//! Shuttle: a guest that sleeps when there is no room or nothing to read, a host that sleeps when
//! there are no frames, and a second reader of the same read file, in thousands of random
//! schedules. A ring of the doorbell that is lost leaves somebody asleep, and shuttle finds nobody
//! able to run.

use std::sync::Arc;

use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::{HostRegisters, Taken};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{HEADER_BYTES, read, stream_word, write};
use shared_registers::words::News;
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::AtomicU64;
use shuttle::sync::mpsc::{Receiver, Sender, channel};

use crate::backing::{Modelled, Weakness};
use crate::{body, geometry, record};

const WRITER: ServerId = ServerId(0);
/// Frames that pass: twice as many as the write file has room for.
const FRAMES: u64 = 4;
const WRITE_RING_BYTES: u64 = 64;
const RING_BYTES: u64 = 256;
const SCHEDULES: usize = 3000;
const SEED: u64 = 7;

type Words = Arc<Modelled<AtomicU64>>;
type Guest = GuestRegisters<Words, Words>;

fn words(bytes: u64, header: &[usize], ring_bytes: u64) -> Words {
    let first = (HEADER_BYTES / 8) as usize;
    let ring = first..first + (ring_bytes / 8) as usize;
    Arc::new(Modelled::new(bytes, header.iter().copied().chain(ring), Weakness::None))
}

/// Reads what there is now; returns how many records were read so far.
fn read(guest: &mut Guest, mut count: u64) -> u64 {
    loop {
        match guest.next(WRITER) {
            Next::Nothing => return count,
            Next::Reclaimed | Next::Damaged => panic!("a record that is not whole"),
            Next::Record(record) => {
                count += 1;
                assert_eq!((record.stamp.seq.0, record.body), (count, &body(count, 1)[..]));
            }
        }
        guest.advance(WRITER);
    }
}

/// Writes a frame, asleep while there is no room for it.
fn write(guest: &mut Guest, seq: u64, ring: &Sender<()>, bell: &Receiver<()>) {
    while guest.write(Seq(seq), &body(seq, 1)).is_err() {
        guest.doze(News::ALL);
        if guest.write(Seq(seq), &body(seq, 1)).is_ok() {
            guest.wake();
            break;
        }
        bell.recv().expect("the host lives");
        guest.wake();
    }
    if guest.must_ring() {
        // A host that has all frames has gone; it needs no ring.
        let _ = ring.send(());
    }
}

fn guest(mut guest: Guest, ring: &Sender<()>, bell: &Receiver<()>) {
    for seq in 1..=FRAMES {
        write(&mut guest, seq, ring, bell);
    }
    let mut count = 0;
    while count < FRAMES {
        guest.doze(News::ALL);
        count = read(&mut guest, count);
        if count < FRAMES {
            bell.recv().expect("the host lives");
        }
        guest.wake();
    }
}

/// Takes all frames there are; returns how many were taken so far.
fn take(host: &mut HostRegisters<Words, Words>, mut count: u64) -> u64 {
    loop {
        let body = match host.take() {
            Taken::Nothing => return count,
            Taken::Garbage => panic!("a frame that is not whole"),
            Taken::Frame(frame) => {
                count += 1;
                assert_eq!(frame.seq.0, count);
                frame.body.to_vec()
            }
        };
        let (record, bytes) = record(count, &body);
        host.append(&record, &bytes).expect("a ring for all records");
        host.expose();
        host.consume();
    }
}

/// `looks_again`: what every sleeper must do after it has said that it sleeps.
fn host(
    mut host: HostRegisters<Words, Words>,
    ring: &Sender<()>,
    bell: &Receiver<()>,
    looks_again: bool,
) {
    let mut count = 0;
    loop {
        count = take(&mut host, count);
        if host.must_ring(News::ALL) {
            ring.send(()).expect("the guest lives until it has read all");
        }
        if count == FRAMES {
            return;
        }
        host.doze();
        if !(looks_again && host.has_frames()) {
            bell.recv().expect("the guest lives");
        }
        host.wake();
    }
}

fn story(looks_again: bool) {
    let geometry = geometry(RING_BYTES, WRITE_RING_BYTES);
    let shared = [read::CONSUMED, read::HOST_NAP, stream_word(WRITER, read::EXPOSED_AT)];
    let read_file = words(geometry.read_file_bytes(), &shared, RING_BYTES);
    let shared = [write::HEAD, write::GUEST_NAP];
    let write_file = words(geometry.write_file_bytes(), &shared, WRITE_RING_BYTES);
    let registers = HostRegisters::create(geometry, read_file.clone(), write_file.clone()).unwrap();
    let owner = GuestRegisters::attach(geometry, read_file.clone(), write_file).unwrap();
    let scratch = words(geometry.write_file_bytes(), &[], 0);
    let mut reader = GuestRegisters::attach(geometry, read_file, scratch).unwrap();
    let ((to_host, host_bell), (to_guest, guest_bell)) = (channel(), channel());

    let host = shuttle::thread::spawn(move || host(registers, &to_guest, &host_bell, looks_again));
    let reader = shuttle::thread::spawn(move || {
        let mut count = 0;
        while count < FRAMES {
            count = read(&mut reader, count);
            shuttle::thread::yield_now();
        }
    });
    guest(owner, &to_host, &guest_bell);
    host.join().unwrap();
    reader.join().unwrap();
}

fn check(looks_again: bool) {
    let scheduler = RandomScheduler::new_from_seed(SEED, SCHEDULES);
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(move || story(looks_again));
}

#[test]
fn a_guest_its_host_and_another_reader_come_to_the_end_together() {
    check(true);
}

#[test]
#[should_panic(expected = "max_steps")]
fn a_host_that_does_not_look_again_before_it_sleeps_is_caught() {
    check(false);
}
