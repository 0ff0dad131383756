//! What was measured, as rows: for people a table, for programs JSON.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::cpu::Cpu;
use super::tally::{CLUSTER, tenths};
use crate::exit::bad_input;

/// One row. The names are those of the JSON file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was measured, and on what: `cluster`, or what is special about it.
    pub(crate) scenario: String,
    /// Request and reply size.
    pub(crate) payload: String,
    /// How many were measured.
    pub(crate) requests: u64,
    /// How many clients sent at a time.
    pub(crate) clients: usize,
    /// How many of each were under way at a time.
    pub(crate) outstanding: usize,
    /// Mean latency in microseconds.
    pub(crate) mean_us: f64,
    /// Median latency.
    pub(crate) p50_us: f64,
    /// 99th percentile.
    pub(crate) p99_us: f64,
    /// The slowest.
    pub(crate) max_us: f64,
    /// Requests per second from the first sent to the last answered.
    pub(crate) requests_per_s: f64,
    /// Megabytes (of 10^6 bytes) of requests per second, their headers not counted.
    pub(crate) payload_mb_per_s: f64,
    /// CPU seconds for a million such requests, by role.
    pub(crate) cpu_s_per_million: Option<Cpu>,
}

/// Longer latencies are recorded as this long.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

/// Latencies of one kind of request.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Latencies {
        // Nanoseconds; three digits are exact.
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3);
        Latencies(histogram.expect("the bounds are possible ones"))
    }

    /// One more.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// All of `more` too.
    pub(crate) fn merge(&mut self, more: &Latencies) {
        self.0.add(&more.0).expect("all have the same bounds");
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Their mean in microseconds.
    pub(crate) fn mean_us(&self) -> f64 {
        self.0.mean() / 1000.0
    }

    /// What this part of them (0 to 1) does not exceed, in microseconds, rounded to tenths.
    pub(crate) fn quantile_us(&self, part: f64) -> f64 {
        let ns = if part < 1.0 { self.0.value_at_quantile(part) } else { self.0.max() };
        tenths(ns as f64 / 1000.0)
    }
}

/// The rows as lines of text, without a line break at the end. Columns that say nothing about any
/// of them are left out.
pub(crate) fn render(rows: &[Row]) -> String {
    let any = |says: fn(&Row) -> bool| rows.iter().any(says);
    let special = any(|row| row.scenario != CLUSTER);
    // Not by how many MB/s: few may be rounded to none.
    let with_bytes = any(|row| !row.payload.starts_with("0/"));
    let with_servers = any(|row| row.cpu_s_per_million.is_some_and(|cpu| cpu.guests.is_some()));
    let mut head = vec!["payload", "requests", "clients", "outstanding", "mean us", "p50 us"];
    head.extend(["p99 us", "max us", "requests/s"]);
    head.extend(with_bytes.then_some("MB/s"));
    head.extend(with_servers.then_some(["guests", "hosts", "load"]).into_iter().flatten());
    head.extend(special.then_some("scenario"));
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(ToString::to_string).collect()];
    for row in rows {
        let counts = [row.requests, row.clients as u64, row.outstanding as u64];
        let times = [row.mean_us, row.p50_us, row.p99_us, row.max_us];
        let mut line = vec![row.payload.clone()];
        line.extend(counts.map(|count| count.to_string()));
        line.extend(times.map(|us| format!("{us:.1}")));
        line.push(format!("{:.0}", row.requests_per_s));
        line.extend(with_bytes.then(|| format!("{:.1}", row.payload_mb_per_s)));
        let cpu = row.cpu_s_per_million;
        if with_servers {
            line.push(seconds(cpu.and_then(|cpu| cpu.guests)));
            line.push(seconds(cpu.and_then(|cpu| cpu.host_agents)));
            line.push(seconds(cpu.map(|cpu| cpu.load)));
        }
        line.extend(special.then(|| row.scenario.clone()));
        lines.push(line);
    }
    let mut text = columns(&lines);
    if with_servers {
        text += CPU_LEGEND;
    }
    text
}

/// What stands below a table with the columns of CPU time.
pub(crate) const CPU_LEGEND: &str = "\n(guests, hosts, load: CPU seconds per million requests)";

/// CPU seconds as a cell, if they are known.
pub(crate) fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |s| format!("{s:.1}"))
}

/// Lines of cells as aligned columns: the first to the left, the others to the right.
pub(crate) fn columns(lines: &[Vec<String>]) -> String {
    let width_of = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width_of).collect();
    let render = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
            if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(render).collect::<Vec<_>>().join("\n")
}

/// A file for results, opened before an hour of measuring rather than after it.
pub(crate) fn open(path: &Path) -> Result<File> {
    // What is in it stays until there is something new.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| bad_input(format!("cannot write {}: {error}", path.display())))
}

/// Writes rows, or whatever else, as JSON in the place of what was in the file.
pub(crate) fn write<T: Serialize>(file: File, rows: &[T]) -> Result<()> {
    let mut json = serde_json::to_string_pretty(rows)?;
    json.push('\n');
    replace(file, &json).context("cannot write the JSON file")
}

/// Puts a text in the place of what was in the file.
pub(crate) fn replace(mut file: File, text: &str) -> Result<()> {
    // A pipe or a terminal has no earlier contents.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::payload::Shape;
    use crate::bench::tally::Tally;

    fn sample(cpu: Option<Cpu>) -> Row {
        let mut latencies = Latencies::new();
        latencies.add(Duration::from_micros(5));
        let mut tally = Tally::new(Shape { request: 0, reply: 4096 }, 1, 1);
        tally.add(&latencies, Duration::from_millis(10), cpu);
        tally.row(CLUSTER)
    }

    #[test]
    fn json_has_exactly_the_promised_keys() {
        let json = serde_json::to_value(sample(None)).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        let promised = "clients cpu_s_per_million max_us mean_us outstanding p50_us p99_us payload \
                        payload_mb_per_s requests requests_per_s scenario";
        assert_eq!(keys, promised.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn the_table_is_aligned_and_shows_what_there_is() {
        let known = Cpu { guests: Some(0.1), host_agents: Some(0.1), load: 0.1 };
        let floor = Row { scenario: "floor".into(), ..sample(None) };
        let text = render(&[sample(Some(known)), floor]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("payload  requests  clients  outstanding  mean us"), "{text}");
        assert!(lines[0].ends_with("requests/s    guests     hosts      load  scenario"), "{text}");
        assert!(lines[..3].iter().all(|line| line.len() == lines[0].len()), "{text}");
        let few = render(&[sample(None)]);
        assert!(!few.contains("guests") && !few.contains("scenario"), "{few}");
        assert!(!few.contains("MB/s"), "{few}");
        let slow = Row { payload: "1/0".into(), payload_mb_per_s: 0.0, ..sample(None) };
        assert!(render(&[slow]).contains("MB/s"));
    }
}
