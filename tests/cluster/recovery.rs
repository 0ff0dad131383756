//! Hosts whose files were lost or damaged (R6): each says what is wrong and for whom it waits, the
//! others go on meanwhile, and then it rejoins and its guest's vote counts.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use shared_registers::ids::ServerId;
use shared_registers::layout::{SET, read, stream_word};

use crate::rejoin::assert_needed;
use crate::support::clients::Caller;
use crate::support::command::{Said, children_of, difato, runs};
use crate::support::permit::Permit;
use crate::support::{Builder, Cluster, Role, path, until};
use crate::up::{interrupt, up};

fn log(cluster: &Cluster, id: u16) -> String {
    let logs = cluster.folder.paths().logs();
    fs::read_to_string(logs.join(format!("host-agent-{id}.log"))).unwrap_or_default()
}

fn await_log(cluster: &Cluster, id: u16, what: &str) {
    until(&format!("host agent {id} says: {what}"), || log(cluster, id).contains(what));
}

fn read_file(cluster: &Cluster, id: u16) -> PathBuf {
    cluster.folder.paths().read_file(ServerId(id))
}

fn word(file: &File, index: usize) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 8 * index as u64).unwrap();
    u64::from_le_bytes(bytes)
}

fn retire(cluster: &Cluster, id: &str) -> Said {
    cluster.folder.command("retire", &["--id", id])
}

/// Host agent 1 is killed, something happens to its file, and it comes back with its guest, which
/// lives on, or not.
fn comes_back(guest_lives: bool, harm: impl FnOnce(&Cluster), says: &str) {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    let victim = cluster.after_sequencer(1);
    assert_eq!(victim, 1, "nothing has gone wrong yet");
    cluster.kill(Role::Host, victim);
    if !guest_lives {
        cluster.kill(Role::Guest, victim);
    }
    orders.extend(caller.invoke_all("meanwhile", 20));
    harm(&cluster);
    cluster.start(Role::Host, victim);
    await_log(&cluster, victim, says);
    await_log(&cluster, victim, "host agent 1 recovers and waits for");
    await_log(&cluster, victim, "host agent 1 has recovered");
    if !guest_lives {
        cluster.restart(Role::Guest, victim);
    }
    assert_needed(cluster, &caller, victim, &mut orders);
}

#[test]
fn a_read_file_that_is_missing_comes_back_from_the_others() {
    let harm = |cluster: &Cluster| fs::remove_file(read_file(cluster, 1)).unwrap();
    comes_back(true, harm, "read is missing; it takes nothing of its guest until all other hosts");
}

#[test]
fn a_folder_that_is_deleted_whole_comes_back_from_the_others() {
    let harm = |cluster: &Cluster| {
        fs::remove_dir_all(cluster.folder.paths().registers(ServerId(1))).unwrap();
    };
    comes_back(true, harm, "read is missing; it takes nothing");
}

#[test]
fn a_read_file_that_is_cut_short_comes_back_from_the_others() {
    let harm = |cluster: &Cluster| {
        let file = OpenOptions::new().write(true).open(read_file(cluster, 1)).unwrap();
        file.set_len(100_000).unwrap();
    };
    // Its guest had it mapped: a page that is gone under it kills it.
    comes_back(false, harm, "is 100000 bytes long where the configuration needs");
}

#[test]
fn a_byte_that_is_flipped_is_found_and_mended_by_the_others() {
    let harm = |cluster: &Cluster| {
        let file = OpenOptions::new().read(true).write(true).open(read_file(cluster, 1)).unwrap();
        let ring = cluster.description.geometry(ServerId(1)).stream_ring(ServerId(0));
        // In the middle of what there is of server 0's stream.
        let end = word(&file, stream_word(ServerId(0), read::COPIED_AT));
        let at = 8 * ring.base as u64 + end / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    comes_back(true, harm, "of stream 0; it takes nothing of its guest");
}

#[test]
fn a_machine_that_went_down_in_mid_work_asks_the_others() {
    let harm = |cluster: &Cluster| {
        let file = OpenOptions::new().read(true).write(true).open(read_file(cluster, 1)).unwrap();
        assert_eq!(word(&file, read::CLEAN), 0);
        file.write_all_at(&[0x55; 8], 8 * read::BOOT as u64).unwrap();
    };
    comes_back(true, harm, "was in use when the machine went down");
}

#[test]
fn with_durability_disk_a_machine_that_went_down_asks_nobody() {
    let mut cluster = Builder::new().set("durability", "\"disk\"").start();
    let caller = Caller::new(&cluster.folder, 0);
    caller.invoke_all("before", 20);
    cluster.kill(Role::Host, 1);
    cluster.kill(Role::Host, 2);
    let file = OpenOptions::new().write(true).open(read_file(&cluster, 1)).unwrap();
    file.write_all_at(&[0x55; 8], 8 * read::BOOT as u64).unwrap();
    // Host 2 is away, and nobody waits for it.
    cluster.start(Role::Host, 1);
    let orders = caller.invoke_all("after", 20);
    assert_eq!(orders, (21..=40).collect::<Vec<_>>());
    assert!(!log(&cluster, 1).contains("recovers"), "{}", log(&cluster, 1));
}

#[test]
fn after_a_clean_stop_a_machine_that_was_started_again_asks_nobody() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    caller.invoke_all("before", 20);
    cluster.stop(Role::Host, 1);
    cluster.kill(Role::Host, 2);
    let file = OpenOptions::new().read(true).write(true).open(read_file(&cluster, 1)).unwrap();
    assert_eq!(word(&file, read::CLEAN), SET);
    file.write_all_at(&[0x55; 8], 8 * read::BOOT as u64).unwrap();
    cluster.start(Role::Host, 1);
    let orders = caller.invoke_all("after", 20);
    assert_eq!(orders, (21..=40).collect::<Vec<_>>());
    assert!(!log(&cluster, 1).contains("recovers"), "{}", log(&cluster, 1));
    assert_eq!(word(&file, read::CLEAN), 0, "it is in use");
}

#[test]
fn it_waits_for_a_host_that_is_away_until_that_is_retired_or_comes_back() {
    let mut cluster = Builder::new().f(2).start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    for (role, id) in [(Role::Host, 3), (Role::Guest, 3), (Role::Host, 4), (Role::Guest, 4)] {
        cluster.kill(role, id);
    }
    let registers = |id| cluster.folder.paths().registers(ServerId(id));
    fs::remove_dir_all(registers(3)).unwrap();
    let gone = registers(4);
    cluster.start(Role::Host, 3);
    await_log(&cluster, 3, "host agent 3 recovers and waits for host 4");
    cluster.restart(Role::Guest, 3);
    // Meanwhile the others go on, and it serves what it gets.
    orders.extend(caller.invoke_all("meanwhile", 20));
    cluster.await_delivered(3, 40);
    let said = cluster.folder.command("status", &[]).done();
    assert!(said.contains("server 3: its host recovers and waits for host 4"), "{said}");

    assert!(retire(&cluster, "4").done().contains("Server 4 is retired"));
    let again = retire(&cluster, "4");
    assert_eq!(again.code, Some(2), "{again}");
    assert!(again.stderr.contains("server 4 is retired already"), "{again}");
    let unknown = retire(&cluster, "5");
    assert_eq!(unknown.code, Some(2), "{unknown}");
    assert!(unknown.stderr.contains("unknown server 5"), "{unknown}");
    await_log(&cluster, 3, "host agent 3 has recovered");
    cluster.await_delivered(3, 40);

    // With its old files it is refused, and says so; without it comes back.
    cluster.start(Role::Host, 4);
    await_log(&cluster, 4, "server 4 was retired, or goes on with other files");
    cluster.reap(Role::Host, 4);
    fs::remove_dir_all(gone).unwrap();
    cluster.start(Role::Host, 4);
    await_log(&cluster, 4, "host agent 4 has recovered");
    cluster.restart(Role::Guest, 4);
    for id in [0, 1] {
        cluster.kill(Role::Guest, id); // From now on both votes are needed.
    }
    orders.extend(caller.invoke_all("after", 20));
    assert!(orders.iter().copied().eq(1..=60), "{orders:?}");
    assert!(retire(&cluster, "0").done().contains("Server 0 is retired"));
    assert!(retire(&cluster, "4").done().contains("Server 4 is retired"));
    let many = retire(&cluster, "1");
    assert_eq!(many.code, Some(2), "{many}");
    assert!(many.stderr.contains("2 servers are retired already, and f = 2"), "{many}");
}

#[test]
fn what_root_retires_is_for_the_folders_owner_to_read() {
    let folder = Builder::new().init();
    if geteuid().is_root() {
        chown(&folder.dir, Some(54_321), Some(54_322)).unwrap();
    }
    assert!(folder.command("retire", &["--id", "1"]).done().contains("Server 1 is retired"));
    let (owner, list) = (fs::metadata(&folder.dir), fs::metadata(folder.paths().retired()));
    let [owner, list] =
        [owner, list].map(|data| data.map(|data| (data.uid(), data.gid())).unwrap());
    assert_eq!(list, owner);
}

#[test]
fn what_was_answered_is_there_after_everything_was_killed_at_once() {
    let _permit = Permit::wait();
    let folder = Builder::new().application("log").init();
    let send = |words: &[&str]| folder.command("send", &[&["--client", "0"], words].concat());
    let mut heard = String::new();
    // The last time the machine went down too, with all that it ran.
    for round in 0..3u64 {
        let running = up(&folder);
        let first = 2 * round + 1;
        assert_eq!(send(&["a", "b"]).done(), format!("{first}\n{}\n", first + 1));
        heard += &format!("{first} 0 a\n{} 0 b\n", first + 1);
        let pids: Vec<i32> = children_of(running.pid()).into_iter().map(|(pid, _)| pid).collect();
        for pid in pids.iter().chain([&running.pid()]) {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        }
        until("all are gone", || pids.iter().all(|pid| !runs(*pid)));
        if round == 1 {
            for id in ServerId::all(3) {
                let file = folder.paths().read_file(id);
                let file = OpenOptions::new().write(true).open(file).unwrap();
                file.write_all_at(&[0x55; 8], 8 * read::BOOT as u64).unwrap();
            }
        }
    }
    let running = up(&folder);
    let count = heard.lines().count().to_string();
    assert_eq!(folder.command("listen", &["--client", "2", "--count", &count]).done(), heard);
    drop(running);
}

#[test]
fn up_goes_on_without_a_server_that_is_retired_until_its_files_are_removed() {
    let _permit = Permit::wait();
    let folder = Builder::new().application("log").init();
    let send = |word: &str| folder.command("send", &["--client", "0", word]).done();
    let running = up(&folder);
    assert_eq!(send("one"), "1\n");
    interrupt(running);
    assert!(folder.command("retire", &["--id", "2"]).done().contains("Server 2 is retired"));
    let mut running = difato(["cluster", "up", path(&folder.dir)]).spawn();
    until("`cluster up` says that one is not wanted any more", || {
        assert!(!running.has_ended(), "{}\n{}", running.stdout(), running.stderr());
        running.stderr().contains("server 2 was retired, or goes on with other files")
    });
    assert_eq!(send("two"), "2\n");
    interrupt(running);
    fs::remove_dir_all(folder.paths().registers(ServerId(2))).unwrap();
    let running = up(&folder);
    assert_eq!(send("three"), "3\n");
    interrupt(running);
}
