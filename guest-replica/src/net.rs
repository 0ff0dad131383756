//! Sockets and epoll, as little of them as the loop needs.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use shared_registers::channel::NONCE_BYTES;
use shared_registers::ids::{Micros, ServerId};

use crate::limits::{EVENTS_PER_TURN, FORWARD_STALLED_MS, READ_BYTES_PER_TURN};

/// What an event is about. Tokens of accepted connections are never used twice, so an event that
/// outlives its connection means nothing.
pub(crate) type Token = u64;
/// The payload address.
pub(crate) const LISTENER: Token = 0;
/// The descriptor that ends the process.
pub(crate) const STOP: Token = 1;
/// The host agent's doorbell.
pub(crate) const BELL: Token = 2;
/// The store has something to say.
pub(crate) const STORE: Token = 3;
const PEERS: Token = 16;
/// The first token of an accepted connection.
pub(crate) const FIRST_CONNECTION: Token = 1024;

/// The token of the link that this guest dials to `peer`.
pub(crate) fn peer_token(peer: ServerId) -> Token {
    PEERS + u64::from(peer.0)
}

/// The peer whose token this is.
pub(crate) fn token_peer(token: Token) -> Option<ServerId> {
    let server = token.checked_sub(PEERS).filter(|_| token < FIRST_CONNECTION)?;
    Some(ServerId(server as u16))
}

/// Level-triggered epoll.
pub(crate) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Poll> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poll { epoll, events: vec![EpollEvent::empty(); EVENTS_PER_TURN] })
    }

    /// Starts to watch a descriptor. Closing it ends that.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token))?)
    }

    /// Watches for something else.
    pub(crate) fn change(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
    }

    /// Sleeps until something is ready or `at_most` has passed; a part of a millisecond counts as a
    /// whole one. Appends what is ready to `ready`.
    pub(crate) fn wait(
        &mut self,
        at_most: Micros,
        ready: &mut Vec<(Token, EpollFlags)>,
    ) -> io::Result<()> {
        let ms = u16::try_from(at_most.0.div_ceil(1000)).unwrap_or(u16::MAX);
        match self.epoll.wait(&mut self.events, EpollTimeout::from(ms)) {
            Ok(count) => ready.extend(self.events[..count].iter().map(|e| (e.data(), e.events()))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A TCP stream that gives no more than an allowance of bytes per turn, so that who sends without
/// end does not keep the loop from the others.
pub(crate) struct Socket {
    stream: TcpStream,
    allowance: Cell<usize>,
}

impl Socket {
    /// Makes the stream non-blocking.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // An end that vanished without a word does not hold its place for ever.
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        Ok(Socket { stream, allowance: Cell::new(0) })
    }

    /// Begins a turn.
    pub(crate) fn allow(&self) {
        self.allowance.set(READ_BYTES_PER_TURN);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        if left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = to.len().min(left);
        let count = self.stream.read(&mut to[..len])?;
        self.allowance.set(left - count);
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to connect, without waiting. Until it is done the socket neither reads nor writes; if it
/// fails, both fail.
pub(crate) fn dial(address: SocketAddr) -> io::Result<Socket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::TcpUserTimeout, &FORWARD_STALLED_MS)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Socket::new(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

/// Fresh random bytes for a handshake.
pub(crate) fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
