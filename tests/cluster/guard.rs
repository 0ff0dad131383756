//! `difato guard`: guests that are replaced by clean ones, in turns and when convicted, while service
//! goes on.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use shared_registers::ids::{ServerId, Term};
use shared_registers::record::{Body, Change, Reason};

use crate::attacker::{Attacker, Fate, HandClient, Taken, encoded};
use crate::support::clients::{Caller, Traffic, one_order};
use crate::support::command::{DIFATO, children_of, difato, runs};
use crate::support::{Builder, Cluster, Role, path, until};

const PERIOD: &str = "6s";
/// Of three servers.
const HALF_TURN: Duration = Duration::from_secs(1);
/// Nobody waits longer for an answer while guests are replaced: two time-outs, and what a busy
/// machine adds.
const PAUSE: Duration = Duration::from_secs(5);

fn guard(dir: &Path, id: u16, settings: &[&str], guest: &[&str]) -> Command {
    let mut command = Command::new(DIFATO);
    command.args(["guard", "--dir", path(dir), "--id", &id.to_string()]).args(settings);
    command.args(["--supervised-by", &std::process::id().to_string()]);
    command.arg("--").args(guest);
    command
}

fn rejuvenated_every(period: &str, dir: &Path, id: u16) -> Command {
    let server = id.to_string();
    let guest = [DIFATO, "guest-replica", "--dir", path(dir), "--id", &server];
    guard(dir, id, &["--rejuvenate", period], &guest)
}

fn rejuvenated(dir: &Path, id: u16) -> Command {
    rejuvenated_every(PERIOD, dir, id)
}

fn kill(pid: i32) {
    signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn log(cluster: &Cluster, id: u16) -> String {
    let log = cluster.folder.paths().logs().join(format!("guest-replica-{id}.log"));
    fs::read_to_string(log).unwrap()
}

fn count(cluster: &Cluster, id: u16, what: &str) -> usize {
    log(cluster, id).matches(what).count()
}

#[test]
fn every_guest_is_replaced_twice_under_load_and_no_request_is_lost() {
    let mut cluster = Builder::new().guest(rejuvenated).start();
    let mut traffic = Traffic::start_large(&cluster.folder, 0, 8, 256);
    for times in 1..=2 {
        for id in cluster.ids() {
            until(&format!("guest {id} is replaced, and back, {times} times"), || {
                count(&cluster, id, "is replaced by a clean one: it is its turn") >= times
                    && count(&cluster, id, "is back at work") >= times
            });
        }
    }
    traffic.await_more(50);
    let answers = traffic.finish();
    answers.assert_stand_in(&one_order(&cluster.folder, answers.last()));
    let gap = answers.longest_gap();
    println!("longest pause in {} answers: {} ms", answers.last(), gap.as_millis());
    assert!(gap < PAUSE, "no answer for {gap:?}");
    cluster.assert_all_run();
}

/// Who is at work is seen by what it writes, and without requests nobody writes.
#[test]
fn guests_of_an_idle_cluster_are_not_replaced_until_there_is_one_request_each_half_turn() {
    // A guest that suspects the sequencer alone writes no more until the others follow.
    let patient = Builder::new().set("change_ms", 15_000).set("host_down_ms", 15_000);
    let cluster = patient.guest(rejuvenated).start();
    let replaced = |id| count(&cluster, id, "is replaced by a clean one: it is its turn");
    let missed = |id| count(&cluster, id, "was not replaced in its turn");
    let seen = || cluster.ids().map(|id| (replaced(id), missed(id))).collect::<Vec<_>>();
    let mut before = seen();
    until("a whole period passes in which none is replaced", || {
        let now = seen();
        let one_was = now.iter().zip(&before).any(|(now, before)| now.0 > before.0);
        let all_missed = now.iter().zip(&before).all(|(now, before)| now.1 > before.1);
        if one_was {
            before = now;
        }
        all_missed && !one_was
    });
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = Vec::new();
    until("all are replaced", || {
        orders.push(caller.invoke("still here").order.0);
        std::thread::sleep(HALF_TURN.mul_f64(0.9));
        cluster.ids().all(|id| replaced(id) > 0 && count(&cluster, id, "is back at work") > 0)
    });
    assert!(orders.iter().copied().eq(1..=orders.len() as u64), "{orders:?}");
}

/// Long enough that a guest can be away for a while and still have written lately.
const LONG_TURN: Duration = Duration::from_secs(30);

fn rejuvenated_slowly(dir: &Path, id: u16) -> Command {
    rejuvenated_every("90s", dir, id)
}

#[test]
fn while_others_order_without_one_guest_no_other_is_replaced_until_it_is_back() {
    let mut cluster = Builder::new().guest(rejuvenated_slowly).start();
    let wall = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // The next turn, or the one after that, if the next begins too soon.
    let silence = Duration::from_secs(13);
    let turn = (wall() + silence + Duration::from_secs(1)).as_secs() / LONG_TURN.as_secs() + 1;
    let begins = LONG_TURN * turn as u32;
    let due = (turn % 3) as u16;
    let caller = Caller::new(&cluster.folder, 0);
    let serve_until = |what: &str, at: Duration| {
        until(what, || {
            caller.invoke("still here");
            wall() >= at
        });
    };
    serve_until("the turn is not far", begins - silence * 2);
    serve_until("the turn is near", begins - silence);
    // Not the sequencer: nobody is to wait.
    let gone = cluster.ids().find(|id| *id != due && *id != cluster.sequencer()).unwrap();
    cluster.kill(Role::Guest, gone);
    serve_until("the turn has begun", begins + Duration::from_secs(2));
    assert_eq!(count(&cluster, due, "is replaced"), 0, "{}", log(&cluster, due));
    cluster.start(Role::Guest, gone);
    until("all are back, and the one whose turn it is is replaced", || {
        caller.invoke("still here");
        count(&cluster, due, "is replaced by a clean one: it is its turn") == 1
    });
    assert!(wall() < begins + LONG_TURN / 2, "in this turn");
    until("it is back", || {
        caller.invoke("still here");
        count(&cluster, due, "is back at work") == 2
    });
    cluster.assert_all_run();
}

#[test]
fn a_guard_whose_read_file_is_cut_short_under_it_says_so() {
    let mut cluster = Builder::new().start();
    let mut guard = difato(["guard", "--dir", path(&cluster.folder.dir), "--id", "1"])
        .args(["--", "sleep", "1000"])
        .spawn();
    until("it guards", || !children_of(guard.pid()).is_empty());
    assert!(!guard.has_ended());
    cluster.kill(Role::Guest, 1);
    cluster.kill(Role::Host, 1);
    let file = cluster.folder.paths().read_file(ServerId(1));
    OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap();
    let said = guard.wait();
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stderr.contains("has lost its room on the disk"), "{said}");
}

/// In the first life of server 0's guest there is somebody left when the guest itself is killed: so it
/// is not started again, and the test takes its place.
fn broken_in_once(dir: &Path, id: u16) -> Command {
    let server = id.to_string();
    let once = "if mkdir \"$0\" 2>/dev/null; then \"$@\"; exec sleep 1000; else exec \"$@\"; fi";
    let first = dir.join(format!("first-{id}"));
    if id != 0 {
        fs::create_dir(&first).unwrap();
    }
    let guest = [DIFATO, "guest-replica", "--dir", path(dir), "--id", &server];
    let guest = [&["sh", "-c", once, path(&first)], &guest[..]].concat();
    guard(dir, id, &[], &guest)
}

#[test]
fn a_sequencer_that_proposes_what_it_must_not_is_replaced_at_once() {
    let mut cluster = Builder::new().guest(broken_in_once).start();
    let first = children_of(cluster.pid(Role::Guest, 0))[0].0;
    kill(children_of(first)[0].0);
    let mut attacker = Attacker::attach(&cluster, 0);
    let lives_before = count(&cluster, 0, "all is read; at work");
    let client = HandClient::new(&cluster, 2);
    let order = Taken::of(&client.order(&cluster, 1, "sent"), 0);
    let first = attacker.proposal(0, 1, std::slice::from_ref(&order));
    assert_eq!(attacker.write(0, &first), Fate::Admitted);
    assert_eq!(count(&cluster, 0, "is replaced"), 0, "{}", log(&cluster, 0));
    // It leaves the term itself at once: others that hear of that first convict it all the same.
    let gap = attacker.proposal(0, 7, &[order]);
    let change = Change { term: Term(0), reason: Reason::Batch };
    assert_eq!(attacker.write_two(&gap, &encoded(&Body::Change(change))), Fate::Admitted);
    until("the guard replaces its guest", || count(&cluster, 0, "others convict it") == 1);
    drop(attacker);
    until("the clean one is at work", || count(&cluster, 0, "all is read; at work") > lives_before);
    let caller = Caller::new(&cluster.folder, 1);
    let last = caller.invoke_all("honest", 5)[4];
    cluster.ids().for_each(|id| cluster.await_delivered(id, last));
    assert_eq!(count(&cluster, 0, "is replaced"), 1, "{}", log(&cluster, 0));
    assert!((1..3).all(|id| count(&cluster, id, "is replaced") == 0));
    cluster.assert_all_run();
}

#[test]
fn a_guest_that_ends_by_itself_is_started_again_and_ends_with_its_guard() {
    let mut cluster = Builder::new().guest(rejuvenated_hardly_ever).start();
    let guest =
        |cluster: &Cluster| children_of(cluster.pid(Role::Guest, 1)).first().map(|(pid, _)| *pid);
    let first = guest(&cluster).unwrap();
    kill(first);
    until("it is started again", || guest(&cluster).is_some_and(|pid| pid != first));
    assert_eq!(count(&cluster, 1, "ended by itself"), 1);
    until("it serves", || cluster.ask()[1].is_ok());
    let second = guest(&cluster).unwrap();
    cluster.kill(Role::Guest, 1);
    until("it ends with its guard", || !runs(second));
    cluster.start(Role::Guest, 1);
    until("it serves again", || cluster.ask()[1].is_ok());
    let third = guest(&cluster).unwrap();
    cluster.stop(Role::Guest, 1);
    until("it stops with its guard", || !runs(third));
}

fn rejuvenated_hardly_ever(dir: &Path, id: u16) -> Command {
    rejuvenated_every("30d", dir, id)
}

#[test]
fn what_a_guard_cannot_do_it_says_in_a_sentence() {
    let folder = Builder::new().init();
    let dir = path(&folder.dir);
    let say = |args: &[&str]| {
        let said = difato(["guard", "--dir", dir]).args(args.iter().copied()).run();
        assert_eq!(said.code, Some(2), "{said}");
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        said.stderr
    };
    let short = say(&["--id", "0", "--rejuvenate", "2s", "--", "true"]);
    assert!(short.contains("it must be at least 3s"), "{short}");
    let odd = say(&["--id", "0", "--rejuvenate", "soon", "--", "true"]);
    assert!(odd.contains("soon"), "{odd}");
    let who = say(&["--id", "9", "--", "true"]);
    assert!(who.contains("server 9"), "{who}");
    let nothing = say(&["--id", "0"]);
    assert!(nothing.contains("COMMAND"), "{nothing}");
    let args = ["guard", "--dir", dir, "--id", "0", "--", "/no/such/guest"];
    let said = difato(args).run();
    assert_eq!(said.code, Some(2), "{said}");
    assert!(said.stderr.contains("cannot run /no/such/guest"), "{said}");
}
