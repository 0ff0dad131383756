//! Disks that are full or broken, and files that are cut short under their process: what can be
//! known is said before the agent begins, and what cannot ends it with a sentence.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use shared_registers::cluster::Cluster;
use shared_registers::host_side::{HostRegisters, ReopenError};
use shared_registers::ids::ServerId;

use crate::processes::{Folder, Guest, refusal};
use crate::world::{World, accept};

/// The files take as much of their disk as they can ever need.
fn assert_room(folder: &Folder) {
    let id = ServerId(0);
    let geometry = Cluster::load(&folder.paths).unwrap().geometry(id);
    let files = [
        (folder.paths.read_file(id), geometry.read_bytes()),
        (folder.paths.write_file(id), geometry.write_bytes()),
    ];
    for (path, bytes) in files {
        let file = fs::metadata(&path).unwrap();
        assert!(file.blocks() * 512 >= bytes, "{} has holes", path.display());
    }
}

#[test]
fn register_files_have_all_their_room_before_the_first_record() {
    let folder = Folder::new();
    let agent = folder.start(0);
    let mut guest = Guest::attach(&folder, 0);
    assert_room(&folder);
    guest.write(&accept(1));
    guest.await_records(0, 1);
    agent.stop(Signal::SIGKILL);
    // What is made zero at a start with durability `disk`, or to recover, keeps its room.
    let path = folder.paths.cluster_toml();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("[limits]", "[limits]\ndurability = \"disk\"", 1)).unwrap();
    for _ in 0..2 {
        let agent = folder.start(0);
        drop(Guest::attach(&folder, 0));
        assert_room(&folder);
        agent.stop(Signal::SIGKILL);
    }
    let file = OpenOptions::new().write(true).open(folder.paths.read_file(ServerId(0))).unwrap();
    file.set_len(100_000).unwrap();
    let _agent = folder.start(0);
    drop(Guest::attach(&folder, 0));
    assert!(folder.log(0).contains("host agent 0 recovers"), "{}", folder.log(0));
    assert_room(&folder);
}

#[test]
fn a_disk_without_room_is_one_sentence_at_the_start() {
    let folder = Folder::new();
    let registers = folder.paths.registers(ServerId(0));
    let agent = folder.command(0);
    // A small disk of the agent's own.
    let script = "mount -t tmpfs -o size=6m none \"$0\" && touch \"$0/fresh\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(&registers);
    command.arg(agent.get_program()).args(agent.get_args());
    let allowed = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: this user may not make mount namespaces, so there is no full disk");
        return;
    }
    let said = refusal(command);
    assert!(said.starts_with("cannot use "), "{said}");
    let expected = "MiB on the disk (No space left on device (os error 28)); mend that and start \
                    again";
    assert!(said.contains("there must be room for its") && said.ends_with(expected), "{said}");
}

#[test]
fn a_file_that_is_cut_short_under_its_host_ends_it_with_a_sentence() {
    let folder = Folder::new();
    let agent = folder.start(0);
    drop(Guest::attach(&folder, 0));
    let file = OpenOptions::new().write(true).open(folder.paths.read_file(ServerId(0))).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(agent.ends(), Some(1));
    let log = folder.log(0);
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("a mapped register file has lost its room on the disk"), "{log}");
}

/// Its owner is QEMU's user too, who may do this in a guest that was broken into.
#[test]
fn a_write_file_of_another_size_is_given_its_own_again() {
    let folder = Folder::new();
    let agent = folder.start(0);
    let mut guest = Guest::attach(&folder, 0);
    guest.write(&accept(1));
    guest.await_records(0, 1);
    agent.stop(Signal::SIGTERM);
    drop(guest);
    let path = folder.paths.write_file(ServerId(0));
    let bytes = fs::metadata(&path).unwrap().len();
    for (records, other) in (1..).zip([0, 4096, 100_000, 2 * bytes]) {
        OpenOptions::new().write(true).open(&path).unwrap().set_len(other).unwrap();
        let agent = folder.start(0);
        let mut guest = Guest::attach(&folder, 0);
        guest.await_records(0, records);
        guest.written = records as u64;
        guest.write(&accept(records as u64 + 1));
        guest.await_records(0, records + 1);
        assert_room(&folder);
        assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
        agent.stop(Signal::SIGTERM);
    }
    // A host that finds the read file to be another's does not touch this one either.
    fs::copy(folder.paths.read_file(ServerId(0)), folder.paths.registers(ServerId(1)).join("read"))
        .unwrap();
    let other = folder.paths.write_file(ServerId(1));
    fs::write(&other, "short").unwrap();
    let said = refusal(folder.command(1));
    assert!(said.contains("belongs to another server, cluster or configuration"), "{said}");
    assert_eq!(fs::metadata(&other).unwrap().len(), 5);
}

/// R6: what was not synced reached nobody, and is not gone on with after a start on the same boot,
/// whose memory may have what the disk has not.
#[test]
fn a_disk_that_fails_ends_a_durable_host_and_the_others_tell_it_where_it_was() {
    let mut world = World::durable(3, true);
    world.connect_all();
    world.write(0, &accept(1));
    world.settle();
    world.files(0).0.broken.store(true, Ordering::Relaxed);
    world.write(0, &accept(2));
    let sent = catch_unwind(AssertUnwindSafe(|| world.send(0, 1)));
    let said = *sent.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("cannot be synced to its disk (no such sector)"), "{said}");
    assert!(said.contains("mend the disk, remove the folder"), "{said}");
    world.crash(0);
    assert_eq!((world.copied(1, 0), world.exposed(1)[0]), (1, 1));
    let (read, write) = world.files(0);
    read.broken.store(false, Ordering::Relaxed);
    let again = HostRegisters::reopen(world.geometry(0), read, write);
    assert_eq!(again.err(), Some(ReopenError::Recovering));
    // As it is told to: with nothing.
    world.lose(0);
    world.join(0);
    world.exchanges(4);
    assert_eq!((world.waits(0), world.copied(0, 0)), (None, 1));
}
