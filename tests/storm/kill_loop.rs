//! A host agent that is killed again and again under load, with its file intact (R6): it goes on
//! where it was, and no record of its stream is lost or changed.

use std::time::Duration;

use simulator::recorded::Bytes;

use crate::clients::Job;
use crate::process;
use crate::registers::Streams;
use crate::settings::setting;
use crate::support::{Builder, Role, reproduce_with};
use crate::world::World;

/// What is waited for comes within so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records that a stream has to gain between two kills.
const RECORDS: usize = 4;
const VICTIM: u16 = 1;

const JOBS: [Job; 3] = [
    Job::Send { in_flight: 8, pause_ms: 3 },
    Job::Send { in_flight: 32, pause_ms: 6 },
    Job::Listen,
];

/// A stream that does not begin with what was known of it.
fn lost_or_changed(known: &[Vec<Bytes>], again: &[Vec<Bytes>]) -> Option<usize> {
    known.iter().zip(again).position(|(known, again)| !again.starts_with(known))
}

#[test]
fn a_lost_and_a_changed_record_are_found() {
    let stream = |records: &[&str]| -> Vec<Bytes> {
        records.iter().map(|record| record.as_bytes().into()).collect()
    };
    let known = [stream(&["a"]), stream(&["b", "c"])];
    let judge = |again: &[&str]| lost_or_changed(&known, &[stream(&["a"]), stream(again)]);
    assert_eq!(judge(&["b", "c"]), None);
    assert_eq!(judge(&["b", "c", "d"]), None);
    assert_eq!(judge(&["b"]), Some(1));
    assert_eq!(judge(&["b", "d", "c"]), Some(1));
}

#[test]
fn a_host_that_is_killed_many_times_continues_its_stream() {
    let kills: usize = setting("STORM_KILLS", 15);
    let seed: u64 = setting("STORM_SEED", 1);
    reproduce_with(format!("STORM_KILLS={kills} STORM_SEED={seed} "));
    let cluster = Builder::new()
        .clients(JOBS.len() as u32)
        .guest(process::guest)
        .set("retain_bytes", 64 << 20)
        .start();
    let mut world = World::new(cluster, seed, &JOBS);
    world.calm();
    world.shake();
    let stream = usize::from(VICTIM);
    for kill in 1..=kills {
        // Records enter while it is killed: its stream grew just now, and clients go on.
        let before = world.streams[stream].records[stream].len();
        world.await_that(&format!("its stream grows before kill {kill}"), PATIENCE, |world| {
            world.streams[stream].records[stream].len() >= before + RECORDS
        });
        world.cluster.kill(Role::Host, VICTIM);
        // What its file showed its guest until it died.
        world.streams[stream].read();
        let known = world.streams[stream].records.clone();
        world.cluster.start(Role::Host, VICTIM);
        let now = known[stream].len();
        world.await_that(&format!("its stream goes on after kill {kill}"), PATIENCE, |world| {
            world.streams[stream].records[stream].len() > now
        });
        // Its file, read anew from the first record.
        let mut again = Streams::attach(&world.cluster, VICTIM);
        again.read();
        let harmed = lost_or_changed(&known, &again.records);
        assert_eq!(harmed, None, "kill {kill}: records of this stream were lost or changed");
    }
    world.calm();
    world.finish();
    let records = world.streams[stream].records[stream].len();
    let requests = world.crew.requests;
    let objections = world.into_recorded().check();
    assert!(objections.is_empty(), "{}", objections.join("\n"));
    println!("{kills} kills of a host: its stream has {records} records, {requests} requests");
}
