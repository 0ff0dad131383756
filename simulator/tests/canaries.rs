//! Canaries: with one rule broken, some seed must turn a checker red. A canary that survives all
//! its seeds is a failure of the simulator: it would not see that rule broken by accident either.
//!
//! `cargo test --release -p simulator --features canaries --test canaries` prints which checker saw
//! each broken rule, and in which seed: each hunt begins with seed 1, so that is also how many
//! seeds it took. Names of canaries after `--` run those alone.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use simulator::canary::{self, Canary};
use simulator::{Options, run};

/// Seeds that a canary may survive.
const SEEDS: u64 = 2500;
/// Seeds that must stay green with every rule kept.
const GREEN: u64 = 100;

/// What came of a canary.
struct Outcome {
    /// The seed that saw it; none if all were green.
    seed: Option<u64>,
    /// The checker that saw it, and what it said.
    seen: String,
}

impl Outcome {
    fn row(&self, canary: Canary) -> String {
        let name = format!("{canary:?}");
        let seen: String = self.seen.replace('\n', " ").chars().take(100).collect();
        let (seed, seen) = match self.seed {
            Some(seed) => (seed.to_string(), seen),
            None => ("none".to_owned(), format!("SURVIVED {SEEDS} seeds")),
        };
        format!("{name:<20} {:<5} {seed:>5}  {seen}", &name[..2])
    }
}

fn hunt(canary: Canary) -> Outcome {
    for seed in 1..=SEEDS {
        let report = canary::with(canary, || run(seed, &Options::default()));
        // A seed that is red with every rule kept says nothing of this one.
        if let Some(first) = report.failures.first()
            && run(seed, &Options::default()).failures.is_empty()
        {
            return Outcome { seed: Some(seed), seen: first.clone() };
        }
    }
    Outcome { seed: None, seen: String::new() }
}

/// Runs `each` on all of `items`, one thread a core.
fn share<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> BTreeMap<usize, R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some((i, item)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    items.get(i).map(|item| (i, item))
                } {
                    let result = each(item);
                    done.lock().expect("nobody panics while it is held").insert(i, result);
                }
            });
        }
    });
    done.into_inner().expect("nobody panics while it is held")
}

fn main() -> ExitCode {
    // Code with a broken rule may panic; the seed's report says so.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asked = |canary: &Canary| wanted.is_empty() || wanted.contains(&format!("{canary:?}"));
    let canaries: Vec<Canary> = Canary::ALL.iter().copied().filter(asked).collect();
    println!("{:<20} {:<5} {:>5}  checker that saw it", "canary", "rule", "seed");
    let outcomes = share(&canaries, |canary| {
        let outcome = hunt(*canary);
        // Told as it comes: a reader need not wait for the slowest.
        println!("{}", outcome.row(*canary));
        outcome
    });
    let survivors = outcomes.values().filter(|outcome| outcome.seed.is_none()).count();
    let seeds: Vec<u64> = (1..=GREEN).collect();
    let reports = share(&seeds, |seed| run(*seed, &Options::default()));
    let red = reports.values().filter(|report| !report.failures.is_empty());
    let red: Vec<_> = red.map(|report| (report.seed, &report.failures)).collect();
    println!("with every rule kept: {GREEN} seeds, {} red {red:?}", red.len());
    println!("{survivors} canaries survived; {:.1} s", started.elapsed().as_secs_f64());
    if survivors == 0 && red.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
