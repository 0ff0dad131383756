//! Frames that must not leave this machine, sent again and again, and ears for what must not reach
//! it; and, on the host's side, ears for those frames.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use guest_replica::Options;
use shared_registers::cluster::{Cluster, Paths};

use crate::frames::{KINDS, MARK, World, poison};
use crate::socket::Socket;

const DEVICE: &str = "eth0";
/// `vm/cluster --one-nic` of the test.
const TAG: u16 = 42;
const UP_AND_PROMISCUOUS: &str = "0x1103";
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// So often it says what it heard.
const SAY_EVERY: u32 = 10;

/// Attacks until the machine is stopped.
pub(crate) fn attack(options: &Options) -> Result<()> {
    fs::write(format!("/sys/class/net/{DEVICE}/flags"), UP_AND_PROMISCUOUS)?;
    let (socket, ears) = (Socket::open(DEVICE)?, Socket::open(DEVICE)?);
    let world = world(options, socket.mac)?;
    thread::spawn(move || hear(&ears, &world.1));
    let world = world.0;
    loop {
        for (letter, _, make) in KINDS {
            // A frame that this machine's own kernel refuses is none that left it.
            let _ = socket.send(&make(&world, letter));
        }
        let _ = socket.send(&poison(&world));
        thread::sleep(PAUSE);
    }
}

/// Who is who, and all addresses of the trusted network.
fn world(options: &Options, mac: [u8; 6]) -> Result<(World, Vec<Ipv4Addr>)> {
    let cluster = Cluster::load(&Paths::new(&options.dir))?;
    let v4 = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => bail!("the test's addresses are IPv4"),
    };
    let trusted = cluster.servers.iter().map(|server| v4(server.trusted.ip()));
    let trusted: Vec<Ipv4Addr> = trusted.collect::<Result<_>>()?;
    let me = usize::from(options.id);
    let (other, host) = ((me + 1) % cluster.n(), (me + 2) % cluster.n());
    let mut other_mac = mac;
    other_mac[5] = other as u8;
    let world = World {
        mac,
        me: v4(cluster.servers[me].payload.ip())?,
        other: v4(cluster.servers[other].payload.ip())?,
        other_mac,
        hosts: [trusted[other], trusted[host]],
        tag: TAG,
    };
    Ok((world, trusted))
}

/// Says again and again how many frames of others came, and how many of them speak of an address of
/// the trusted network.
fn hear(ears: &Socket, trusted: &[Ipv4Addr]) {
    let (mut frames, mut secret, mut said) = (0, 0, Instant::now());
    loop {
        if let Ok(Some(frame)) = ears.receive()
            && frame.get(6..12) != Some(&ears.mac)
            && !contains(&frame, MARK)
        {
            frames += 1;
            secret += u64::from(trusted.iter().any(|ip| contains(&frame, &ip.octets())));
        }
        if said.elapsed() > PAUSE * SAY_EVERY {
            println!("intruder: heard {frames} frames of others, {secret} of the trusted network");
            said = Instant::now();
        }
    }
}

/// Counts the frames of each kind that come to a device.
pub(crate) fn listen(device: &str, seconds: u64) -> Result<()> {
    let socket = Socket::open(device)?;
    let mut heard: BTreeMap<u8, u64> = BTreeMap::new();
    println!("listening");
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let Some(frame) = socket.receive()? else { continue };
        let at = frame.windows(MARK.len()).position(|window| window == MARK);
        if let Some(kind) = at.and_then(|at| frame.get(at + MARK.len())) {
            *heard.entry(*kind).or_default() += 1;
        }
    }
    for (letter, name, _) in KINDS {
        println!("{name} {}", heard.get(&letter).copied().unwrap_or(0));
    }
    println!("bridge-poison {}", heard.get(&b'z').copied().unwrap_or(0));
    Ok(())
}

fn contains(frame: &[u8], what: &[u8]) -> bool {
    frame.windows(what.len()).any(|window| window == what)
}
