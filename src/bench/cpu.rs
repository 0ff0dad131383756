//! CPU seconds that the processes of a measurement have used, by role.
//!
//! Read from the processes' CPU-time clocks: all threads of a process, those that have ended too, in
//! nanoseconds. `/proc/PID/stat` says the same sum in ticks of 10 ms, which is a large part of what a
//! slice of a load takes.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;

use super::own::Own;
use crate::supervisor::Role;

/// CPU seconds by role, or those for a million requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// All guests together; not known of a cluster that others started.
    pub(crate) guests: Option<f64>,
    /// All host agents together; likewise.
    pub(crate) host_agents: Option<f64>,
    /// This process: all clients together, and taking notes.
    pub(crate) load: f64,
}

impl Cpu {
    /// What it would be for a million requests.
    pub(crate) fn per_million(self, requests: u64) -> Cpu {
        let scale = |s: f64| (s * 1e6 / requests.max(1) as f64 * 100.0).round() / 100.0;
        Cpu {
            guests: self.guests.map(scale),
            host_agents: self.host_agents.map(scale),
            load: scale(self.load),
        }
    }
}

impl AddAssign for Cpu {
    fn add_assign(&mut self, more: Cpu) {
        let sum = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b);
        self.guests = sum(self.guests, more.guests);
        self.host_agents = sum(self.host_agents, more.host_agents);
        self.load += more.load;
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, earlier: Cpu) -> Cpu {
        let less = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a - b);
        Cpu {
            guests: less(self.guests, earlier.guests),
            host_agents: less(self.host_agents, earlier.host_agents),
            load: self.load - earlier.load,
        }
    }
}

/// Which processes to look at.
#[derive(Default)]
pub(crate) struct Meter {
    /// Guests and host agents, if we started them.
    servers: Option<(Vec<u32>, Vec<u32>)>,
}

impl Meter {
    /// This process and those of a cluster of its own that run now.
    pub(crate) fn of(own: &Own) -> Meter {
        Meter {
            servers: Some((
                own.supervisor.pids(Role::GuestReplica),
                own.supervisor.pids(Role::HostAgent),
            )),
        }
    }

    /// This process alone: the cluster is somebody else's.
    pub(crate) fn of_load() -> Meter {
        Meter::default()
    }

    /// What they have used since they started.
    pub(crate) fn read(&self) -> Result<Cpu> {
        let of = |pids: &Vec<u32>| -> Result<f64> { pids.iter().map(|pid| used_s(*pid)).sum() };
        let servers = self.servers.as_ref();
        Ok(Cpu {
            guests: servers.map(|(guests, _)| of(guests)).transpose()?,
            host_agents: servers.map(|(_, hosts)| of(hosts)).transpose()?,
            load: used_s(std::process::id())?,
        })
    }
}

/// The CPU seconds of one process so far.
fn used_s(pid: u32) -> Result<f64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32));
    let used = clock.and_then(ClockId::now);
    let used = used.with_context(|| format!("cannot tell the CPU time of process {pid}"))?;
    Ok(Duration::from(used).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_in_this_process_and_per_million() {
        let meter = Meter::of_load();
        let (before, start) = (meter.read().unwrap(), Instant::now());
        let mut used = Cpu::default();
        // Until the clock of this process has moved, however little of the machine it gets.
        while used.load < 0.03 && start.elapsed().as_secs() < 60 {
            std::hint::black_box((0..1000u64).sum::<u64>());
            used = meter.read().unwrap() - before;
        }
        assert!((0.03..1.0).contains(&used.load), "{used:?}");
        assert_eq!((used.guests, used.host_agents), (None, None));
        let sample = Cpu { guests: Some(1.0), host_agents: Some(0.5), load: 0.25 };
        let each = Cpu { guests: Some(100.0), host_agents: Some(50.0), load: 25.0 };
        assert_eq!(sample.per_million(10_000), each);
    }

    #[test]
    fn the_time_of_another_process_is_known_and_of_none_is_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let used = used_s(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((0.0..1.0).contains(&used), "{used}");
        // Linux gives no process such a number: they are below 2^22.
        assert!(used_s(1 << 23).is_err());
    }
}
