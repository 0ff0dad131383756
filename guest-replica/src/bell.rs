//! The way to the host agent's doorbell: its unix socket, or in a virtual machine the port of a
//! virtio console whose other end is that socket.
//!
//! Either is a stream of bytes that mean "look" and nothing else. A port can be opened though
//! nobody is at its other end, and says so only when asked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;
use shared_registers::bell;

use crate::limits::{RING_READS, RINGS_READ, RINGS_UNREAD};

/// A doorbell that is connected.
pub(crate) struct Bell {
    /// It does not block.
    pub(crate) stream: File,
    /// A port tells of a ring only once the one before was read. A socket tells of each.
    port: bool,
    rings: u64,
}

impl Bell {
    /// Connects to the doorbell at `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<Bell> {
        let port = fs::metadata(path)?.file_type().is_char_device();
        let stream = match port {
            true => open_port(path)?,
            false => File::from(OwnedFd::from(bell::connect(path)?)),
        };
        Ok(Bell { stream, port, rings: 0 })
    }

    /// For what to watch it.
    pub(crate) fn flags(&self) -> EpollFlags {
        match self.port {
            true => EpollFlags::EPOLLIN,
            false => EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
        }
    }

    /// A ring came, or what else `flags` say. Each means "look" and nothing else, so those of a
    /// socket are read only now and then, to make room for the next. Fails if the host is gone.
    pub(crate) fn heard(&mut self, flags: EpollFlags) -> io::Result<()> {
        self.rings += 1;
        let plain = !self.port && flags == EpollFlags::EPOLLIN;
        if plain && !self.rings.is_multiple_of(RINGS_UNREAD) { Ok(()) } else { self.drain() }
    }

    /// Reads the rings that came, as many as the socket can hold and no more. Fails if the host is
    /// gone.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        for _ in 0..RING_READS {
            match self.stream.read(&mut [0; RINGS_READ]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                // The end of a stream is told apart from its being empty by reading once more.
                Ok(_) if self.port => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn open_port(path: &Path) -> io::Result<File> {
    let port = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
    let mut asked = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let alone = asked[0].revents().is_none_or(|said| said.contains(PollFlags::POLLHUP));
    if alone { Err(ErrorKind::NotConnected.into()) } else { Ok(port) }
}
