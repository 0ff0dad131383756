//! The process around a [`Host`]: one thread that waits for its guest's bell, its peers' links and
//! its signals, and never for anything else.
//!
//! The order of a turn is the order of what others wait for: the guest is rung at once if it waits
//! for its own records, then its frames go out to the peers, then what came from peers is taken in,
//! and the guest is rung if it waits for any of that.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shared_registers::bell;
use shared_registers::cluster::{
    Cluster, ConfigError, HostKeys, Paths, Retired, RetiredServer, load_keys,
};
use shared_registers::crypto::MacKey;
use shared_registers::host_side::{ReopenError, StreamFull};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::waits_in_words;
use shared_registers::words::explain_bus_errors;

use crate::files;
use crate::host::{Host, HostConfig, Input, Now, PeerFault};
use crate::limits::{
    BELL_BYTES, BELL_READS, EVENTS_PER_TURN, FULL_LOG_MS, LINK_DEAD_HEARTBEATS, LINK_DEAD_MS,
    MAX_INCARNATION, RECOVERY_LOG_MS, RETIRED_LOOK_MS, RINGS_UNREAD,
};
use crate::net::{FIRST_TOKEN, Level, Log, MappedHost, Net, NetConfig};

/// Which host agent to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's folder.
    pub dir: PathBuf,
    /// The server.
    pub id: u16,
}

/// Why a host agent does not run. Each is one sentence: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// `cluster.toml` or the key file is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key file belongs to another cluster or server.
    #[error(
        "the key file {} does not fit cluster.toml: {why}; make both with `difato cluster init`",
        path.display()
    )]
    Keys {
        /// The key file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// Another agent has the registers.
    #[error(
        "another host agent of server {id} is running on {}; stop it first",
        folder.display()
    )]
    Running {
        /// Whose.
        id: ServerId,
        /// Where the registers are.
        folder: PathBuf,
    },
    /// A file or folder cannot be used.
    #[error("cannot use {}: {error}; mend that and start again", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A register file is another's.
    #[error(
        "the register file {} {why}; put back the cluster.toml that it was made with, or remove the \
         folder that it is in, and the host recovers it from the others",
        path.display()
    )]
    Registers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: ReopenError,
    },
    /// The server was retired, or goes on elsewhere (R6).
    #[error(
        "server {id} was retired, or goes on with other files: nobody listens to what is in {} any \
         more; to bring it back remove that folder and start it again",
        folder.display()
    )]
    Over {
        /// Which.
        id: ServerId,
        /// Where its registers are.
        folder: PathBuf,
    },
    /// The trusted address cannot be bound.
    #[error(
        "host agent {id} cannot listen on {address} (server {id}'s trusted address in {}): \
         {error}; choose another there",
        path.display()
    )]
    Listen {
        /// Whose.
        id: ServerId,
        /// The address.
        address: SocketAddr,
        /// `cluster.toml`.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A peer has more of the own stream than there is here: the own file was lost or replaced.
    #[error(
        "host {peer} holds {theirs} records of server {id}, and only {ours} are in {}: it is an \
         older copy; remove the folder that it is in, and the host recovers it from the others",
        path.display()
    )]
    Rollback {
        /// Who has more.
        peer: ServerId,
        /// Whose stream.
        id: ServerId,
        /// What the peer has.
        theirs: Seq,
        /// What is here.
        ours: Seq,
        /// The read file.
        path: PathBuf,
    },
    /// The system refuses what a process needs.
    #[error("host agent cannot go on: {what}: {error}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

impl AgentError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> AgentError + use<> {
        let path = path.to_owned();
        |error| AgentError::File { path, error }
    }

    pub(crate) fn registers(path: &Path, why: ReopenError) -> AgentError {
        AgentError::Registers { path: path.to_owned(), why }
    }
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> AgentError {
    move |error| AgentError::System { what, error: error.into() }
}

/// Runs the host agent of one server until SIGTERM or SIGINT. Both are blocked in the calling
/// thread: call this from a process's only thread, or before others are made.
///
/// # Errors
///
/// Every error is a sentence for whoever started it; a process exits with code 2 on it.
pub fn run(options: &Options, log: &mut dyn FnMut(Level, &str)) -> Result<(), AgentError> {
    let paths = Paths::new(&options.dir);
    let cluster = Cluster::load(&paths)?;
    let (me, addresses) = cluster.server(options.id)?;
    let (order_keys, links) = keys(&paths.host_keys(me), &cluster, me)?;
    let signals = signals()?;
    explain_bus_errors().map_err(system("SIGBUS"))?;

    let lock = files::lock(&paths, me)?;
    let net = listen(&paths, &cluster, me, links)?;
    files::make_folder(&paths.run())?;
    let bell = Bell::listen(&paths.bell(me), &net.epoll)?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS);
    net.epoll.add(&signals, event).map_err(system("epoll"))?;
    let opened = files::open(&paths, cluster.geometry(me), cluster.limits.durability)?;
    let (start, exchange) = (Instant::now(), Micros::from_ms(cluster.timing.exchange_ms));
    let host = Host::new(HostConfig { order_keys, exchange }, opened.registers, now(start));
    let held = host.registers().copied(me);
    log(
        Level::Info,
        &format!(
            "host agent {me} started: listens on {}, holds {held} records of its own stream",
            addresses.trusted,
        ),
    );
    if let Some(wrong) = opened.wrong {
        let path = paths.read_file(me);
        log(
            Level::Error,
            &format!(
                "host agent {me} recovers: {} {wrong}; it takes nothing of its guest until all other \
                 hosts have said where its stream ends",
                path.display()
            ),
        );
    }
    let mut agent = Agent {
        me,
        paths,
        host,
        net,
        bell,
        signals,
        start,
        exchange,
        spin: Micros(cluster.timing.spin_us),
        tick_at: Micros(0),
        full_logged: None,
        waits_logged: None,
        retired_at: Micros(0),
    };
    agent.serve(log)?;
    agent.close(&opened.read)?;
    drop(lock);
    log(Level::Info, &format!("host agent {me} stopped"));
    Ok(())
}

type Links = Vec<Option<MacKey>>;

/// This host's order keys by client, and its link keys by server.
fn keys(path: &Path, cluster: &Cluster, me: ServerId) -> Result<(Vec<MacKey>, Links), AgentError> {
    let keys: HostKeys = load_keys(path)?;
    let misfit = |why| AgentError::Keys { path: path.to_owned(), why };
    if keys.orders.len() != cluster.clients as usize {
        let count = keys.orders.len();
        return Err(misfit(format!("{count} order keys for {} clients", cluster.clients)));
    }
    let mut links = vec![None; cluster.n()];
    for link in &keys.links {
        match links.get_mut(usize::from(link.server)) {
            Some(entry) => *entry = Some(link.key.mac_key()),
            None => return Err(misfit(format!("a link key with unknown server {}", link.server))),
        }
    }
    links[me.index()] = None;
    let missing = ServerId::all(cluster.n()).find(|id| *id != me && links[id.index()].is_none());
    if let Some(id) = missing {
        return Err(misfit(format!("no link key with server {id}")));
    }
    Ok((keys.orders.iter().map(|key| key.mac_key()).collect(), links))
}

fn listen(paths: &Paths, cluster: &Cluster, me: ServerId, links: Links) -> Result<Net, AgentError> {
    let address = cluster.servers[me.index()].trusted;
    let dead = (cluster.timing.exchange_ms * LINK_DEAD_HEARTBEATS).max(LINK_DEAD_MS);
    let config = NetConfig {
        me,
        cluster: cluster.id(),
        // A RECORD frame is a byte and a record; LENGTHS and JUMP are shorter than that.
        max_frame: 1 + cluster.geometry(me).max_record_bytes(),
        dead: Micros::from_ms(dead),
        hosts: cluster.servers.iter().map(|server| server.trusted).zip(links).collect(),
    };
    let path = paths.cluster_toml();
    let failed = |error| AgentError::Listen { id: me, address, path, error };
    Net::listen(config, LISTENER).map_err(failed)
}

fn signals() -> Result<SignalFd, AgentError> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().map_err(system("blocking signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&mask, flags).map_err(system("signalfd"))
}

fn now(start: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = |time: Duration| Micros(time.as_micros() as u64);
    Now { wall: micros(wall), mono: micros(start.elapsed()) }
}

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const BELL_LISTENER: u64 = 2;
const BELL: u64 = 3;
const _: () = assert!(BELL < FIRST_TOKEN);

/// The doorbell: one guest at a time, the newest.
struct Bell {
    listener: UnixListener,
    guest: Option<UnixStream>,
    /// The host was told that there is one, and is told of another change from then on.
    attended: bool,
    quiet_until: Micros,
    rings: u64,
}

impl Bell {
    fn listen(path: &Path, epoll: &Epoll) -> Result<Bell, AgentError> {
        let listener = bell::listen(path).map_err(AgentError::file(path))?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, BELL_LISTENER);
        epoll.add(&listener, event).map_err(system("epoll"))?;
        Ok(Bell { listener, guest: None, attended: false, quiet_until: Micros(0), rings: 0 })
    }

    /// Takes a guest in, in place of the one before, and rings it: it may have slept for long.
    fn accept(&mut self, epoll: &Epoll) {
        let Ok((guest, _)) = self.listener.accept() else { return };
        // See `heard`.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL);
        if guest.set_nonblocking(true).is_ok() && epoll.add(&guest, event).is_ok() {
            self.guest = Some(guest);
            self.ring();
        }
    }

    fn ring(&mut self) {
        let rung = self.guest.as_mut().map(|guest| guest.write(&[1]));
        // A full socket has rings in it that are about to be heard.
        if rung.is_some_and(|rung| rung.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)) {
            self.guest = None;
        }
    }

    /// A ring means "look", and the loop looks anyway. Each is an event, read or not, so they are
    /// discarded only now and then, to leave room for the next.
    fn heard(&mut self, flags: EpollFlags) {
        self.rings += 1;
        if flags != EpollFlags::EPOLLIN || self.rings.is_multiple_of(RINGS_UNREAD) {
            self.drain();
        }
    }

    /// Reads as much as the socket can hold and no more: who writes without end is not read so.
    fn drain(&mut self) {
        for _ in 0..BELL_READS {
            match self.guest.as_mut().map(|guest| guest.read(&mut [0; BELL_BYTES])) {
                Some(Ok(1..)) => {}
                Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => return,
                _ => return self.guest = None,
            }
        }
    }
}

struct Agent {
    me: ServerId,
    paths: Paths,
    host: MappedHost,
    net: Net,
    bell: Bell,
    signals: SignalFd,
    start: Instant,
    exchange: Micros,
    /// How long it looks for work before it sleeps.
    spin: Micros,
    tick_at: Micros,
    /// When a full ring was logged last.
    full_logged: Option<Micros>,
    /// For whom it waits, if it recovers, and when that was logged.
    waits_logged: Option<(u64, Micros)>,
    /// When to look for retired servers.
    retired_at: Micros,
}

impl Agent {
    /// Turns until a signal comes.
    fn serve(&mut self, log: &mut Log<'_>) -> Result<(), AgentError> {
        let mut events = [EpollEvent::empty(); EVENTS_PER_TURN];
        let mut more = true;
        loop {
            let count = self.sleep(&mut events, more)?;
            let now = now(self.start);
            self.guest(now, log);
            // A guest that wants to be rung for its own records has one that makes a quorum whole.
            self.ring();
            more = self.net.pump(now, &mut self.host, log);
            for event in &events[..count] {
                match event.data() {
                    SIGNALS => {
                        if let Ok(Some(_)) = self.signals.read_signal() {
                            return Ok(());
                        }
                    }
                    LISTENER => self.net.accept(now.mono),
                    BELL_LISTENER => self.bell.accept(&self.net.epoll),
                    BELL => self.bell.heard(event.events()),
                    token => self.peer(token, now, log)?,
                }
            }
            self.look_at_bell(now);
            self.look_for_retired(now, log)?;
            self.log_recovery(now.mono, log);
            if now.mono >= self.tick_at {
                self.tick_at = now.mono.plus(self.exchange);
                self.bell.drain();
                self.host.step(now, Input::Tick).expect("only a frame can be at fault");
            }
            self.net.expire(now, &mut self.host, log);
            self.net.dial(now.mono);
            more |= self.net.pump(now, &mut self.host, log);
            self.ring();
        }
    }

    fn ring(&mut self) {
        if self.host.must_ring() {
            self.bell.ring();
        }
    }

    fn mono(&self) -> Micros {
        Micros(self.start.elapsed().as_micros() as u64)
    }

    /// Waits for events, unless there is work; returns how many there are.
    fn sleep(&mut self, events: &mut [EpollEvent], more: bool) -> Result<usize, AgentError> {
        let next = self.tick_at.min(self.net.next_deadline());
        let spin_until = self.mono().plus(self.spin).min(next);
        while !more && self.spin > Micros(0) && self.mono() < spin_until {
            let count = self.wait(events, EpollTimeout::ZERO)?;
            if count > 0 || self.host.has_frames() {
                return Ok(count);
            }
        }
        if !more {
            // The guest rings only those who say that they sleep: so look once more after that.
            self.host.registers_mut().doze();
        }
        let wait = next.since(self.mono()).0.div_ceil(1000);
        let wait = i32::try_from(wait).unwrap_or(i32::MAX);
        let wait = if more || self.host.has_frames() { 0 } else { wait };
        let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO);
        let count = self.wait(events, timeout)?;
        self.host.registers_mut().wake();
        Ok(count)
    }

    fn wait(&self, events: &mut [EpollEvent], at_most: EpollTimeout) -> Result<usize, AgentError> {
        match self.net.epoll.wait(events, at_most) {
            Ok(count) => Ok(count),
            Err(Errno::EINTR) => Ok(0),
            Err(error) => Err(system("epoll")(error)),
        }
    }

    fn guest(&mut self, now: Now, log: &mut Log<'_>) {
        if !self.host.has_frames() {
            return;
        }
        let turn = self.host.step(now, Input::Guest).expect("only a frame can be at fault");
        if let Some(full) = turn.full {
            self.log_full(full, log);
        }
    }

    /// R8: tells the host when its guest comes to its doorbell, and when it leaves.
    fn look_at_bell(&mut self, now: Now) {
        let here = self.bell.guest.is_some();
        // One that comes and goes all the time makes no more noise than the exchange.
        if here != self.bell.attended && now.mono >= self.bell.quiet_until {
            self.bell.attended = here;
            self.bell.quiet_until = now.mono.plus(self.exchange);
            self.host.step(now, Input::AtDoorbell(here)).expect("only a frame can be at fault");
        }
    }

    fn peer(&mut self, token: u64, now: Now, log: &mut Log<'_>) -> Result<(), AgentError> {
        match self.net.read(token, now, &mut self.host, log) {
            Ok(turn) => {
                if let Some(full) = turn.full {
                    self.log_full(full, log);
                }
                Ok(())
            }
            Err((peer, PeerFault::Rollback { theirs, ours })) => {
                let path = self.paths.read_file(self.me);
                Err(AgentError::Rollback { peer, id: self.me, theirs, ours, path })
            }
            Err((_, PeerFault::Over { .. })) => Err(self.over()),
            Err((_, PeerFault::Malformed(_))) => Ok(()),
        }
    }

    fn over(&self) -> AgentError {
        AgentError::Over { id: self.me, folder: self.paths.registers(self.me) }
    }

    /// R6: an operator may retire a server at any time.
    fn look_for_retired(&mut self, now: Now, log: &mut Log<'_>) -> Result<(), AgentError> {
        if now.mono < self.retired_at {
            return Ok(());
        }
        self.retired_at = now.mono.plus(Micros::from_ms(RETIRED_LOOK_MS));
        let list = match Retired::load(&self.paths) {
            Ok(list) => list.retired,
            Err(error) => {
                log(Level::Error, &error.to_string());
                return Ok(());
            }
        };
        let n = self.host.registers().geometry().n;
        for RetiredServer { id, below } in list.into_iter().filter(|r| usize::from(r.id) < n) {
            let id = ServerId(id);
            if below > MAX_INCARNATION || below <= self.host.registers().floor(id) {
                continue;
            }
            self.host.step(now, Input::Floor(id, below)).map_err(|_| self.over())?;
            log(Level::Info, &format!("server {id} is retired: nobody waits for it any more"));
        }
        Ok(())
    }

    /// R6: says for whom a host that recovers waits, and that it has recovered.
    fn log_recovery(&mut self, now: Micros, log: &mut Log<'_>) {
        let (me, waits) = (self.me, self.host.waits_for());
        let Some(hosts) = waits else {
            if self.waits_logged.take().is_some() {
                let held = self.host.registers().copied(me);
                let line = format!("host agent {me} has recovered: its stream has {held} records");
                log(Level::Info, &line);
            }
            return;
        };
        let often = Micros::from_ms(RECOVERY_LOG_MS);
        if self.waits_logged.is_some_and(|(said, at)| said == hosts && now.since(at) < often) {
            return;
        }
        self.waits_logged = Some((hosts, now));
        let whom = waits_in_words(hosts);
        log(Level::Info, &format!("host agent {me} recovers and waits for {whom}"));
    }

    /// R7: nothing else tells an operator why a server has come to a stand. It goes on by itself.
    fn log_full(&mut self, full: StreamFull, log: &mut Log<'_>) {
        let (StreamFull(writer), now) = (full, now(self.start).mono);
        if self.full_logged.is_some_and(|at| now.since(at) < Micros::from_ms(FULL_LOG_MS)) {
            return;
        }
        self.full_logged = Some(now);
        let what = if writer == self.me {
            format!("its guest's frames wait from record {} on", self.next(writer))
        } else {
            format!("it takes nothing of server {writer} from record {} on", self.next(writer))
        };
        log(
            Level::Info,
            &format!("host agent {}: {full}, and {what}, for the next checkpoint", self.me),
        );
    }

    fn next(&self, writer: ServerId) -> Seq {
        self.host.registers().copied(writer).next()
    }

    /// A clean stop. The doorbell's socket goes, so that nobody waits at it.
    fn close(&mut self, read_file: &File) -> Result<(), AgentError> {
        // It may be gone already; the next start removes it anyway.
        let _ = std::fs::remove_file(self.paths.bell(self.me));
        let path = self.paths.read_file(self.me);
        files::close(self.host.registers(), read_file).map_err(AgentError::file(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_fills_its_bell_is_read_for_so_long_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let listener = bell::listen(&folder.path().join("bell")).unwrap();
        let (guest, mut other) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        let (attended, quiet_until) = (true, Micros(0));
        let mut bell = Bell { listener, guest: Some(guest), attended, quiet_until, rings: 0 };
        let rings = other.write(&[1; 3 * BELL_READS * BELL_BYTES]).unwrap();
        assert!(rings > BELL_READS * BELL_BYTES, "the socket takes {rings} bytes");
        bell.drain();
        let left = bell.guest.as_mut().unwrap().read(&mut [0; 3 * BELL_READS * BELL_BYTES]);
        assert_eq!(left.unwrap(), rings - BELL_READS * BELL_BYTES);
        // Who has left is noticed once all that it wrote is read.
        drop(other);
        bell.drain();
        assert!(bell.guest.is_none());
    }
}
