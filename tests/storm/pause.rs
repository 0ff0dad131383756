//! A process that stands still (SIGSTOP) under load: the others go on, and do not grow, and it
//! catches up once it goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clients::Job;
use crate::process;
use crate::settings::setting;
use crate::support::{Builder, Role, reproduce_with};
use crate::world::World;

/// What is waited for comes within so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// So much may a process grow by while another stands still, in KiB: a link buffers 1 MiB, a
/// connection likewise, and guests keep [`RETAIN_BYTES`] of messages, which they have by then.
const GROWTH_KIB: u64 = 24 << 10;
const RETAIN_BYTES: u64 = 1 << 20;
/// A message that is kept takes no more, on average.
const KEPT_KIB: u64 = 2;
/// How often answers are counted in a pause: each time more must come.
const SLICE: Duration = Duration::from_secs(2);

const JOBS: [Job; 4] = [
    Job::Send { in_flight: 16, pause_ms: 2 },
    Job::Send { in_flight: 64, pause_ms: 2 },
    Job::Listen,
    Job::Listen,
];
/// The listener that stands still.
const LISTENER: usize = 3;

/// Guests keep so many bytes of messages for listeners.
fn world(retain_bytes: u64) -> World {
    let cluster = Builder::new()
        .clients(JOBS.len() as u32)
        .guest(process::guest)
        .set("retain_bytes", retain_bytes)
        .start();
    let mut world = World::new(cluster, setting("STORM_SEED", 1), &JOBS);
    world.calm();
    // Until guests keep as many messages as they may.
    world.await_that("the load has filled what guests keep", PATIENCE, |w| w.crew.last > 2500);
    world
}

fn seconds() -> Duration {
    let seconds: u64 = setting("STORM_PAUSE_SECONDS", 4);
    reproduce_with(format!("STORM_PAUSE_SECONDS={seconds} "));
    Duration::from_secs(seconds)
}

/// The memory of all processes of servers but one.
fn memory(world: &World, but: Option<(Role, u16)>) -> BTreeMap<(Role, u16), u64> {
    let roles = [Role::Host, Role::Guest].into_iter();
    let all = roles.flat_map(|role| world.cluster.ids().map(move |id| (role, id)));
    let weigh = |of: (Role, u16)| (of, world.anonymous_kib(of.0, of.1).expect("it runs"));
    all.filter(|of| Some(*of) != but).map(weigh).collect()
}

/// Lets time pass, in which answers keep coming and no process but one grows, except for `kept_kib`
/// for each of them.
fn pass(world: &mut World, time: Duration, but: Option<(Role, u16)>, kept_kib: u64) -> (u64, u64) {
    let (before, start) = (memory(world, but), world.crew.answers);
    let slices = (time.as_millis() / SLICE.as_millis()).max(1);
    for _ in 0..slices {
        let answers = world.crew.answers;
        world.pass(SLICE);
        // A sequencer that stands still is replaced meanwhile, on a slow machine slowly.
        world.await_that("answers keep coming", PATIENCE, |w| w.crew.answers > answers);
    }
    let after = memory(world, but);
    let growth = before.iter().map(|(of, kib)| (after[of].saturating_sub(*kib), *of)).max();
    let (most, of) = growth.expect("processes that run");
    let answers = world.crew.answers - start;
    let bound = GROWTH_KIB + kept_kib * answers;
    assert!(most <= bound, "{of:?} grew by {most} KiB in {time:?} and {answers} answers");
    (most, answers)
}

fn a_pause_of(role: Role, steps: u64) {
    let time = seconds();
    let mut world = world(RETAIN_BYTES);
    let n = world.cluster.n() as u64;
    let victim = ((world.term() + steps) % n) as u16;
    world.cluster.pause(role, victim);
    let (grown, answers) = pass(&mut world, time, Some((role, victim)), 0);
    let target = world.crew.last;
    world.cluster.resume(role, victim);
    world.await_that("it catches up", PATIENCE, |world| world.delivered(victim) >= target);
    println!("{role:?} {victim} stood still for {time:?}: {answers} answers, {grown} KiB more");
    world.dismiss_all();
}

#[test]
fn a_guest_that_stands_still_stops_nobody_and_catches_up() {
    a_pause_of(Role::Guest, 1);
}

#[test]
fn a_sequencers_guest_that_stands_still_stops_nobody_and_catches_up() {
    a_pause_of(Role::Guest, 0);
}

#[test]
fn a_host_that_stands_still_stops_nobody_and_catches_up() {
    a_pause_of(Role::Host, 1);
}

#[test]
fn a_sequencers_host_that_stands_still_stops_nobody_and_catches_up() {
    a_pause_of(Role::Host, 0);
}

#[test]
fn a_listener_that_stands_still_stops_nobody_and_catches_up() {
    let time = seconds();
    // Else it would be told that what it wants next is no longer kept.
    let mut world = world(512 << 20);
    world.crew.signal(LISTENER, Signal::SIGSTOP);
    let (grown, answers) = pass(&mut world, time, None, KEPT_KIB);
    println!("a listener stood still for {time:?}: {answers} answers, {grown} KiB more");
    let target = world.crew.last;
    world.crew.signal(LISTENER, Signal::SIGCONT);
    world.await_that("it catches up", PATIENCE, |world| world.crew.heard(LISTENER) >= target);
    world.dismiss_all();
}
