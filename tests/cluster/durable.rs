//! Everything ends at once, and goes on with all answered requests still there, although their
//! records are reclaimed: what is stable lies in the guests' own stores (section 6).

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_registers::ids::ServerId;

use crate::support::clients::{Answers, Traffic, one_order};
use crate::support::command::{children_of, runs};
use crate::support::permit::Permit;
use crate::support::{Builder, Cluster, Folder, Role, counter, until};
use crate::up::{interrupt, up};

/// Requests of so many bytes ...
const BYTES: usize = 8 << 10;
/// ... of which so many fill rings of [`RING_BYTES`] six times.
const ENOUGH: usize = 1536;
/// As small as can be.
const RING_BYTES: u64 = 2 << 20;
const IN_FLIGHT: usize = 8;

fn small_rings() -> Builder {
    Builder::new().set("ring_bytes", RING_BYTES).set("max_payload_bytes", BYTES)
}

/// The parts of snapshots in a guest's store.
fn parts(folder: &Folder, id: u16) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.paths().snapshots(ServerId(id))) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("part-")).collect()
}

fn start_all(cluster: &mut Cluster) {
    for role in [Role::Host, Role::Guest] {
        for id in cluster.ids() {
            cluster.start(role, id);
        }
    }
    until("all guests are at work", || {
        cluster.ask().iter().all(|said| said.as_ref().is_ok_and(|s| s.catching_up.is_none()))
    });
}

fn assert_in_order(folder: &Folder, answers: &Answers) {
    answers.assert_stand_in(&one_order(folder, answers.last()));
}

/// All processes are killed under load, after many records were reclaimed; then something happens
/// to the folder, and all start again. Returns what all guests say then.
fn after_a_kill_of_all(damage: impl Fn(&Folder)) -> Vec<protocol::messages::Status> {
    let mut cluster = small_rings().start();
    let mut traffic = Traffic::start_large(&cluster.folder, 0, IN_FLIGHT, BYTES);
    traffic.await_more(ENOUGH);
    cluster.kill_all();
    damage(&cluster.folder);
    start_all(&mut cluster);
    traffic.await_more(50);
    let answers = traffic.finish();
    cluster.ids().for_each(|id| cluster.await_delivered(id, answers.last()));
    assert_in_order(&cluster.folder, &answers);
    cluster.assert_all_run();
    let said: Vec<_> = cluster.ids().map(|id| cluster.status(id)).collect();
    for status in &said {
        assert_eq!(counter(status, "snapshots_restored"), 1, "{status:?}");
        let kept = parts(&cluster.folder, status.id.0);
        let bytes: u64 = kept.iter().map(|path| path.metadata().unwrap().len()).sum();
        // What the last few snapshots share is there once.
        let all = 2 * answers.last() * BYTES as u64;
        assert!(bytes > 0 && bytes < all, "{} files, {bytes} bytes", kept.len());
    }
    said
}

#[test]
fn after_a_kill_of_everything_all_guests_start_from_what_they_stored() {
    let said = after_a_kill_of_all(|_| {});
    assert!(said.iter().any(|status| counter(status, "snapshot_bytes_fetched") == 0), "{said:?}");
    assert!(said.iter().all(|status| counter(status, "snapshot_bytes_loaded") > 0), "{said:?}");
}

#[test]
fn a_store_that_was_deleted_is_made_anew_from_what_others_stored() {
    let said = after_a_kill_of_all(|folder| {
        fs::remove_dir_all(folder.paths().snapshots(ServerId(1))).unwrap();
    });
    let fetched = counter(&said[1], "snapshot_bytes_fetched");
    assert!(fetched > (ENOUGH * BYTES) as u64 / 2, "{:?}", said[1]);
    assert_eq!(counter(&said[1], "snapshot_bytes_loaded"), 0, "{:?}", said[1]);
}

#[test]
fn parts_that_are_damaged_are_fetched_from_others() {
    let said = after_a_kill_of_all(|folder| {
        for path in parts(folder, 1) {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    });
    assert!(counter(&said[1], "snapshot_files_damaged") > 0, "{:?}", said[1]);
    assert!(counter(&said[1], "snapshot_bytes_fetched") > 0, "{:?}", said[1]);
}

#[test]
fn up_goes_on_after_a_clean_stop_and_after_a_kill_of_everything() {
    let _permit = Permit::wait();
    let folder = small_rings().init();
    let first = up(&folder);
    let mut traffic = Traffic::start_large(&folder, 0, IN_FLIGHT, BYTES);
    traffic.await_more(ENOUGH);
    interrupt(first);
    let mut second = up(&folder);
    traffic.await_more(ENOUGH / 2);
    let children = children_of(second.pid());
    for (pid, _) in &children {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    second.kill();
    until("its processes end", || children.iter().all(|(pid, _)| !runs(*pid)));
    let third = up(&folder);
    traffic.await_more(50);
    let answers = traffic.finish();
    assert_in_order(&folder, &answers);
    interrupt(third);
}

/// P6, R7: a guest whose predecessor left frames behind reads, stores and serves before its host
/// has taken them, and no ring is so full that its host takes none.
#[test]
fn guests_that_are_all_killed_again_and_again_while_their_rings_fill_go_on() {
    let mut cluster = small_rings().start();
    let mut traffic = Traffic::start_large(&cluster.folder, 0, IN_FLIGHT, BYTES);
    for round in 0..8 {
        // A ring takes 256 of these.
        traffic.await_more(160 + 20 * round);
        cluster.ids().for_each(|id| cluster.kill(Role::Guest, id));
        cluster.ids().for_each(|id| cluster.start(Role::Guest, id));
    }
    traffic.await_more(ENOUGH / 2);
    let answers = traffic.finish();
    cluster.ids().for_each(|id| cluster.await_delivered(id, answers.last()));
    assert_in_order(&cluster.folder, &answers);
    cluster.assert_all_run();
    assert_eq!(cluster.total("host_stream_full"), 0);
}
