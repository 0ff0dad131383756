//! Whether what happened may happen. One file a checker; each reads the events alone, and its test
//! shows it a made-up history that it must reject.

use shared_registers::ids::Micros;

use crate::history::Event;
use crate::plan::Plan;

/// What checkers know besides the events.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How many servers there are.
    pub n: usize,
    /// How many of them may be faulty.
    pub f: usize,
    /// By client: it lies.
    pub lying: Vec<bool>,
    /// When the faults were over.
    pub healed: Micros,
    /// How long after it everything was done; none if it never was.
    pub recovered: Option<Micros>,
    /// What was not done at the end.
    pub complaint: Option<String>,
}

impl Facts {
    /// What a plan and a run's course say.
    pub fn new(
        plan: &Plan,
        healed: Micros,
        recovered: Option<Micros>,
        complaint: Option<String>,
    ) -> Facts {
        let lying = plan.clients.iter().map(|client| client.lying).collect();
        Facts { n: plan.n, f: plan.f, lying, healed, recovered, complaint }
    }
}

/// What a checker is.
pub type Checker = fn(&[(Micros, Event)], &Facts) -> Result<(), String>;

/// All checkers, by name.
pub const ALL: [(&str, Checker); 0] = [];

/// Asks every checker; returns what they object to.
pub fn check(events: &[(Micros, Event)], facts: &Facts) -> Vec<String> {
    let ask = |(name, checker): &(&str, Checker)| {
        checker(events, facts).err().map(|why| format!("{name}: {why}"))
    };
    ALL.iter().filter_map(ask).collect()
}
