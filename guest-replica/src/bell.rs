//! The way to the host agent's doorbell: its unix socket, or in a virtual machine the port of a
//! virtio console whose other end is that socket.
//!
//! Either is a stream of bytes that mean "look" and nothing else. A port can be opened though
//! nobody is at its other end, and says so only when asked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared_registers::bell;

/// Connects to the doorbell at `path`. What it returns does not block.
pub(crate) fn connect(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.file_type().is_char_device() {
        return open_port(path);
    }
    Ok(File::from(OwnedFd::from(bell::connect(path)?)))
}

fn open_port(path: &Path) -> io::Result<File> {
    let port = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path)?;
    let mut asked = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let alone = asked[0].revents().is_none_or(|said| said.contains(PollFlags::POLLHUP));
    if alone { Err(ErrorKind::NotConnected.into()) } else { Ok(port) }
}
