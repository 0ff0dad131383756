//! What a read file tells of guests. Hosts alone write it, so it is true of what each guest wrote.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{ServerId, Term};
use shared_registers::layout::Geometry;
use shared_registers::record::{Body, Reason};
use shared_registers::words::{MappedReadOnly, VecWords};

/// A guest that has not written for so long, while others have, is away.
const AWAY: Duration = Duration::from_secs(2);
/// Terms of which votes to convict are kept: the newest.
const TERMS_HELD: usize = 16;
/// How often it is looked whether the file is still the same.
const SAME_FILE: Duration = Duration::from_secs(1);

/// Who convicts a sequencer, by term. Each CHANGE for `Dead` says that the term's sequencer proposed
/// what it must not; `f + 1` of them are one correct server's at least.
#[derive(Default)]
pub(crate) struct Convictions {
    terms: BTreeMap<Term, Vec<ServerId>>,
}

impl Convictions {
    /// `writer` left a term of which the guarded server was the sequencer. Returns whether `f + 1`
    /// have said so now, for the first time.
    fn add(&mut self, f: usize, writer: ServerId, term: Term) -> bool {
        let writers = self.terms.entry(term).or_default();
        if writers.contains(&writer) {
            return false;
        }
        writers.push(writer);
        let convicted = writers.len() == f + 1;
        while self.terms.len() > TERMS_HELD {
            self.terms.pop_first();
        }
        convicted
    }
}

/// Whose guests write nothing though others do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Away(Vec<ServerId>);

impl Away {
    pub(crate) fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|server| format!("guest {server}")).collect();
        f.write_str(if names.is_empty() { "nobody any more" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

/// Reads a server's read file, and remembers what it tells.
pub(crate) struct Watch {
    geometry: Geometry,
    f: usize,
    path: PathBuf,
    open: Option<Open>,
    looked: Option<Instant>,
    /// When each was last seen to write.
    wrote: Vec<Option<Instant>>,
    convictions: Convictions,
    convicted: Option<Term>,
}

struct Open {
    registers: GuestRegisters<MappedReadOnly, VecWords>,
    inode: u64,
}

impl Watch {
    pub(crate) fn new(geometry: Geometry, f: usize, path: PathBuf) -> Watch {
        Watch {
            wrote: vec![None; geometry.n],
            geometry,
            f,
            path,
            open: None,
            looked: None,
            convictions: Convictions::default(),
            convicted: None,
        }
    }

    /// Reads what is new.
    pub(crate) fn look(&mut self, now: Instant) {
        if self.looked.is_none_or(|at| now.duration_since(at) >= SAME_FILE) {
            self.looked = Some(now);
            let inode = std::fs::metadata(&self.path).map(|data| data.ino()).ok();
            if self.open.as_ref().map(|open| open.inode) != inode {
                self.open = self.open();
            }
        }
        for writer in ServerId::all(self.geometry.n) {
            self.read(writer, Some(now));
        }
    }

    /// Maps the file, if the host agent has made it, and passes over what was before: whoever begins
    /// to guard starts a clean guest.
    fn open(&mut self) -> Option<Open> {
        let file = File::open(&self.path).ok()?;
        let inode = file.metadata().ok()?.ino();
        let read = MappedReadOnly::map(&file).ok()?;
        self.geometry.check_read(&read).ok()?;
        // Reading takes no write file: this one is nobody's.
        let write = VecWords::new((self.geometry.write_file_bytes() / 8) as usize);
        let registers = GuestRegisters::attach(self.geometry, read, write).ok()?;
        self.open = Some(Open { registers, inode });
        for writer in ServerId::all(self.geometry.n) {
            self.read(writer, None);
        }
        self.open.take()
    }

    /// Reads a stream to its end. Without a time, what it reads is passed over.
    fn read(&mut self, writer: ServerId, now: Option<Instant>) {
        let n = self.geometry.n;
        while let Some(open) = &mut self.open {
            match open.registers.next(writer) {
                Next::Nothing => return,
                Next::Reclaimed => open.registers.rewind(writer),
                // The host recovers (R6): it is read again from its start.
                Next::Damaged => self.open = None,
                Next::Record(record) => {
                    let left = match Body::decode(record.body, n) {
                        Ok(Body::Change(change)) if change.reason == Reason::Dead => {
                            Some(change.term)
                        }
                        _ => None,
                    };
                    open.registers.advance(writer);
                    if let Some(now) = now {
                        self.wrote[writer.index()] = Some(now);
                        self.convict(writer, left);
                    }
                }
            }
        }
    }

    fn convict(&mut self, writer: ServerId, left: Option<Term>) {
        let me = self.geometry.server;
        let Some(term) = left.filter(|term| term.sequencer(self.geometry.n) == me) else { return };
        if self.convictions.add(self.f, writer, term) {
            self.convicted = Some(term);
        }
    }

    /// The term for which the own guest was convicted since the last call.
    pub(crate) fn convicted(&mut self) -> Option<Term> {
        self.convicted.take()
    }

    /// When a guest was last seen to write.
    pub(crate) fn wrote(&self, server: ServerId) -> Option<Instant> {
        self.wrote[server.index()]
    }

    /// Which other servers' guests write nothing though somebody has for [`AWAY`].
    pub(crate) fn away(&self) -> Away {
        let newest = self.wrote.iter().flatten().max();
        let away = |server: &ServerId| {
            let wrote = self.wrote[server.index()];
            let behind = newest.map(|at| wrote.map_or(AWAY, |own| at.duration_since(own)));
            *server != self.geometry.server && behind.is_some_and(|behind| behind >= AWAY)
        };
        Away(ServerId::all(self.geometry.n).filter(away).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_f_plus_1_others_to_convict_and_once_a_term() {
        let mut convictions = Convictions::default();
        let mut add = |writer, term| convictions.add(1, ServerId(writer), Term(term));
        assert!(!add(1, 3) && !add(1, 3), "one alone, however often");
        assert!(!add(2, 6), "another term");
        assert!(add(2, 3));
        assert!(!add(0, 3), "known already");
        assert!(!(100..200).any(|term| add(1, term)));
        assert!(convictions.terms.len() <= TERMS_HELD);
    }

    #[test]
    fn who_writes_nothing_though_others_do_is_away() {
        let limits = shared_registers::limits::RegisterLimits {
            max_payload_bytes: 64,
            ring_bytes: 1 << 16,
            write_ring_bytes: 1 << 16,
        };
        let cluster = shared_registers::crypto::ClusterId([1; 32]);
        let geometry = Geometry { n: 3, server: ServerId(1), cluster, limits };
        let mut watch = Watch::new(geometry, 1, PathBuf::from("/nonexistent"));
        assert!(watch.away().is_nobody(), "nobody has anything to write");
        let now = Instant::now();
        watch.wrote = vec![Some(now), None, Some(now + AWAY / 2)];
        assert!(watch.away().is_nobody(), "the guarded one does not count");
        watch.wrote[2] = Some(now + AWAY);
        assert_eq!(watch.away(), Away(vec![ServerId(0)]));
        assert_eq!(watch.away().to_string(), "guest 0");
        watch.wrote[0] = None;
        assert_eq!(watch.away(), Away(vec![ServerId(0)]));
    }
}
