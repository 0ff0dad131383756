//! Runs simulated clusters, seed after seed, and says what their checkers object to.
//!
//! Seeds are shared out to one thread a core; each run is one thread's. A failing seed is told with
//! the checker's sentence and the one command that shows it again. One seed in a hundred is run
//! twice: same seed, same trace.

#![forbid(unsafe_code)]

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Parser;
use simulator::engine::FaultCounts;
use simulator::plan::Wishes;
use simulator::{DEFAULT_STEPS, Options, Report, Section6, run};

/// So many seeds have one that is run twice.
const TWICE_EVERY: u64 = 100;
/// Failing seeds that are told of; the rest is counted.
const MOST_TOLD: u64 = 20;

/// Runs whole simulated clusters under every fault that a seed can draw.
#[derive(Parser)]
#[command(name = "simulator")]
struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 100, conflicts_with = "seed",
        value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    first_seed: u64,
    /// Run this one seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// How many servers may be faulty, 1 to 3; drawn if it is not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=3))]
    f: Option<u8>,
    /// For how many events the faults last at most
    #[arg(long, default_value_t = DEFAULT_STEPS)]
    steps: u64,
    /// Run without any fault
    #[arg(long)]
    calm: bool,
    /// Run with rings that hold a whole run, so that nothing is reclaimed
    #[arg(long)]
    large_rings: bool,
    /// Print the plan and every event of the seed
    #[arg(long, requires = "seed")]
    verbose: bool,
}

impl Args {
    fn options(&self) -> Options {
        let (f, calm, large_rings) = (self.f.map(usize::from), self.calm, self.large_rings);
        let wishes = Wishes { f, calm, large_rings };
        Options { wishes, steps: self.steps, verbose: self.verbose }
    }
}

/// What all seeds came to.
#[derive(Default)]
struct Summary {
    seeds: u64,
    failed: u64,
    compared: u64,
    time_us: u64,
    steps: u64,
    delivered: u64,
    worst: (u64, u64),
    sequencer_changes: u64,
    section6: Section6,
    faults: FaultCounts,
}

impl Summary {
    fn add(&mut self, report: Report, compared: bool, options: &Options) {
        self.seeds += 1;
        self.compared += u64::from(compared);
        self.time_us += report.time.0;
        self.steps += report.steps;
        self.delivered += report.delivered;
        self.sequencer_changes += report.sequencer_changes;
        self.section6 = self.section6.plus(report.section6);
        if let Some(recovered) = report.recovered {
            self.worst = self.worst.max((recovered.0, report.seed));
        }
        for (kind, count) in report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        if report.failures.is_empty() {
            return;
        }
        self.failed += 1;
        if self.failed <= MOST_TOLD {
            let (seed, why) = (report.seed, report.failures.join("\n  "));
            println!("seed {seed} failed:\n  {why}\n  again: {}", options.command(seed));
        }
    }

    fn print(&self, seconds: f64) {
        let hours = self.time_us as f64 / 3.6e9;
        let rate = self.seeds as f64 / seconds.max(1e-9);
        println!(
            "{} seeds, {} failed; {hours:.2} simulated hours, {} events, {} messages delivered; \
             {} sequencer changes; {rate:.1} seeds/s",
            self.seeds, self.failed, self.steps, self.delivered, self.sequencer_changes
        );
        let Section6 { stable, reclaimed, jumps, behind, restored } = self.section6;
        println!(
            "{stable} stable checkpoints, {reclaimed} records reclaimed, {jumps} streams jumped in; \
             {behind} guests lost their replica, {restored} started from a snapshot"
        );
        println!("faults injected:");
        for (kind, count) in &self.faults {
            println!("  {count:>10}  {kind}");
        }
        let (worst, seed) = self.worst;
        println!(
            "worst time to recover: {:.3} s of virtual time (seed {seed})",
            worst as f64 / 1e6
        );
        println!(
            "run twice and compared: {} seeds ({:.1} %)",
            self.compared,
            100.0 * self.compared as f64 / self.seeds.max(1) as f64
        );
    }
}

/// Runs a seed, some of them twice.
fn run_one(seed: u64, options: &Options) -> (Report, bool) {
    let mut report = run(seed, options);
    let twice = seed.is_multiple_of(TWICE_EVERY);
    if twice {
        // What was told once need not be told again.
        let again = run(seed, &Options { verbose: false, ..options.clone() });
        if again.hash != report.hash {
            report.failures.push("determinism: two runs of this seed differ".to_owned());
        }
    }
    (report, twice)
}

/// Bad input is one sentence; help is what was asked for.
fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    // What follows the first paragraph repeats the usage.
    let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("simulator: {what}; --help tells what can be said");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return report_usage(&error),
    };
    let (first, count) = args.seed.map_or((args.first_seed, args.seeds), |seed| (seed, 1));
    if first.checked_add(count - 1).is_none() {
        eprintln!("simulator: --first-seed {first} and --seeds {count} go past the last seed");
        return ExitCode::from(2);
    }
    let options = args.options();
    // An index and not a seed is handed out: the one after the last seed there is has no number.
    let (next, summary) = (AtomicU64::new(0), Mutex::new(Summary::default()));
    let (started, cores) =
        (Instant::now(), thread::available_parallelism().map_or(1, NonZero::get));
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let (report, compared) = run_one(first + index, &options);
                    let mut summary = summary.lock().expect("nobody panics while adding");
                    summary.add(report, compared, &options);
                }
            });
        }
    });
    let summary = summary.into_inner().expect("nobody panics while adding");
    summary.print(started.elapsed().as_secs_f64());
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
