//! What was measured of one kind of load, possibly in several slices taken at different times.

use std::time::Duration;

use super::cpu::Cpu;
use super::payload::Shape;
use super::table::{Latencies, Row};

/// The scenario of a row that is nothing special: requests on a cluster as it is.
pub(crate) const CLUSTER: &str = "cluster";

/// The sum of all slices.
pub(crate) struct Tally {
    shape: Shape,
    clients: usize,
    outstanding: usize,
    latencies: Latencies,
    elapsed: Duration,
    cpu: Option<Cpu>,
    /// The median of each slice in microseconds.
    pub(crate) p50s_us: Vec<f64>,
}

impl Tally {
    /// Nothing yet, of requests of this shape, so many under way at a time for each client.
    pub(crate) fn new(shape: Shape, clients: usize, outstanding: usize) -> Tally {
        Tally {
            shape,
            clients,
            outstanding,
            latencies: Latencies::new(),
            elapsed: Duration::ZERO,
            cpu: None,
            p50s_us: Vec::new(),
        }
    }

    /// One more slice: its latencies, how long all of it took, and the CPU time if that is known.
    pub(crate) fn add(&mut self, latencies: &Latencies, elapsed: Duration, cpu: Option<Cpu>) {
        self.latencies.merge(latencies);
        self.elapsed += elapsed;
        match (&mut self.cpu, cpu) {
            (Some(sum), Some(more)) => *sum += more,
            (sum, more) => *sum = more,
        }
        self.p50s_us.push(latencies.quantile_us(0.5));
    }

    /// All slices as one row.
    pub(crate) fn row(&self, scenario: &str) -> Row {
        let requests = self.latencies.count();
        let per_s = requests as f64 / self.elapsed.as_secs_f64().max(1e-9);
        let mb_per_s = per_s * f64::from(self.shape.request) / 1e6;
        Row {
            scenario: scenario.into(),
            payload: self.shape.to_string(),
            requests,
            clients: self.clients,
            outstanding: self.outstanding,
            mean_us: tenths(self.latencies.mean_us()),
            p50_us: self.latencies.quantile_us(0.5),
            p99_us: self.latencies.quantile_us(0.99),
            max_us: self.latencies.quantile_us(1.0),
            requests_per_s: tenths(per_s),
            payload_mb_per_s: tenths(mb_per_s),
            cpu_s_per_million: self.cpu.map(|cpu| cpu.per_million(requests)),
        }
    }
}

/// Rounded: more digits than that mean nothing here.
pub(crate) fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_summed_up() {
        let mut tally = Tally::new(Shape { request: 1000, reply: 0 }, 2, 4);
        for slice in [1..=50u64, 51..=100] {
            let mut latencies = Latencies::new();
            slice.for_each(|us| latencies.add(Duration::from_micros(us)));
            let cpu = Cpu { guests: Some(0.1), host_agents: Some(0.05), load: 0.01 };
            tally.add(&latencies, Duration::from_millis(5), Some(cpu));
        }
        let row = tally.row(CLUSTER);
        assert_eq!((row.requests, row.clients, row.outstanding), (100, 2, 4));
        assert_eq!((row.requests_per_s, row.payload_mb_per_s), (10_000.0, 10.0));
        let near = |a: f64, b: f64| (a - b).abs() < 0.2;
        assert!(near(row.mean_us, 50.5) && near(row.p50_us, 50.0), "{row:?}");
        assert!(near(row.p99_us, 99.0) && near(row.max_us, 100.0), "{row:?}");
        assert!(near(tally.p50s_us[0], 25.0) && near(tally.p50s_us[1], 75.0), "{row:?}");
        let cpu = row.cpu_s_per_million.unwrap();
        assert!(near(cpu.guests.unwrap(), 2000.0) && near(cpu.load, 200.0), "{cpu:?}");
    }
}
