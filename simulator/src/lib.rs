//! Whole clusters of the production cores in one thread: `f` of 1, 2 or 3, virtual time, one seeded
//! generator, every fault.
//!
//! A seed draws a [`plan`]: how large the cluster is, which guests were broken into and what they
//! do, which clients lie, and which faults come how often. The [`engine`] then runs the production
//! hosts, registers, replicas and client sessions through it, event by event. When the faults are
//! over, everything that was asked of the cluster must be done within a bounded time. What happened
//! is a [`history`], and [`checkers`] say whether it may. The same seed is the same run, bit for
//! bit.
//!
//! | module | one job |
//! |---|---|
//! | [`plan`] | what a seed draws before its run |
//! | [`engine`] | the heap of events, and virtual time |
//! | `hosts`, `servers`, `network`, `crowd` | hosts and links, guests, payload network, clients |
//! | `faults`, `recovery`, [`phases`] | what goes wrong, and until when |
//! | [`guest`] | guests: correct ones, and those that were broken into |
//! | [`history`], [`checkers`] | what happened, and whether it may |
//! | [`recorded`] | histories of clusters of real processes, for the same checkers |
//! | [`memory`], [`clock`], [`cluster`], [`application`], `client` | the parts of all that |

#![forbid(unsafe_code)]

pub mod application;
pub mod checkers;
mod client;
pub mod clock;
pub mod cluster;
mod crowd;
pub mod engine;
mod faults;
pub mod guest;
pub mod history;
mod hosts;
pub mod memory;
mod network;
pub mod phases;
pub mod plan;
pub mod recorded;
mod records;
mod recovery;
mod servers;

pub use shared_registers::canary;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::Micros;

use checkers::Facts;
use engine::{FaultCounts, Sim};
use history::{Event, History, Said};
use plan::{Plan, Wishes};

/// What is asked of a run besides its seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is not to be drawn.
    pub wishes: Wishes,
    /// The faults last for at most so many events.
    pub steps: u64,
    /// Print every event.
    pub verbose: bool,
}

impl Options {
    /// The one command that runs a seed again as these options say.
    pub fn command(&self, seed: u64) -> String {
        let mut command = format!("cargo run --release -p simulator -- --seed {seed}");
        if let Some(f) = self.wishes.f {
            command.push_str(&format!(" --f {f}"));
        }
        if self.steps != DEFAULT_STEPS {
            command.push_str(&format!(" --steps {}", self.steps));
        }
        if self.wishes.calm {
            command.push_str(" --calm");
        }
        if self.wishes.large_rings {
            command.push_str(" --large-rings");
        }
        command
    }
}

/// Events that the faults last for at most, unless something else is asked for.
pub const DEFAULT_STEPS: u64 = 30_000;

impl Default for Options {
    fn default() -> Options {
        Options { wishes: Wishes::default(), steps: DEFAULT_STEPS, verbose: false }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// The trace: two runs of one seed have the same.
    pub hash: u64,
    /// What a checker objects to, or how the run panicked.
    pub failures: Vec<String>,
    /// The code under test panicked: no checker has seen anything of this run.
    pub panicked: bool,
    /// Virtual time.
    pub time: Micros,
    /// Events.
    pub steps: u64,
    /// How often each kind of fault was injected.
    pub faults: FaultCounts,
    /// How long after the faults everything was done.
    pub recovered: Option<Micros>,
    /// Messages that were delivered.
    pub delivered: u64,
    /// How many terms somebody left.
    pub sequencer_changes: u64,
    /// What became of records that a stable checkpoint covers (section 6).
    pub section6: Section6,
}

/// What section 6 had to do in runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section6 {
    /// Checkpoints that a correct replica read to be stable: different ones.
    pub stable: u64,
    /// Records of any stream that some host reclaimed.
    pub reclaimed: u64,
    /// Streams that a host jumped in.
    pub jumps: u64,
    /// Correct guests that lost their replica over reclaimed records.
    pub behind: u64,
    /// Snapshots that correct guests started from.
    pub restored: u64,
}

impl Section6 {
    fn of(history: &History) -> Section6 {
        let (mut this, mut stable) = (Section6::default(), BTreeSet::new());
        let mut most: Vec<u64> = Vec::new();
        for (_, event) in history.events() {
            match event {
                Event::Stable { checkpoint, .. } => drop(stable.insert(checkpoint)),
                Event::Jumped { .. } => this.jumps += 1,
                Event::FellBehind { .. } => this.behind += 1,
                Event::Restored { .. } => this.restored += 1,
                Event::Reclaimed { first, .. } => {
                    most.resize(first.len(), 0);
                    most.iter_mut()
                        .zip(first)
                        .for_each(|(most, first)| *most = (*most).max(*first));
                }
                _ => {}
            }
        }
        Section6 { stable: stable.len() as u64, reclaimed: most.iter().sum(), ..this }
    }

    /// Of these runs and those.
    pub fn plus(self, other: Section6) -> Section6 {
        Section6 {
            stable: self.stable + other.stable,
            reclaimed: self.reclaimed + other.reclaimed,
            jumps: self.jumps + other.jumps,
            behind: self.behind + other.behind,
            restored: self.restored + other.restored,
        }
    }
}

/// Runs one seed, and lets every checker look at what happened.
pub fn run(seed: u64, options: &Options) -> Report {
    guarded(seed, || run_unguarded(seed, options))
}

/// A panic of the code under test is a failure of this seed, and not the end of all others.
fn guarded(seed: u64, run: impl FnOnce() -> Report) -> Report {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        let why = format!("panicked: {}", text.unwrap_or_default());
        Report { seed, failures: vec![why], panicked: true, ..Report::default() }
    })
}

fn run_unguarded(seed: u64, options: &Options) -> Report {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plan = Plan::draw(&mut rng, &options.wishes);
    if options.verbose {
        println!("{plan:#?}");
    }
    let mut sim = Sim::new(plan.clone(), rng, History::new(options.verbose));
    let course = sim.run(options.steps);
    let facts = Facts::new(&plan, course.complaint);
    let failures = checkers::check(sim.history().events(), &facts);
    Report {
        seed,
        hash: sim.history().hash(),
        failures,
        panicked: false,
        time: sim.now(),
        steps: sim.steps(),
        faults: sim.fault_counts().clone(),
        recovered: course.recovered,
        sequencer_changes: sequencer_changes(sim.history()),
        section6: Section6::of(sim.history()),
        delivered: sim.servers.iter().map(|server| server.delivered.0).max().unwrap_or(0),
    }
}

fn sequencer_changes(history: &History) -> u64 {
    let change = |(_, event): &(Micros, Event)| match event {
        Event::Copied { record, .. } => match record.said {
            Said::Change(term) => Some(term.0 + 1),
            _ => None,
        },
        _ => None,
    };
    history.events().iter().filter_map(change).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_from_what_checkers_find() {
        let panicked = guarded(3, || panic!("an assertion of the code under test"));
        let why = "panicked: an assertion of the code under test".to_owned();
        assert_eq!((panicked.seed, panicked.panicked, panicked.failures), (3, true, vec![why]));
        let red = Report { failures: vec!["liveness: late".to_owned()], ..Report::default() };
        assert!(!guarded(3, || red).panicked);
    }
}
