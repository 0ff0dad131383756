//! What a read file tells of guests. Hosts alone write it, so it is true of what each guest wrote.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared_registers::guest_side::Next;
use shared_registers::ids::{ServerId, Term};
use shared_registers::layout::{Geometry, LinkState, floor_from_word, floor_word, is_retired};
use shared_registers::record::{Body, Reason};
use shared_registers::words::{MappedReadOnly, Words};

use crate::registers::{self, Streams};
use crate::regular::open_regular;

/// Terms of which votes to convict are kept: the newest.
const TERMS_HELD: usize = 16;
/// How often it is looked whether there is a file, and the same one.
const SAME_FILE: Duration = Duration::from_millis(200);
/// Whoever was silent for so long when `f + 1` others wrote is not at work: those that are write within
/// moments of each other. One that is merely slow is waited for, no more.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

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

/// Whose guests are not seen at work.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Away(Vec<ServerId>);

impl Away {
    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|server| format!("guest {server}")).collect();
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
    registers: Streams,
    header: Arc<MappedReadOnly>,
    inode: u64,
}

impl Watch {
    /// Whoever begins to guard starts a clean guest: what is in the file by now is of earlier ones.
    pub(crate) fn new(geometry: Geometry, f: usize, path: PathBuf) -> Watch {
        let mut this = Watch {
            wrote: vec![None; geometry.n],
            geometry,
            f,
            path,
            open: None,
            looked: None,
            convictions: Convictions::default(),
            convicted: None,
        };
        this.look(Instant::now());
        this.convicted = None;
        this
    }

    /// Reads what is new.
    pub(crate) fn look(&mut self, now: Instant) {
        if self.looked.is_none_or(|at| now.duration_since(at) >= SAME_FILE) {
            self.looked = Some(now);
            let inode = std::fs::metadata(&self.path).map(|data| data.ino()).ok();
            if self.open.as_ref().map(|open| open.inode) != inode {
                self.open = self.open();
                // When all this was written nobody knows.
                ServerId::all(self.geometry.n).for_each(|writer| self.read(writer, None));
            }
        }
        ServerId::all(self.geometry.n).for_each(|writer| self.read(writer, Some(now)));
    }

    /// Maps the file, if the host agent has made it. It is read from its start: of a term that is
    /// known nobody is convicted again.
    fn open(&self) -> Option<Open> {
        let file = open_regular(&self.path).ok()?;
        let inode = file.metadata().ok()?.ino();
        let (registers, header) = registers::map(self.geometry, &file).ok()?;
        Some(Open { registers, header, inode })
    }

    /// Reads a stream to its end.
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
                    self.wrote[writer.index()] = now.or(self.wrote[writer.index()]);
                    self.convict(writer, left);
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

    /// Which other servers' guests are not seen at work: those that did not write since a moment, that
    /// others left behind, or whose host is not connected. One that is retired (R6) is none that others
    /// wait for.
    pub(crate) fn away(&self, since: Option<Instant>) -> Away {
        let at_work = |server: ServerId| {
            let wrote = self.wrote(server).filter(|at| since.is_some_and(|since| *at >= since));
            wrote.is_some_and(|at| !self.left_behind(at)) && !self.is_cut_off(server)
        };
        let away = |server: &ServerId| {
            *server != self.geometry.server && !at_work(*server) && !self.is_retired(*server)
        };
        Away(ServerId::all(self.geometry.n).filter(away).collect())
    }

    /// Whether `f + 1` wrote long after `at`, when a guest wrote last: so many order without it, and
    /// `f` compromised ones, of which the guarded one may be one, cannot make it look so.
    fn left_behind(&self, at: Instant) -> bool {
        let later = |other: &&Instant| **other > at + LEFT_BEHIND;
        self.wrote.iter().flatten().filter(later).count() > self.f
    }

    /// Whether the own host says that it is not connected to another (R8).
    fn is_cut_off(&self, server: ServerId) -> bool {
        let hint = self.open.as_ref().and_then(|open| open.registers.hints().nth(server.index()));
        hint.is_some_and(|hint| hint.state != LinkState::Up)
    }

    fn is_retired(&self, server: ServerId) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let floor = open.header.load(floor_word(server), Ordering::Acquire);
            floor_from_word(floor).is_some_and(is_retired)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use shared_registers::crypto::ClusterId;
    use shared_registers::host_side::HostRegisters;
    use shared_registers::ids::{Micros, Seq};
    use shared_registers::limits::RegisterLimits;
    use shared_registers::record::{Change, Record, Stamp};
    use shared_registers::words::{MappedReadWrite, VecWords};

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

    const ME: ServerId = ServerId(1);

    fn geometry() -> Geometry {
        let limits = RegisterLimits {
            max_payload_bytes: 64,
            ring_bytes: 1 << 16,
            write_ring_bytes: 1 << 16,
        };
        Geometry { n: 3, server: ME, cluster: ClusterId([1; 32]), limits }
    }

    /// What `writer` has written, to a new file if there is none: that it leaves term 1, whose
    /// sequencer is the guarded server, since it is dead.
    fn leaves(host: &mut Option<Host>, path: &Path, writer: ServerId) {
        let host = host.get_or_insert_with(|| {
            let mut how = OpenOptions::new();
            let file = how.read(true).write(true).create_new(true).open(path).unwrap();
            file.set_len(geometry().read_file_bytes()).unwrap();
            let write = VecWords::new((geometry().write_file_bytes() / 8) as usize);
            let read = MappedReadWrite::map(&file).unwrap();
            HostRegisters::create(geometry(), read, write).unwrap()
        });
        let (mut body, mut bytes) = (Vec::new(), Vec::new());
        Body::Change(Change { term: Term(1), reason: Reason::Dead }).encode(&mut body);
        let (time, seen) = (Micros(0), Box::from([0; 3]));
        let stamp = Stamp { writer, seq: Seq(1), time, incarnation: 0, seen };
        Record::encode(&stamp, &body, &mut bytes);
        host.append(&Record { stamp, body: &body }, &bytes).unwrap();
        host.expose();
    }

    type Host = HostRegisters<MappedReadWrite, VecWords>;

    #[test]
    fn nothing_is_missed_in_a_file_that_is_made_later_or_anew_and_nobody_is_convicted_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read");
        let mut watch = Watch::new(geometry(), 1, path.clone());
        let mut host = None;
        leaves(&mut host, &path, ServerId(0));
        leaves(&mut host, &path, ServerId(2));
        let later = |times| Instant::now() + SAME_FILE * times;
        watch.look(later(1));
        assert_eq!((watch.convicted(), watch.convicted()), (Some(Term(1)), None));
        assert_eq!(watch.away(Some(Instant::now())).count(), 2, "when is not known");
        // A host that has lost its file gets all of it again.
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        let mut host = None;
        leaves(&mut host, &path, ServerId(2));
        watch.look(later(2));
        leaves(&mut host, &path, ServerId(0));
        watch.look(later(2));
        assert!(watch.wrote(ServerId(0)).is_some() && watch.wrote(ServerId(2)).is_none());
        assert_eq!(watch.convicted(), None);
        // Whoever begins now starts a clean guest.
        let mut watch = Watch::new(geometry(), 1, path);
        watch.look(later(1));
        assert!(watch.convicted().is_none() && watch.wrote(ME).is_none());
    }

    #[test]
    fn whoever_was_not_seen_to_write_lately_is_away_however_much_others_write() {
        let mut watch = Watch::new(geometry(), 1, PathBuf::from("/nonexistent"));
        let now = Instant::now();
        let lately = now.checked_sub(SAME_FILE);
        assert_eq!(watch.away(lately).count(), 2, "nobody has written");
        watch.wrote = vec![Some(now), None, Some(now)];
        assert_eq!(watch.away(lately), Away(vec![]), "the guarded one does not count");
        assert_eq!(watch.away(Some(now + SAME_FILE)).to_string(), "guest 0, guest 2");
        watch.wrote[2] = None;
        assert_eq!(watch.away(lately), Away(vec![ServerId(2)]));
    }

    #[test]
    fn whoever_is_silent_while_f_plus_1_others_write_is_away_long_before_its_turn_is_over() {
        let mut watch = Watch::new(geometry(), 1, PathBuf::from("/nonexistent"));
        let then = Instant::now();
        let (since, later) = (Some(then), then + LEFT_BEHIND + SAME_FILE);
        let mut away = |wrote: [Instant; 3]| {
            watch.wrote = wrote.map(Some).to_vec();
            watch.away(since).0
        };
        assert_eq!(away([then; 3]), [], "nobody writes in an idle cluster");
        assert_eq!(away([then, later, later]), [ServerId(0)]);
        assert_eq!(away([later, later, then]), [ServerId(2)]);
        assert_eq!(away([then, later, then]), [], "the guarded one has no say alone, ...");
        assert_eq!(away([then, then, later]), [], "... nor has any other");
        assert_eq!(away([then, then + LEFT_BEHIND, later]), [], "it is slow");
        assert_eq!(away([later; 3]), [], "it is back");
    }

    #[test]
    fn whoevers_host_is_not_connected_is_away_also_in_an_idle_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read");
        let mut host = None;
        leaves(&mut host, &path, ServerId(0));
        let host = host.unwrap();
        let mut watch = Watch::new(geometry(), 1, path);
        let now = Instant::now();
        watch.wrote = vec![Some(now); 3];
        let mut away = |state: LinkState| {
            host.hint(ServerId(0), state, Micros(0));
            host.hint(ServerId(2), LinkState::Up, Micros(0));
            watch.look(now);
            watch.away(Some(now)).0
        };
        assert_eq!(away(LinkState::Never), [ServerId(0)]);
        assert_eq!(away(LinkState::Up), []);
        assert_eq!(away(LinkState::Lost), [ServerId(0)]);
    }

    #[test]
    fn what_is_no_file_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let (say, hear) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = say.send(Watch::new(geometry(), 1, path).open.is_none());
        });
        assert!(hear.recv_timeout(Duration::from_secs(20)).expect("it did not wait"));
    }
}
