//! Frames that a guest must not be able to send, and one that it may. Each carries [`MARK`] and its
//! kind's letter, so that whoever hears one knows it for what it is.

use std::net::Ipv4Addr;

/// Stands in every frame, before the kind's letter.
pub(crate) const MARK: &[u8] = b"difato-intruder-";

const EVERYBODY: [u8; 6] = [0xff; 6];
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
const PROVIDER_VLAN: [u8; 2] = [0x88, 0xa8];
const OLD_VLAN: [u8; 2] = [0x91, 0x00];

/// Who is who, as an attacker reads it in `cluster.toml`.
pub(crate) struct World {
    pub(crate) mac: [u8; 6],
    pub(crate) me: Ipv4Addr,
    /// Another guest.
    pub(crate) other: Ipv4Addr,
    pub(crate) other_mac: [u8; 6],
    /// Two hosts, on the trusted network.
    pub(crate) hosts: [Ipv4Addr; 2],
    /// The VLAN that the trusted network may be.
    pub(crate) tag: u16,
}

/// A letter, a name, and how to make the frame. The first is the one that may pass.
pub(crate) type Kind = (u8, &'static str, fn(&World, u8) -> Vec<u8>);

pub(crate) const KINDS: [Kind; 15] = [
    (b'a', "allowed", |w, k| ip(w.mac, w.me, Ipv4Addr::BROADCAST, k)),
    (b'b', "foreign-mac", |w, k| ip([2, 2, 2, 2, 2, 2], w.me, w.other, k)),
    (b'c', "guest-mac", |w, k| ip(w.other_mac, w.me, w.other, k)),
    (b'd', "guest-source", |w, k| ip(w.mac, w.other, Ipv4Addr::BROADCAST, k)),
    (b'e', "host-source", |w, k| ip(w.mac, w.hosts[0], w.hosts[1], k)),
    (b'f', "to-host", |w, k| ip(w.mac, w.me, w.hosts[0], k)),
    (b'g', "arp-as-guest", |w, k| arp(w.mac, w.mac, w.other, w.other, k)),
    (b'h', "arp-as-host", |w, k| arp(w.mac, w.mac, w.hosts[0], w.hosts[1], k)),
    (b'i', "arp-for-host", |w, k| arp(w.mac, w.mac, w.me, w.hosts[0], k)),
    (b'j', "arp-foreign-mac", |w, k| arp(w.mac, w.other_mac, w.me, w.other, k)),
    (b'k', "tagged", |w, k| tag(VLAN, w.tag, ip(w.mac, w.me, w.hosts[0], k))),
    (b'l', "tagged-0", |w, k| tag(VLAN, 0, ip(w.mac, w.me, w.other, k))),
    (b'm', "provider-tagged", |w, k| {
        tag(PROVIDER_VLAN, 7, tag(VLAN, w.tag, ip(w.mac, w.me, w.hosts[0], k)))
    }),
    (b'n', "old-tagged", |w, k| tag(OLD_VLAN, w.tag, ip(w.mac, w.me, w.hosts[0], k))),
    (b'o', "ipv6", |w, k| ethernet(w.mac, IPV6, &ipv6(k))),
];

/// One that bridges take for themselves and learn its sender from: as another guest.
pub(crate) fn poison(world: &World) -> Vec<u8> {
    let mut frame = vec![0x01, 0x80, 0xc2, 0, 0, 0x0e];
    frame.extend(world.other_mac);
    frame.extend([0x88, 0xcc]);
    frame.extend(marked(&[], b'z'));
    frame
}

fn ethernet(from: [u8; 6], kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    [&EVERYBODY[..], &from, &kind, body].concat()
}

fn marked(body: &[u8], kind: u8) -> Vec<u8> {
    let mut body = [body, MARK, &[kind]].concat();
    body.resize(body.len().max(46), 0);
    body
}

/// A UDP packet to everybody on the wire, whichever address it names.
fn ip(mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, kind: u8) -> Vec<u8> {
    let body = marked(&[0x1b, 0x58, 0x1b, 0x58, 0, 60, 0, 0], kind);
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = header.chunks(2).fold(0u32, |sum, w| sum + u32::from(w[0]) * 256 + u32::from(w[1]));
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(mac, IPV4, &[header, body].concat())
}

/// A packet without contents that anybody knows, from one machine of this wire to all.
fn ipv6(kind: u8) -> Vec<u8> {
    let body = marked(&[], kind);
    let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, 59, 1];
    for (first, second) in [(0xfe, 0x80), (0xff, 0x02)] {
        packet.extend([first, second]);
        packet.extend([0; 13]);
        packet.push(1);
    }
    packet.extend(body);
    packet
}

/// An ARP reply: `claimed` is at `claimed_mac`. Where both addresses differ it asks for `about`.
fn arp(
    mac: [u8; 6],
    claimed_mac: [u8; 6],
    claimed: Ipv4Addr,
    about: Ipv4Addr,
    kind: u8,
) -> Vec<u8> {
    let operation = if claimed == about { 2 } else { 1 };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(claimed_mac);
    body.extend(claimed.octets());
    body.extend([0; 6]);
    body.extend(about.octets());
    ethernet(mac, ARP, &marked(&body, kind))
}

/// Puts a VLAN tag into a frame.
fn tag(protocol: [u8; 2], id: u16, frame: Vec<u8>) -> Vec<u8> {
    [&frame[..12], &protocol, &id.to_be_bytes(), &frame[12..]].concat()
}
