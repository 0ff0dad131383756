//! A cluster under load for a long time stays as large as it was: what every process keeps in
//! memory and on disk has bounds, and they are reached early (section 6).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shared_registers::cluster::Limits;
use shared_registers::ids::ServerId;

use crate::memory::of_all;
use crate::support::{Builder, Cluster, counter};

/// In all, in ten steps, of which one comes before the first look. `SOAK_REQUESTS` sets another
/// number.
const REQUESTS: u64 = 5_000_000;
const MIB: f64 = (1 << 20) as f64;
/// By so much of what it was may anything grow.
const GROWTH: f64 = 0.05;

/// A host keeps the place of each record in its rings, in room that doubles, so until a ring has been
/// filled once there are more of them. No record of this load is smaller than a vote.
const PLACE_BYTES: f64 = 2.0 * 8.0;
const RECORD_BYTES: f64 = 114.0;

/// The parts of a process's memory, as they are printed; see `Memory`.
const RESIDENT: &str = "resident";
const PRIVATE: &str = "private";
const FILES: &str = "of files";
const SHARED: &str = "shared";
const REGISTERS: &str = "of registers";

/// Bytes in memory of every process, and on disk of registers and snapshots.
fn sizes(cluster: &Cluster) -> BTreeMap<String, f64> {
    let mut sizes = BTreeMap::new();
    for (process, memory) in of_all(cluster) {
        for (what, kib) in [
            (RESIDENT, memory.resident),
            (PRIVATE, memory.private),
            (FILES, memory.file),
            (SHARED, memory.shared),
            (REGISTERS, memory.registers),
        ] {
            sizes.insert(format!("{process}, {what}"), kib as f64 * 1024.0);
        }
    }
    let paths = cluster.folder.paths();
    sizes.insert("registers, on disk".into(), on_disk(&paths.dir().join("registers")));
    sizes.insert("snapshots, on disk".into(), on_disk(&paths.dir().join("snapshots")));
    sizes
}

/// How much anything may be at the end. `registers` is what a server's register files take: of these
/// more is mapped until the first lap is over, and that is all.
fn bound(what: &str, [before, after]: [&BTreeMap<String, f64>; 2], registers: f64) -> f64 {
    let (process, kind) = what.rsplit_once(", ").unwrap();
    let same = before[what] * (1.0 + GROWTH);
    match kind {
        REGISTERS => registers,
        // The sums of these and of what is private.
        RESIDENT | FILES | SHARED => f64::INFINITY,
        PRIVATE if process.starts_with("host agent") => {
            let mapped = format!("{process}, {REGISTERS}");
            same + PLACE_BYTES / RECORD_BYTES * (after[&mapped] - before[&mapped])
        }
        // While one snapshot takes another's place a store has both, whatever they do not share.
        _ if process == "snapshots" => 2.0 * before[what],
        _ => same,
    }
}

/// What all files under a folder take, holes left out.
fn on_disk(folder: &Path) -> f64 {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => on_disk(&entry.path()),
        Ok(data) => data.blocks() as f64 * 512.0,
        Err(_) => 0.0, // A guest has just replaced it.
    };
    entries.map(size).sum()
}

fn load(cluster: &Cluster, requests: u64) {
    let requests = requests.to_string();
    let load = ["--outstanding", "64", "--payloads", "0/0", "--requests", &requests];
    println!(
        "{}",
        cluster.folder.command("bench", &[&["--client", "0"], &load[..]].concat()).done()
    );
}

#[test]
#[ignore = "takes minutes: docs/testing.md says how it is run"]
fn a_cluster_under_load_does_not_grow() {
    let requests = std::env::var("SOAK_REQUESTS").map_or(REQUESTS, |n| n.parse().unwrap());
    let whole = Limits::default().ring_bytes;
    let mut cluster = Builder::new().set("ring_bytes", whole).start();
    load(&cluster, requests / 10);
    let before = sizes(&cluster);
    (1..10).for_each(|_| load(&cluster, requests / 10));
    let after = sizes(&cluster);
    cluster.assert_all_run();
    println!("{:28} {:>12} {:>12}", "MiB", "at a tenth", "at the end");
    for (what, bytes) in &after {
        println!("{what:28} {:12.1} {:12.1}", before[what] / MIB, bytes / MIB);
    }
    for id in cluster.ids() {
        let status = cluster.status(id);
        assert!(counter(&status, "host_checkpoints") > 2, "rings were too large: {status:?}");
    }
    let geometry = cluster.description.geometry(ServerId(0));
    let registers = (geometry.read_bytes() + geometry.write_bytes()) as f64;
    for (what, bytes) in &after {
        let most = bound(what, [&before, &after], registers);
        assert!(*bytes <= most, "{what} has grown: {bytes} bytes, and {most} would do");
    }
}
