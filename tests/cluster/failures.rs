//! Guests, hosts and clients are killed while clients send: the rest goes on, every answered
//! request stays in the one order, and two listeners hear the same.

use std::io::Write;

use crate::support::clients::{Answers, Traffic, one_order};
use crate::support::command::difato;
use crate::support::{Builder, Cluster, Role, SERVICE_GAP, path, until};

/// Answers before, and after, something is killed.
const SOME: usize = 100;
const IN_FLIGHT: usize = 8;

fn assert_in_order(cluster: &Cluster, answers: &Answers) {
    answers.assert_stand_in(&one_order(&cluster.folder, answers.last()));
}

fn assert_gap(answers: &Answers) {
    let gap = answers.longest_gap();
    eprintln!("longest gap: {gap:?}");
    assert!(gap < SERVICE_GAP, "no service for {gap:?}");
}

/// The guest that comes `steps` after the sequencer is killed.
fn a_guest_is_killed(steps: u16) {
    let mut cluster = Builder::new().start();
    let mut traffic = Traffic::start(&cluster, 0, IN_FLIGHT);
    traffic.await_more(SOME);
    let (before, victim) = (cluster.term(), cluster.after_sequencer(steps));
    cluster.kill(Role::Guest, victim);
    traffic.await_more(SOME);
    let answers = traffic.finish();
    if steps == 0 {
        assert!(cluster.term() > before, "the sequencer is gone and the term is {before}");
    }
    assert_gap(&answers);
    assert_in_order(&cluster, &answers);
    cluster.assert_all_run();
}

#[test]
fn the_order_goes_on_when_the_sequencers_guest_is_killed() {
    a_guest_is_killed(0);
}

#[test]
fn the_order_goes_on_when_the_guest_after_the_sequencer_is_killed() {
    a_guest_is_killed(1);
}

#[test]
fn the_order_goes_on_when_the_last_guest_is_killed() {
    a_guest_is_killed(2);
}

#[test]
fn of_five_guests_the_sequencer_and_its_successor_may_be_killed() {
    let mut cluster = Builder::new().f(2).start();
    let mut traffic = Traffic::start(&cluster, 0, IN_FLIGHT);
    traffic.await_more(SOME);
    let (before, sequencer, successor) =
        (cluster.term(), cluster.sequencer(), cluster.after_sequencer(1));
    cluster.kill(Role::Guest, sequencer);
    cluster.kill(Role::Guest, successor);
    traffic.await_more(SOME);
    let answers = traffic.finish();
    assert!(cluster.term() >= before + 2, "term {} after {before}", cluster.term());
    assert_in_order(&cluster, &answers);
    cluster.assert_all_run();
}

#[test]
fn the_order_goes_on_when_the_sequencers_host_is_killed() {
    let mut cluster = Builder::new().start();
    let mut traffic = Traffic::start(&cluster, 0, IN_FLIGHT);
    traffic.await_more(SOME);
    let (before, victim) = (cluster.term(), cluster.sequencer());
    cluster.kill(Role::Host, victim);
    traffic.await_more(SOME);
    let answers = traffic.finish();
    assert!(cluster.term() > before, "the sequencer's host is gone and the term is {before}");
    assert_gap(&answers);
    assert_in_order(&cluster, &answers);
    cluster.assert_all_run();
    // Its guest still answers, and says that it is cut off.
    let status = cluster.folder.command("status", &["--json"]).done();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let server = &status[usize::from(victim)];
    assert_eq!(server["up"], false, "{server}");
    assert!(server["why"].as_str().unwrap().contains("host agent"), "{server}");
}

#[test]
fn a_client_that_is_killed_in_mid_stream_disturbs_nobody() {
    let mut cluster = Builder::new().start();
    let mut traffic = Traffic::start(&cluster, 0, IN_FLIGHT);
    traffic.await_more(SOME);
    let send = ["send", "--dir", path(&cluster.folder.dir), "--client", "1", "--lines"];
    let (mut victim, mut lines) = difato(send).spawn_fed();
    // It is fed for as long as it lives, and so dies with orders under way.
    let feeder = std::thread::spawn(move || {
        let mut count = 0u32;
        while writeln!(lines, "line {count}").is_ok() {
            count += 1;
        }
    });
    until("its messages are answered", || victim.stdout().lines().count() > 2 * SOME);
    victim.kill();
    feeder.join().unwrap();
    traffic.await_more(3 * SOME);
    let answers = traffic.finish();
    assert_gap(&answers);
    let order = one_order(&cluster.folder, answers.last());
    answers.assert_stand_in(&order);
    let theirs = order.iter().filter(|message| message.client.0 == 1);
    let theirs: Vec<_> = theirs.map(|m| String::from_utf8_lossy(&m.payload).into_owned()).collect();
    let wanted: Vec<_> = (0..theirs.len()).map(|i| format!("line {i}")).collect();
    assert!(!theirs.is_empty() && theirs == wanted, "what it sent is not there in its order");
    cluster.assert_all_run();
}
