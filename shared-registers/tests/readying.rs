//! Pages of a mapped ring are readied by writing zeros over them: never over anything that counts.

use std::fs::OpenOptions;
use std::path::Path;

use shared_registers::crypto::ClusterId;
use shared_registers::host_side::HostRegisters;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::Geometry;
use shared_registers::limits::RegisterLimits;
use shared_registers::record::{Record, Stamp};
use shared_registers::words::{MappedReadWrite, VecWords};

const RING: u64 = 1 << 18;
const WRITER: ServerId = ServerId(1);

fn geometry() -> Geometry {
    let limits =
        RegisterLimits { max_payload_bytes: 64, ring_bytes: RING, write_ring_bytes: 1 << 22 };
    Geometry { n: 3, server: ServerId(0), cluster: ClusterId([1; 32]), limits }
}

fn map(path: &Path) -> MappedReadWrite {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.unwrap();
    file.set_len(geometry().read_file_bytes()).unwrap();
    MappedReadWrite::map(&file).unwrap()
}

fn write_file() -> VecWords {
    VecWords::new((geometry().write_file_bytes() / 8) as usize)
}

type Registers = HostRegisters<MappedReadWrite, VecWords>;

/// Appends record `seq`, whose body has `len` bytes; false if there is no room.
fn append(registers: &mut Registers, seq: u64, len: usize) -> bool {
    let seen = Box::from([0, seq - 1, 0]);
    let stamp = Stamp { writer: WRITER, seq: Seq(seq), time: Micros(0), incarnation: 0, seen };
    let (body, mut bytes) = (vec![seq as u8; len], Vec::new());
    Record::encode(&stamp, &body, &mut bytes);
    registers.append(&Record { stamp, body: &body }, &bytes).is_ok()
}

fn assert_all_here(registers: &Registers, last: u64) {
    for seq in 1..=last {
        let mut bytes = Vec::new();
        assert!(registers.record(WRITER, Seq(seq), &mut bytes));
        let record = Record::decode(&bytes, 3).unwrap();
        assert!(record.body.iter().all(|byte| *byte == seq as u8), "record {seq}");
    }
}

#[test]
fn what_is_readied_is_never_what_was_appended_and_it_ends_with_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("read");
    let mut registers = HostRegisters::create(geometry(), map(&path), write_file()).unwrap();
    let mut last = 0;
    // Lengths that leave records across the edges of pages and of steps.
    while append(&mut registers, last + 1, 1000 + (last as usize * 377) % 3000) {
        last += 1;
        registers.prefault(last.is_multiple_of(3));
        assert_all_here(&registers, last);
        if last.is_multiple_of(10) {
            // Another life, which knows nothing of what was readied.
            drop(registers);
            registers = HostRegisters::reopen(geometry(), map(&path), write_file()).unwrap();
        }
    }
    assert!(last > 50);
    // A ring that is full to its last byte has nothing to ready, also for a host that starts anew.
    let gap = (1..5000).rev().step_by(8).find(|len| append(&mut registers, last + 1, *len));
    last += u64::from(gap.is_some());
    for _ in 0..2 {
        while registers.prefault(true) {}
        assert_all_here(&registers, last);
        registers = HostRegisters::reopen(geometry(), map(&path), write_file()).unwrap();
    }
}
