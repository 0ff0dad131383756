//! An address for the machine's network device, by a few messages to the kernel (rtnetlink).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::VmError;
use super::devices::wait_for;

/// The only network device that a guest has.
const DEVICE: &str = "eth0";
const HEADER_BYTES: usize = 16;
const UP: u32 = libc::IFF_UP as u32;

/// Gives the device its address, turns it on, and says where the router is.
pub(super) fn set_up(ip: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> Result<(), VmError> {
    let index = wait_for(|| if_nametoindex(DEVICE).ok())
        .ok_or_else(|| VmError::Missing { what: format!("network device {DEVICE}") })?;
    let mut kernel = Kernel::open().map_err(VmError::step("speak to the kernel's network"))?;
    kernel
        .ask(libc::RTM_NEWADDR, &new_address(index, ip, prefix))
        .map_err(VmError::step(format!("give {DEVICE} the address {ip}/{prefix}")))?;
    kernel
        .ask(libc::RTM_NEWLINK, &link_up(index))
        .map_err(VmError::step(format!("turn {DEVICE} on")))?;
    if let Some(gateway) = gateway {
        kernel
            .ask(libc::RTM_NEWROUTE, &default_route(index, gateway))
            .map_err(VmError::step(format!("reach other networks through {gateway}")))?;
    }
    Ok(())
}

/// A socket to the kernel's network.
struct Kernel {
    socket: OwnedFd,
    seq: u32,
}

impl Kernel {
    fn open() -> io::Result<Kernel> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        Ok(Kernel { socket, seq: 0 })
    }

    /// Asks for something and waits for the kernel's word that it is done.
    fn ask(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.seq += 1;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
        let mut message = Vec::new();
        message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags as u16).to_ne_bytes());
        message.extend(self.seq.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // The answer to what wants one is an error's number, negative, or 0.
        let number = answer[..len].get(HEADER_BYTES..).and_then(|body| body.first_chunk());
        match number.map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// `struct ifaddrmsg` and its attributes.
fn new_address(index: u32, ip: IpAddr, prefix: u8) -> Vec<u8> {
    let mut body = vec![family(ip), prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &octets(ip));
    attribute(&mut body, libc::IFA_ADDRESS, &octets(ip));
    body
}

/// `struct ifinfomsg`: the device is to be up.
fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, UP, UP] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// `struct rtmsg` and its attributes: what has no other way goes to the router.
fn default_route(index: u32, gateway: IpAddr) -> Vec<u8> {
    let scope = libc::RT_SCOPE_UNIVERSE;
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
    let mut body = vec![family(gateway), 0, 0, 0, table, protocol, scope, libc::RTN_UNICAST];
    body.extend(0u32.to_ne_bytes());
    attribute(&mut body, libc::RTA_GATEWAY, &octets(gateway));
    attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
    body
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Appends an attribute: length, kind, value. Values here are multiples of four bytes long.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_kernels_structures() {
        let address = new_address(3, "10.0.0.1".parse().unwrap(), 24);
        let attributes = [8, 0, 2, 0, 10, 0, 0, 1, 8, 0, 1, 0, 10, 0, 0, 1];
        let index = 3u32.to_ne_bytes();
        assert_eq!(address, [&[2, 24, 0, 0][..], &index, &attributes].concat());
        let route = default_route(3, "fd00::1".parse().unwrap());
        assert_eq!((route[..2].to_vec(), route.len()), (vec![10, 0], 12 + 20 + 8));
        assert_eq!(link_up(3)[8..], [UP.to_ne_bytes(), UP.to_ne_bytes()].concat());
    }
}
