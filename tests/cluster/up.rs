//! `difato cluster up`: all processes in the foreground, reported when they die, stopped by Ctrl-C,
//! and able to go on where they were.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::clients::Caller;
use crate::support::command::{Running, children_of, difato, runs};
use crate::support::permit::Permit;
use crate::support::{Builder, Folder, Role, path, until};

/// Starts `cluster up` and waits until it says that all serve.
pub(crate) fn up(folder: &Folder) -> Running {
    let mut up = difato(["cluster", "up", path(&folder.dir)]).spawn();
    until("`cluster up` says that all serve", || {
        assert!(!up.has_ended(), "{}\n{}", up.stdout(), up.stderr());
        up.stdout().contains("3 servers are up and serving (6 processes)")
    });
    up
}

/// Ctrl-C: it ends with exit code 0, and so do all its processes.
pub(crate) fn interrupt(up: Running) {
    let pids: Vec<i32> = children_of(up.pid()).into_iter().map(|(pid, _)| pid).collect();
    kill(Pid::from_raw(up.pid()), Signal::SIGINT).unwrap();
    let said = up.wait();
    assert_eq!(said.code, Some(0), "{said}");
    assert!(said.stdout.contains("all processes stopped"), "{said}");
    let left: Vec<_> = pids.into_iter().filter(|pid| runs(*pid)).collect();
    assert!(left.is_empty(), "{left:?} still run");
}

#[test]
fn up_reports_the_dead_stops_all_at_ctrl_c_and_goes_on_the_next_time() {
    let _permit = Permit::wait();
    let folder = Builder::new().init();
    let first = up(&folder);
    let send = |words: &[&str]| folder.command("send", &[&["--client", "0"], words].concat());
    assert_eq!(send(&["one", "two"]).done(), "1\n2\n");

    let children = children_of(first.pid());
    assert_eq!(children.len(), 6, "{children:?}");
    let is_guest_1 = |args: &str| args.contains("guest-replica") && args.contains("--id 1");
    let (victim, _) = children.iter().find(|(_, args)| is_guest_1(args)).unwrap();
    kill(Pid::from_raw(*victim), Signal::SIGKILL).unwrap();
    let wanted = format!("guest replica 1 (pid {victim}) was killed by signal 9 (SIGKILL)");
    until("the dead guest is reported", || first.stderr().contains(&wanted));
    assert_eq!(send(&["three"]).done(), "3\n");
    assert_eq!(children_of(first.pid()).len(), 5, "nothing is restarted");
    let second = difato(["cluster", "up", path(&folder.dir)]).run();
    assert_eq!(second.code, Some(2), "{second}");
    assert!(second.stderr.contains("is running"), "{second}");
    interrupt(first);

    let again = up(&folder);
    assert_eq!(send(&["four"]).done(), "4\n");
    let caller = Caller::new(&folder, 1);
    assert_eq!(caller.invoke("five").order.0, 5);
    let heard = folder.command("listen", &["--client", "2", "--count", "5"]).done();
    assert_eq!(heard, "1 0 one\n2 0 two\n3 0 three\n4 0 four\n5 1 five\n");
    interrupt(again);
}

#[test]
fn up_that_is_killed_leaves_no_process() {
    let _permit = Permit::wait();
    let folder = Builder::new().init();
    let mut up = up(&folder);
    let children = children_of(up.pid());
    assert_eq!(children.len(), 6);
    up.kill();
    until("its processes end", || children.iter().all(|(pid, _)| !runs(*pid)));
}

/// The CPU time of a process, in clock ticks.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn processes_that_look_for_work_before_they_sleep_serve_and_come_to_rest() {
    let cluster = Builder::new().set("spin_us", 500).start();
    let caller = Caller::new(&cluster.folder, 0);
    let orders = caller.invoke_many((0..200).map(|i| vec![i as u8]));
    assert_eq!(orders, (1..=200).collect::<Vec<_>>());
    // They look for a part of a millisecond after each thing that happens, which is not often now.
    let roles = [Role::Host, Role::Guest];
    let pids: Vec<_> =
        cluster.ids().flat_map(|id| roles.map(|role| cluster.pid(role, id))).collect();
    until("a second passes in which none of them spins all the time", || {
        let before: Vec<_> = pids.iter().map(|pid| ticks(*pid)).collect();
        std::thread::sleep(std::time::Duration::from_secs(1));
        pids.iter().zip(before).all(|(pid, before)| ticks(*pid) - before < 50)
    });
}
