//! An attacker owns the machine of guest 2, as root (`tests/vm/intruder`). Where the kernel can, the
//! hosts' trusted network is a VLAN of their only card, so that nothing but the host's own rules is in
//! the attacker's way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::atomic::Ordering;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_registers::cluster::{Cluster as Description, Paths};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::Counter;
use shared_registers::ids::{ServerId, Term};
use shared_registers::layout::{DropReason, read};
use shared_registers::record::Body;
use shared_registers::words::{MappedReadOnly, VecWords, Words};

use crate::cluster::{Cluster, intruder_image, run, try_run, until};

const BROKEN_IN: u16 = 2;
const TAG: &str = "42";
/// The intruder sends each frame about five times a second.
const LISTEN_SECONDS: &str = "4";

#[test]
#[ignore = "needs root, QEMU, vm/build-image and tests/vm/build-intruder: see tests/vm/main.rs"]
fn who_owns_a_machine_owns_no_more() {
    let one_card = ["--no-guests", "--one-nic", TAG];
    let cluster = if vlans() {
        Cluster::up(&one_card)
    } else {
        println!("NOT TRIED: the trusted network as a VLAN (this kernel makes no VLAN devices)");
        Cluster::up(&one_card[..1])
    };
    cluster.script("start-guest", &["0"]);
    cluster.script("start-guest", &["1"]);
    (0..2).for_each(|server| cluster.until_at_work(server, 0));
    // Records for the intruder to overwrite.
    assert_eq!(cluster.send("0", &["one", "two", "three"]), [1, 2, 3]);
    let before = rings(&cluster, BROKEN_IN);
    let image = intruder_image();
    let image = image.to_str().unwrap();
    cluster.script("start-guest", &["2", "--image", image, "--init", "/intruder"]);

    registers(&cluster, &before);
    network(&cluster);
    // Two servers are enough, whatever the third does.
    assert_eq!(cluster.send("1", &["four", "five"]), [4, 5]);
    (0..2).for_each(|server| cluster.until_at_work(server, 5));
    without_rules(&cluster);
}

/// Whether this kernel makes VLAN devices: tried in a network namespace of its own.
fn vlans() -> bool {
    let script = "ip link add a type veth peer name b && ip link add link a name v type vlan id 5";
    try_run(&["unshare", "--net", "sh", "-c", script]).is_ok()
}

/// What it did to its register files.
fn registers(cluster: &Cluster, before: &[u64]) {
    let said = until("the intruder is done with the registers", || {
        let said = cluster.log("guest-2.log");
        assert!(!said.contains("intruder: failed"), "{said}");
        said.contains("intruder: done with the registers").then_some(said)
    });
    // No other guest's memory is there, and the read file's cannot be written.
    assert!(said.contains("intruder: 2 devices of shared memory"), "{said}");
    assert!(said.contains("intruder: 0 of "), "{said}");
    assert_eq!(rings(cluster, BROKEN_IN), before, "the read file has changed");

    permissions(cluster);

    // Garbage is dropped and counted.
    let counters = attach(cluster, BROKEN_IN).counters();
    assert!(counters[Counter::dropped(DropReason::Framing)] >= 1, "{counters:?}");
    assert!(counters[Counter::BadHead as usize] >= 1, "{counters:?}");

    // What it wrote stands in its own stream, as its own, at every host; and in no other.
    for host in 0..3 {
        let its_own = (ServerId(BROKEN_IN), ServerId(BROKEN_IN));
        let found = until("its record is everywhere", || {
            let found = changes(cluster, host);
            found.contains(&its_own).then_some(found)
        });
        assert_eq!(found.iter().filter(|one| **one == its_own).count(), 1, "host {host}");
        assert!(found.iter().all(|(stream, writer)| stream == writer), "host {host}: {found:?}");
    }
}

/// Should it get out of its machine, it is QEMU's user, who may do no more: guest I's is 60600 + I.
fn permissions(cluster: &Cluster) {
    let folder = paths(cluster, BROKEN_IN).registers(ServerId(BROKEN_IN));
    let may = |user: &str, what: &str, file: &str| {
        let file = folder.join(file);
        let as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "test"];
        try_run(&[&as_user[..], &[what, file.to_str().unwrap()]].concat()).is_ok()
    };
    assert!(may("60602", "-w", "write") && may("60602", "-r", "read"));
    assert!(!may("60602", "-w", "read"), "its QEMU can write the read file");
    assert!(!may("60600", "-r", "read") && !may("60600", "-w", "write"), "another guest's can");
}

/// As that user it can open no connection, though its process is in its host's network namespace.
#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn who_breaks_out_of_its_machine_reaches_no_network() {
    let cluster = Cluster::up(&["--no-guests"]);
    let reaches = |user: &str| {
        let space = format!("{}-h2", cluster.name);
        let as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
        // The host agent of server 0, on the trusted network.
        let connect = ["timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/10.99.2.1/7000"];
        try_run(&[&["ip", "netns", "exec", &space], &as_user[..], &connect].concat()).is_ok()
    };
    until("another user reaches another host", || reaches("60642").then_some(()));
    assert!(!reaches("60602"), "its QEMU's user does");
    let dropped = cluster.inside("h2", &["nft", "list", "counters"]);
    let (_, rest) = dropped.split_once("counter of_qemu {").unwrap();
    assert_ne!(rest.split_whitespace().nth(1), Some("0"), "{dropped}");
}

/// What it sent, what of that left its host, and what it heard.
fn network(cluster: &Cluster) {
    let others = || {
        let said = cluster.log("guest-2.log");
        let last = said.lines().rev().find_map(|line| {
            let words: Vec<_> = line.strip_prefix("intruder: heard ")?.split(' ').collect();
            Some((words[0].parse::<u64>().unwrap(), words[4].parse::<u64>().unwrap()))
        });
        last.filter(|(frames, _)| *frames > 0)
    };
    let heard = heard_outside(cluster);
    for (kind, count) in &heard {
        let may_pass = kind == "allowed";
        assert_eq!(*count > 0, may_pass, "{kind} came {count} times: {heard:?}");
    }
    let dropped = cluster.inside("h2", &["nft", "list", "counters"]);
    for counter in ["foreign_mac", "foreign_address", "tagged", "to_trusted", "not_ip"] {
        let (_, rest) = dropped.split_once(&format!("counter {counter} {{")).unwrap();
        let packets = rest.split_whitespace().nth(1).unwrap();
        assert!(packets.parse::<u64>().unwrap() > 0, "{counter}: {dropped}");
    }
    // Its host's bridge has not learned that another guest is behind its card.
    let known = cluster.inside("h2", &["bridge", "fdb", "show", "br", "difato-pay"]);
    assert!(
        !known.lines().any(|line| line.contains("02:d1:fa:70:00:00") && line.contains("tap")),
        "{known}"
    );
    // Clients ask who has which address, so that it hears something; of the hosts it hears nothing.
    let (frames, secret) = until("the intruder hears others", || {
        cluster.status();
        others()
    });
    assert_eq!(secret, 0, "it heard {frames} frames");
}

/// All that was shown of the network rests on the rules: without them everything gets out. So who
/// runs the machine looks after them. It sleeps first, which shows that; then it looks.
fn without_rules(cluster: &Cluster) {
    let runner = runner(cluster);
    kill(runner, Signal::SIGSTOP).unwrap();
    cluster.inside("h2", &["nft", "flush", "ruleset"]);
    let heard = heard_outside(cluster);
    let stopped: Vec<_> = heard.iter().filter(|(_, count)| **count == 0).collect();
    // Bridges never pass this one on.
    assert!(stopped.iter().all(|(kind, _)| *kind == "bridge-poison"), "{stopped:?}");
    kill(runner, Signal::SIGCONT).unwrap();
    until("its machine has ended", || {
        cluster.log("run-guest-2.log").contains("are not what they were").then_some(())
    });
    let heard = heard_outside(cluster);
    assert!(heard.values().all(|count| *count == 0), "{heard:?}");
}

/// The process that runs the machine of the broken-in guest: QEMU's parent.
fn runner(cluster: &Cluster) -> Pid {
    let space = format!("{}-h{BROKEN_IN}", cluster.name);
    let processes = run(&["ip", "netns", "pids", &space]);
    let parent = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let value = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        // The kernel cuts names.
        value("Name:")?.starts_with("qemu-system").then(|| value("PPid:")?.parse().ok())?
    };
    Pid::from_raw(processes.lines().find_map(parent).expect("a machine runs"))
}

/// How many of the intruder's frames of each kind come out of its host's card.
fn heard_outside(cluster: &Cluster) -> BTreeMap<String, u64> {
    let program = intruder_image().join("vm-intruder");
    let listen = [program.to_str().unwrap(), "listen", "p2", LISTEN_SECONDS];
    let said = cluster.inside("net", &listen);
    let counts = said.lines().filter_map(|line| line.split_once(' '));
    let heard: BTreeMap<_, _> =
        counts.map(|(kind, count)| (kind.to_owned(), count.parse().unwrap())).collect();
    assert_eq!(heard.len(), 16, "{said}");
    heard
}

fn paths(cluster: &Cluster, host: u16) -> Paths {
    Paths::new(cluster.dir().join("hosts").join(host.to_string()))
}

fn read_file(cluster: &Cluster, host: u16) -> MappedReadOnly {
    let file = File::open(paths(cluster, host).read_file(ServerId(host))).unwrap();
    MappedReadOnly::map(&file).unwrap()
}

/// What a guest of `host` would read.
fn attach(cluster: &Cluster, host: u16) -> GuestRegisters<MappedReadOnly, VecWords> {
    let geometry = Description::load(&paths(cluster, host)).unwrap().geometry(ServerId(host));
    let write = VecWords::new(geometry.write_file_bytes() as usize / 8);
    GuestRegisters::attach(geometry, read_file(cluster, host), write).unwrap()
}

/// The words of a host's read file that nobody may have changed: who it is, and the first records.
fn rings(cluster: &Cluster, host: u16) -> Vec<u64> {
    let words = read_file(cluster, host);
    let registers = attach(cluster, host);
    let geometry = registers.geometry();
    let identity = read::MAGIC..read::INCARNATION + 1;
    // The proposals of server 0, from the first on.
    let start = geometry.stream_ring(ServerId(0)).base;
    identity.chain(start..start + 64).map(|word| words.load(word, Ordering::SeqCst)).collect()
}

/// The CHANGEs that a host has: in whose stream, by whom as it is stamped.
fn changes(cluster: &Cluster, host: u16) -> Vec<(ServerId, ServerId)> {
    let mut registers = attach(cluster, host);
    let mut found = Vec::new();
    for stream in ServerId::all(3) {
        while let Next::Record(record) = registers.next(stream) {
            if let Ok(Body::Change(change)) = Body::decode(record.body, 3) {
                assert_eq!(change.term, Term(0));
                found.push((stream, record.stamp.writer));
            }
            registers.advance(stream);
        }
    }
    found
}
