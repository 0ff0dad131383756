//! The storm itself.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::clients::Job;
use crate::process;
use crate::registers::Streams;
use crate::schedule;
use crate::settings::setting;
use crate::support::{Builder, Role, reproduce_with};
use crate::world::World;

/// Room for each server's records: so little that rings wrap around, and hosts that were away jump.
const RING_BYTES: u64 = 2 << 20;
/// Such a ring has to hold several of the largest records.
const MAX_PAYLOAD_BYTES: u64 = 1 << 16;
/// Times of faults in a round, each with a calm after it.
const PHASES: u32 = 2;

/// The clients of a round. The last two listen.
const JOBS: [Job; 5] = [
    Job::Send { in_flight: 1, pause_ms: 4 },
    Job::Send { in_flight: 16, pause_ms: 12 },
    Job::Send { in_flight: 64, pause_ms: 8 },
    Job::Listen,
    Job::Listen,
];

#[test]
fn a_storm_from_a_seed() {
    let seed: u64 = setting("STORM_SEED", 1);
    let seconds = Duration::from_secs(setting("STORM_SECONDS", 0));
    let time = Duration::from_secs(setting("STORM_ROUND_SECONDS", 6));
    let only: u16 = setting("STORM_F", 0);
    let start = Instant::now();
    for round in 0.. {
        let least = if only == 0 { 2 } else { 1 };
        if round >= least && start.elapsed() >= seconds {
            break;
        }
        let f = if only == 0 { 1 + (round % 2) as u16 } else { only };
        run_round(seed.wrapping_add(round), f, time);
    }
}

fn run_round(seed: u64, f: u16, time: Duration) {
    let ring_bytes: u64 = setting("STORM_RING_BYTES", RING_BYTES);
    let seconds = time.as_secs();
    reproduce_with(format!(
        "STORM_SEED={seed} STORM_F={f} STORM_ROUND_SECONDS={seconds} STORM_RING_BYTES={ring_bytes} "
    ));
    let start = Instant::now();
    let n = 2 * f + 1;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let cluster = Builder::new()
        .f(f)
        .clients(JOBS.len() as u32)
        .guest(process::guest)
        .set("ring_bytes", ring_bytes)
        .set("max_payload_bytes", MAX_PAYLOAD_BYTES)
        .set("retain_bytes", 64 << 20)
        .set("change_cap_ms", 2000)
        .start();
    let mut world = World::new(cluster, seed, &JOBS);
    world.calm();
    for phase in 1..=PHASES {
        world.shake();
        let (acts, end) = (schedule::draw(&mut rng, n, time), schedule::everything(&mut rng, n));
        let begin = Instant::now();
        // A slow machine gets less far in its schedule.
        for act in acts.iter().take_while(|_| begin.elapsed() < time / PHASES) {
            world.perform(act);
        }
        if phase == PHASES {
            world.perform(&end);
        }
        world.calm();
    }
    world.finish();
    let figures = figures(&world);
    let objections = world.into_recorded().check();
    println!("seed {seed}, f = {f}, {:.1} s: {figures}", start.elapsed().as_secs_f64());
    assert!(objections.is_empty(), "{}", objections.join("\n"));
}

fn figures(world: &World) -> String {
    let crew = &world.crew;
    format!(
        "{} requests, {} answers, {} delivered, term {}, {:?}; longest wait {} ms, longest \
         catching up {} ms; guests to {} MiB, hosts to {} MiB; {} checkpoints, {} of {} \
         records reclaimed, {} jumped over",
        crew.requests,
        crew.answers,
        crew.last,
        world.term(),
        world.deeds,
        crew.longest.0 / 1000,
        world.caught_up.0 / 1000,
        world.most_memory(Role::Guest) >> 10,
        world.most_memory(Role::Host) >> 10,
        world.streams.iter().map(Streams::checkpoints).max().unwrap_or(0),
        world.streams.iter().map(Streams::reclaimed).max().unwrap_or(0),
        world.streams[0].lengths().iter().sum::<usize>(),
        world.streams.iter().map(|streams| streams.jumped).sum::<usize>()
    )
}
