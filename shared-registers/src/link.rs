//! A channel over a non-blocking stream socket: what both a host agent's and a guest's event loop
//! poll. It buffers at most [`LINK_SEND_BYTES`] and a frame; who sends more checks
//! [`Link::has_room`] first.

use std::io::{self, ErrorKind, Read, Write};

use crate::channel::{Channel, ChannelError, Event};
use crate::crypto::MacKey;
use crate::limits::{LINK_READ_BYTES, LINK_SEND_BYTES};

pub use crate::channel::Party;

/// Why a link is over.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed it.
    #[error("closed by the other end")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other end does not authenticate.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// A non-blocking byte stream that speaks [`Channel`].
pub struct Link<S> {
    socket: S,
    channel: Channel,
    out: Vec<u8>,
    sent: usize,
}

impl<S: Read + Write> Link<S> {
    /// Wraps a connected, non-blocking socket. `hello` is what [`Channel::dial`] wrote, if this end
    /// dialed.
    pub fn new(socket: S, channel: Channel, hello: Vec<u8>) -> Link<S> {
        Link { socket, channel, out: hello, sent: 0 }
    }

    /// The socket, to poll it.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The other end, once it has proved who it is.
    pub fn peer(&self) -> Option<Party> {
        self.channel.peer()
    }

    /// Reads what the socket has, up to [`LINK_READ_BYTES`], and hands each event to `each`.
    /// Returns how many bytes came. An error means that the link is to be dropped; events before it
    /// were handed over.
    pub fn read(
        &mut self,
        scratch: &mut [u8],
        keys: &dyn Fn(Party) -> Option<MacKey>,
        mut each: impl FnMut(Event<'_>),
    ) -> Result<usize, LinkError> {
        let mut total = 0;
        while total < LINK_READ_BYTES {
            let count = match self.socket.read(scratch) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            total += count;
            self.channel.receive(&scratch[..count]);
            while let Some(event) = self.channel.next(keys, &mut self.out)? {
                each(event);
            }
            if count < scratch.len() {
                break;
            }
        }
        Ok(total)
    }

    /// Whether a sender may add frames.
    pub fn has_room(&self) -> bool {
        self.out.len() - self.sent < LINK_SEND_BYTES
    }

    /// Whether bytes wait to be written.
    pub fn wants_write(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Queues a frame, whose bytes `write` appends to what it is given. Returns false, and queues
    /// nothing, if the channel is not open or the frame is over the limit.
    #[must_use]
    pub fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.channel.seal(&mut self.out, write)
    }

    /// Writes what is queued, as far as the socket takes it. Returns how many bytes went.
    pub fn flush(&mut self) -> Result<usize, LinkError> {
        let before = self.sent;
        while self.sent < self.out.len() {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let written = self.sent - before;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            // One large frame must not hold its memory for the link's whole life.
            self.out.shrink_to(LINK_SEND_BYTES);
        } else if self.sent > LINK_SEND_BYTES {
            self.out.drain(..std::mem::take(&mut self.sent));
        }
        Ok(written)
    }
}
