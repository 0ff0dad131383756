//! A cluster under load for a long time stays as large as it was: what every process keeps in
//! memory and on disk has bounds, and they are reached early (section 6).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shared_registers::cluster::Limits;

use crate::support::{Builder, Cluster, Role, counter};

/// In all, in ten steps, of which one comes before the first look. `SOAK_REQUESTS` sets another
/// number.
const REQUESTS: u64 = 5_000_000;
const MIB: f64 = (1 << 20) as f64;
/// By so much of what it was may anything grow.
const GROWTH: f64 = 0.05;

/// Bytes in memory of every process, and on disk of registers and snapshots.
fn sizes(cluster: &Cluster) -> BTreeMap<String, f64> {
    let mut sizes = BTreeMap::new();
    for id in cluster.ids() {
        for (role, name) in [(Role::Host, "host agent"), (Role::Guest, "guest")] {
            sizes.insert(format!("{name} {id}, resident"), resident(cluster.pid(role, id)));
        }
    }
    let paths = cluster.folder.paths();
    sizes.insert("registers, on disk".into(), on_disk(&paths.dir().join("registers")));
    sizes.insert("snapshots, on disk".into(), on_disk(&paths.dir().join("snapshots")));
    sizes
}

fn resident(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
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
    println!("{:24} {:>12} {:>12}", "MiB", "at a tenth", "at the end");
    for (what, bytes) in &after {
        println!("{what:24} {:12.1} {:12.1}", before[what] / MIB, bytes / MIB);
    }
    for id in cluster.ids() {
        let status = cluster.status(id);
        assert!(counter(&status, "host_checkpoints") > 2, "rings were too large: {status:?}");
    }
    for (what, bytes) in &after {
        // While one snapshot takes another's place a store has both, whatever they do not share.
        let growth = if what.starts_with("snapshots") { 1.0 } else { GROWTH };
        assert!(*bytes <= before[what] * (1.0 + growth), "{what} has grown: {bytes} bytes");
    }
}
