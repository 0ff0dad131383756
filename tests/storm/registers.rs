//! What the hosts' register files hold, read as their guests read it.
//!
//! Reading goes on while the hosts and guests run, are killed and come back: the files stay. So
//! nothing is missed although records are reclaimed, as long as this reader keeps up: a ring lasts
//! for seconds. What a host jumped over, because it was away meanwhile, it never had.

use std::fs::{self, File, OpenOptions};

use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::Counter;
use shared_registers::ids::ServerId;
use shared_registers::record::Record;
use shared_registers::words::{MappedReadOnly, MappedReadWrite};
use simulator::recorded::Bytes;

use crate::support::Cluster;

/// One host's copies of all streams.
pub(crate) struct Streams {
    host: ServerId,
    registers: GuestRegisters<MappedReadOnly, MappedReadWrite>,
    /// By writer; nothing in place of a record that the host jumped over.
    pub(crate) records: Vec<Vec<Bytes>>,
    /// Records jumped over.
    pub(crate) jumped: usize,
}

impl Streams {
    /// Attaches to a host's read file, and to a copy of its guest's write file: what a guest says
    /// there is not for us to say.
    pub(crate) fn attach(cluster: &Cluster, host: u16) -> Streams {
        let (paths, host) = (cluster.folder.paths(), ServerId(host));
        let copy = tempfile::NamedTempFile::new_in(cluster.folder.beside()).unwrap();
        fs::copy(paths.write_file(host), copy.path()).unwrap();
        let write = OpenOptions::new().read(true).write(true).open(copy.path()).unwrap();
        let write = MappedReadWrite::map(&write).unwrap();
        let read = MappedReadOnly::map(&File::open(paths.read_file(host)).unwrap()).unwrap();
        let geometry = cluster.description.geometry(host);
        let registers = GuestRegisters::attach(geometry, read, write).unwrap();
        let records = vec![Vec::new(); cluster.n()];
        Streams { host, registers, records, jumped: 0 }
    }

    pub(crate) fn attach_all(cluster: &Cluster) -> Vec<Streams> {
        cluster.ids().map(|host| Streams::attach(cluster, host)).collect()
    }

    /// Reads on, up to what the host has exposed.
    pub(crate) fn read(&mut self) {
        let mut bytes = Vec::new();
        for writer in ServerId::all(self.records.len()) {
            loop {
                match self.registers.next(writer) {
                    Next::Nothing => break,
                    Next::Record(record) => {
                        bytes.clear();
                        Record::encode(&record.stamp, record.body, &mut bytes);
                    }
                    Next::Reclaimed => {
                        self.jump(writer);
                        continue;
                    }
                    Next::Damaged => panic!(
                        "host {} shows its guest something else than a record after {} of stream \
                         {writer}",
                        self.host,
                        self.records[writer.index()].len()
                    ),
                }
                self.records[writer.index()].push(bytes.as_slice().into());
                self.registers.advance(writer);
            }
        }
    }

    /// The host has jumped over records of a stream (section 6).
    fn jump(&mut self, writer: ServerId) {
        let (first, records) = (self.registers.first(writer), &mut self.records[writer.index()]);
        assert!(
            writer != self.host && self.registers.counters()[Counter::Jumps as usize] > 0,
            "host {} reclaimed a record after {} of stream {writer} before this run could read it: \
             larger rings, or read more often",
            self.host,
            records.len()
        );
        self.jumped += first.0 as usize - records.len();
        records.resize(first.0 as usize, Bytes::default());
        // Should that be reclaimed already, we are told so again.
        let _ = self.registers.seek(writer, first);
    }

    /// How many checkpoints the host has found stable.
    pub(crate) fn checkpoints(&self) -> u64 {
        self.registers.counters()[Counter::Checkpoints as usize]
    }

    /// How many records the host has reclaimed.
    pub(crate) fn reclaimed(&self) -> u64 {
        ServerId::all(self.records.len()).map(|writer| self.registers.first(writer).0).sum()
    }

    /// How many records of each stream there are.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.records.iter().map(Vec::len).collect()
    }
}
