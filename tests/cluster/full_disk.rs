//! A guest whose disk is full says so, goes on serving and claims nothing (section 6); when there
//! is room again it takes part again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use shared_registers::cluster::Paths;
use shared_registers::ids::ServerId;

use crate::support::clients::Traffic;
use crate::support::command::DIFATO;
use crate::support::{Builder, Cluster, Role, counter, path, until};

const RING_BYTES: u64 = 2 << 20;
const BYTES: usize = 8 << 10;
/// Requests of [`BYTES`] that fill a ring six times.
const ENOUGH: usize = 1536;
/// The server whose guest has a small disk.
const SMALL: u16 = 1;
/// A file that takes all of it.
const FILLING: &str = "filling";

/// A guest, which for [`SMALL`] has a disk of its own for its snapshots.
fn guest(dir: &Path, id: u16) -> Command {
    let arguments = |command: &mut Command| {
        command.args(["guest-replica", "--dir", path(dir), "--id", &id.to_string()]);
        command.args(["--supervised-by", &std::process::id().to_string()]);
    };
    if id != SMALL {
        let mut command = Command::new(DIFATO);
        arguments(&mut command);
        return command;
    }
    let script = format!(
        "mkdir -p \"$0\" && mount -t tmpfs -o size=24m none \"$0\" && \
         {{ cat /dev/zero > \"$0/{FILLING}\"; exec \"$@\"; }}"
    );
    let snapshots = Paths::new(dir).snapshots(ServerId(id));
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(snapshots).arg(DIFATO);
    arguments(&mut command);
    command
}

/// The folder of [`SMALL`]'s snapshots, as its guest sees it.
fn its_disk(cluster: &Cluster) -> PathBuf {
    let snapshots = cluster.folder.paths().snapshots(ServerId(SMALL));
    let root = PathBuf::from(format!("/proc/{}/root", cluster.pid(Role::Guest, SMALL)));
    root.join(snapshots.strip_prefix("/").unwrap())
}

#[test]
fn a_guest_whose_disk_is_full_says_so_goes_on_and_recovers_when_there_is_room() {
    let allowed = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this user may not make mount namespaces, so there is no full disk");
        return;
    }
    let mut cluster = Builder::new()
        .guest(guest)
        .set("ring_bytes", RING_BYTES)
        .set("max_payload_bytes", BYTES)
        .set("retain_bytes", 2 << 20)
        .start();
    let start = Instant::now();
    let mut traffic = Traffic::start_large(&cluster.folder, 0, 8, BYTES);
    traffic.await_more(ENOUGH);
    let said = cluster.status(SMALL);
    // Each try writes until the disk is full: not one for each new checkpoint.
    let failures = counter(&said, "snapshot_store_failures");
    assert!(failures < 3 + start.elapsed().as_secs(), "{said:?}");
    assert_eq!(counter(&said, "snapshots_stored"), 0, "{said:?}");
    assert!(failures > 0, "{said:?}");
    cluster.await_delivered(SMALL, ENOUGH as u64);
    let log = cluster.folder.paths().logs().join(format!("guest-replica-{SMALL}.log"));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("cannot store a snapshot in") && log.contains("No space left"), "{log}");
    let disk = its_disk(&cluster);
    let left = |start: &str| {
        let names = fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(start)).count()
    };
    assert_eq!(left("manifest-"), 0);
    // Without its claim no checkpoint is stable once another is away: the window closes. With room
    // it opens again.
    cluster.kill(Role::Guest, 2);
    let stable = |cluster: &Cluster| counter(&cluster.status(0), "host_checkpoints");
    until("the window is closed", || {
        let before = (stable(&cluster), cluster.status(0).delivered);
        thread::sleep(Duration::from_millis(300));
        before == (stable(&cluster), cluster.status(0).delivered)
    });
    fs::remove_file(disk.join(FILLING)).unwrap();
    traffic.await_more(ENOUGH);
    assert!(counter(&cluster.status(SMALL), "snapshots_stored") > 0);
    cluster.restart(Role::Guest, 2);
    let answers = traffic.finish();
    cluster.ids().for_each(|id| cluster.await_delivered(id, answers.last()));
    cluster.assert_all_run();
}
