//! The trusted network: one authenticated link to every other host.
//!
//! Of two hosts the one with the higher id dials. A connection is a stranger's until its handshake
//! is done; strangers are few and have little time. Nothing here blocks: a connection that is
//! being made is a link whose socket does not take bytes yet.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use shared_registers::channel::{Channel, Event, NONCE_BYTES};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::host_side::Counter;
use shared_registers::ids::{Micros, ServerId};
use shared_registers::link::{Link, LinkError, Party};
use shared_registers::words::{MappedReadOnly, MappedReadWrite};

use crate::host::{Host, Input, Now, PeerFault, Turn};
use crate::limits::{
    HANDSHAKE_MS, MAX_ACCEPTS_PER_TURN, MAX_STRANGERS, READ_BYTES, REDIAL_MAX_MS, REDIAL_MIN_MS,
    REFUSAL_LOG_MS,
};

/// The host over mapped files.
pub(crate) type MappedHost = Host<MappedReadWrite, MappedReadOnly>;
/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It tells what happens.
    Info,
    /// Whoever operates this must do something.
    Error,
}

/// Where log lines go.
pub(crate) type Log<'a> = dyn FnMut(Level, &str) + 'a;

/// Connections' tokens in the event loop begin here.
pub(crate) const FIRST_TOKEN: u64 = 16;

/// What a network is made of.
pub(crate) struct NetConfig {
    pub(crate) me: ServerId,
    pub(crate) cluster: ClusterId,
    /// The longest frame.
    pub(crate) max_frame: usize,
    /// A link that is silent for so long is dead.
    pub(crate) dead: Micros,
    /// Per server: where its host listens, and the link key with it (none with oneself).
    pub(crate) hosts: Vec<(SocketAddr, Option<MacKey>)>,
}

/// A connection.
struct Conn {
    link: Link<TcpStream>,
    /// The other end, once it has proved who it is.
    peer: Option<ServerId>,
    /// Whom this host dialed.
    dialed: Option<ServerId>,
    /// Without a handshake, or anything heard, until then, it is closed.
    deadline: Micros,
    /// Whether the event loop waits for room in the socket.
    writing: bool,
}

/// What is known of another host.
#[derive(Clone)]
struct Remote {
    /// The connection that is its link.
    up: Option<u64>,
    /// Whether there is a connection that this host dialed.
    dialed: bool,
    redial_at: Micros,
    backoff: Micros,
}

/// Refusals are logged now and then only: who makes them makes many.
#[derive(Default)]
struct Refusals {
    logged: Option<Micros>,
    unlogged: u64,
}

/// All connections on the trusted network.
pub(crate) struct Net {
    config: NetConfig,
    pub(crate) epoll: Epoll,
    listener: TcpListener,
    remotes: Vec<Remote>,
    conns: BTreeMap<u64, Conn>,
    next_token: u64,
    refusals: Refusals,
    scratch: Vec<u8>,
    frame: Vec<u8>,
}

impl Net {
    /// Listens on the own trusted address, and on nothing else. Event `token` says that somebody
    /// connects.
    pub(crate) fn listen(config: NetConfig, token: u64) -> io::Result<Net> {
        let (address, _) = config.hosts[config.me.index()];
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        let backoff = Micros::from_ms(REDIAL_MIN_MS);
        let remote = Remote { up: None, dialed: false, redial_at: Micros(0), backoff };
        Ok(Net {
            remotes: vec![remote; config.hosts.len()],
            config,
            epoll,
            listener,
            conns: BTreeMap::new(),
            next_token: FIRST_TOKEN,
            refusals: Refusals::default(),
            scratch: vec![0; READ_BYTES],
            frame: Vec::new(),
        })
    }

    /// When something is to be done though nothing happens.
    pub(crate) fn next_deadline(&self) -> Micros {
        let deadlines = self.conns.values().map(|conn| conn.deadline);
        let dials = self.undialed().map(|to| self.remotes[to.index()].redial_at);
        deadlines.chain(dials).min().unwrap_or(Micros(u64::MAX))
    }

    /// The hosts that this one dials and has not.
    fn undialed(&self) -> impl Iterator<Item = ServerId> + '_ {
        ServerId::all(self.config.me.index()).filter(|to| !self.remotes[to.index()].dialed)
    }

    /// Dials who is due.
    pub(crate) fn dial(&mut self, now: Micros) {
        let due = |to: &ServerId| self.remotes[to.index()].redial_at <= now;
        for to in self.undialed().filter(due).collect::<Vec<_>>() {
            self.remotes[to.index()].dialed = true;
            if self.dial_one(to, now).is_err() {
                self.redial(to, now);
            }
        }
    }

    fn dial_one(&mut self, to: ServerId, now: Micros) -> io::Result<()> {
        let (address, key) = &self.config.hosts[to.index()];
        let key = key.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (from, _) = self.config.hosts[self.config.me.index()];
        let socket = connect(SocketAddr::new(from.ip(), 0), *address)?;
        let parties = (Party::Host(self.config.me), Party::Host(to));
        let (mut hello, nonce) = (Vec::new(), nonce()?);
        let NetConfig { cluster, max_frame, .. } = self.config;
        let channel = Channel::dial(parties, key, cluster, nonce, max_frame, &mut hello);
        self.add(Link::new(socket, channel, hello), Some(to), now)
    }

    /// A dialed connection came to nothing, or is over: wait a little, and longer each time.
    fn redial(&mut self, to: ServerId, now: Micros) {
        let remote = &mut self.remotes[to.index()];
        remote.dialed = false;
        remote.redial_at = now.plus(remote.backoff);
        remote.backoff = Micros(remote.backoff.0 * 2).min(Micros::from_ms(REDIAL_MAX_MS));
    }

    /// Takes in who connects, as strangers.
    pub(crate) fn accept(&mut self, now: Micros) {
        for _ in 0..MAX_ACCEPTS_PER_TURN {
            // Nobody waits, or the system is short of something: the event comes again.
            let Ok((socket, _)) = self.listener.accept() else { return };
            let mut strangers = self.conns.iter().filter(|(_, conn)| conn.is_stranger());
            let oldest = strangers.next().map(|(token, _)| *token);
            if let Some(oldest) = oldest.filter(|_| strangers.count() + 1 >= MAX_STRANGERS) {
                self.conns.remove(&oldest);
            }
            let NetConfig { me, cluster, max_frame, .. } = self.config;
            let Ok(nonce) = nonce() else { return };
            let channel = Channel::accept(Party::Host(me), cluster, nonce, max_frame);
            if socket.set_nonblocking(true).is_ok() {
                // A connection that cannot be watched is closed by being dropped.
                let _ = self.add(Link::new(socket, channel, Vec::new()), None, now);
            }
        }
    }

    fn add(
        &mut self,
        link: Link<TcpStream>,
        dialed: Option<ServerId>,
        now: Micros,
    ) -> io::Result<()> {
        link.socket().set_nodelay(true)?;
        let token = self.next_token;
        self.next_token += 1;
        self.epoll.add(link.socket(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        let deadline = now.plus(Micros::from_ms(HANDSHAKE_MS));
        let conn = Conn { link, peer: None, dialed, deadline, writing: false };
        self.conns.insert(token, conn);
        Ok(())
    }

    /// Reads what came on a connection and hands it to the host. Returns what the host wants told.
    /// Fails only if the host must stop.
    pub(crate) fn read(
        &mut self,
        token: u64,
        now: Now,
        host: &mut MappedHost,
        log: &mut Log<'_>,
    ) -> Result<Turn, (ServerId, PeerFault)> {
        // An event of a connection that an earlier event closed.
        let Some(conn) = self.conns.get_mut(&token) else { return Ok(Turn::default()) };
        let keys = |party| match party {
            Party::Host(id) if id > self.config.me => self.config.hosts.get(id.index())?.1.clone(),
            _ => None,
        };
        let (mut peer, mut turn, mut fault) = (conn.peer, Turn::default(), None);
        let read = conn.link.read(&mut self.scratch, &keys, |event| {
            let input = match (event, peer) {
                (Event::Established(Party::Host(id)), _) => {
                    peer = Some(id);
                    Input::PeerUp(id)
                }
                (Event::Frame(bytes), Some(id)) if fault.is_none() => Input::PeerFrame(id, bytes),
                _ => return,
            };
            match host.step(now, input) {
                Ok(new) => turn.full = turn.full.or(new.full),
                Err(error) => fault = Some(error),
            }
        });
        let received = read.as_ref().map_or(0, |bytes| *bytes as u64);
        host.registers().count(Counter::LinkBytesReceived, received);
        if let (None, Some(id)) = (conn.peer, peer) {
            conn.peer = Some(id);
            let remote = &mut self.remotes[id.index()];
            remote.backoff = Micros::from_ms(REDIAL_MIN_MS);
            // The newer connection is the link; the host knows it as such already.
            if let Some(older) = remote.up.replace(token) {
                self.conns.remove(&older);
            }
            log(Level::Info, &format!("link to host {id} up"));
        }
        match (fault, read, peer) {
            (Some(fault @ (PeerFault::Rollback { .. } | PeerFault::Over { .. })), _, Some(id)) => {
                return Err((id, fault));
            }
            (Some(fault), ..) => {
                self.refused(token, &fault.to_string(), now, log);
                self.close(token, &fault.to_string(), now, host, log);
            }
            (None, Err(error), _) => {
                if let LinkError::Channel(_) = error {
                    host.registers().count(Counter::LinkRefused, 1);
                    self.refused(token, &error.to_string(), now, log);
                }
                self.close(token, &error.to_string(), now, host, log);
            }
            (None, Ok(_), peer) => self.extend(token, peer, now.mono),
        }
        Ok(turn)
    }

    /// A link on which something came lives on.
    fn extend(&mut self, token: u64, peer: Option<ServerId>, now: Micros) {
        if let (Some(conn), Some(_)) = (self.conns.get_mut(&token), peer) {
            conn.deadline = now.plus(self.config.dead);
        }
    }

    /// Sends what the host owes its peers, as far as links and sockets have room. Returns whether
    /// there may be more for a socket that has room.
    pub(crate) fn pump(&mut self, now: Now, host: &mut MappedHost, log: &mut Log<'_>) -> bool {
        let (mut more, mut over) = (false, Vec::new());
        for (token, conn) in &mut self.conns {
            let mut sent = true;
            while let Some(peer) = conn.peer.filter(|_| sent && conn.link.has_room()) {
                if !host.next_frame(peer, &mut self.frame) {
                    break;
                }
                sent = conn.link.send(|out| out.extend_from_slice(&self.frame));
            }
            let filled = !conn.link.has_room();
            match conn.link.flush() {
                Ok(bytes) if sent => {
                    host.registers().count(Counter::LinkBytesSent, bytes as u64);
                }
                Ok(_) => over.push((*token, "a frame was too long for it".to_owned())),
                Err(error) => over.push((*token, error.to_string())),
            }
            more |= filled && conn.link.has_room();
            if conn.writing != conn.link.wants_write() {
                conn.writing = !conn.writing;
                let out = if conn.writing { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN | out, *token);
                if let Err(error) = self.epoll.modify(conn.link.socket(), &mut event) {
                    over.push((*token, error.to_string()));
                }
            }
        }
        for (token, why) in over {
            self.close(token, &why, now, host, log);
        }
        more
    }

    /// Closes what is past its deadline.
    pub(crate) fn expire(&mut self, now: Now, host: &mut MappedHost, log: &mut Log<'_>) {
        let due = |(token, conn): (&u64, &Conn)| (conn.deadline <= now.mono).then_some(*token);
        for token in self.conns.iter().filter_map(due).collect::<Vec<_>>() {
            if self.conns[&token].is_stranger() {
                host.registers().count(Counter::LinkRefused, 1);
                self.refused(token, "did not say in time who it is", now, log);
            }
            self.close(token, "nothing came for too long", now, host, log);
        }
    }

    fn close(&mut self, token: u64, why: &str, now: Now, host: &mut MappedHost, log: &mut Log<'_>) {
        let Some(conn) = self.conns.remove(&token) else { return };
        if let Some(peer) = conn.peer {
            self.remotes[peer.index()].up = None;
            host.step(now, Input::PeerDown(peer)).expect("only a frame can be at fault");
            log(Level::Info, &format!("link to host {peer} down: {why}"));
        }
        if let Some(to) = conn.dialed {
            self.redial(to, now.mono);
        }
    }

    /// Logs a refusal, unless one was logged just now.
    fn refused(&mut self, token: u64, why: &str, now: Now, log: &mut Log<'_>) {
        let Refusals { logged, unlogged } = &mut self.refusals;
        if logged.is_some_and(|at| now.mono.since(at) < Micros::from_ms(REFUSAL_LOG_MS)) {
            *unlogged += 1;
            return;
        }
        let from = self.conns.get(&token).and_then(|conn| conn.link.socket().peer_addr().ok());
        let from = from.map_or("somebody".to_owned(), |address| address.to_string());
        let others = match std::mem::take(unlogged) {
            0 => String::new(),
            count => format!(" ({count} more since the last such line)"),
        };
        *logged = Some(now.mono);
        log(Level::Info, &format!("refused {from} on the trusted network: {why}{others}"));
    }
}

impl Conn {
    fn is_stranger(&self) -> bool {
        self.peer.is_none() && self.dialed.is_none()
    }
}

/// Begins to connect, without waiting for it.
fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    // Even as a caller a host is on its trusted address only.
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
