//! A socket that sends and receives whole frames of one network device.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The largest frame that is looked at whole.
const FRAME_BYTES: usize = 2048;

pub(crate) struct Socket {
    socket: OwnedFd,
    /// The device's own address.
    pub(crate) mac: [u8; 6],
}

impl Socket {
    pub(crate) fn open(device: &str) -> Result<Socket> {
        let link = link_address(device)?;
        let mac = link.addr().with_context(|| format!("{device} has no address"))?;
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)?;
        bind(socket.as_raw_fd(), &link)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
        Ok(Socket { socket, mac })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// The next frame, if one comes soon; those that this machine sends come too.
    pub(crate) fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; FRAME_BYTES];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) => {
                frame.truncate(len);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn link_address(device: &str) -> Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|one| one.interface_name == device);
    all.find_map(|one| one.address?.as_link_addr().copied())
        .with_context(|| format!("there is no network device {device}"))
}
