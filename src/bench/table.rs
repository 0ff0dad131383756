//! What was measured, as rows: for people a table, for programs JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One row. The names are those of the JSON file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Request and reply size, or `floor`.
    pub(crate) payload: String,
    /// How many were measured.
    pub(crate) requests: u64,
    /// How many were under way at a time.
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

    /// The row for these latencies, which took `elapsed` in all.
    pub(crate) fn row(&self, payload: String, outstanding: usize, elapsed: Duration) -> Row {
        let micros = |ns: u64| ns as f64 / 1000.0;
        let quantile = |q| tenths(micros(self.0.value_at_quantile(q)));
        Row {
            payload,
            requests: self.0.len(),
            outstanding,
            mean_us: tenths(self.0.mean() / 1000.0),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: tenths(micros(self.0.max())),
            requests_per_s: tenths(self.0.len() as f64 / elapsed.as_secs_f64().max(1e-9)),
        }
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The rows as lines of text, without a line break at the end.
pub(crate) fn render(rows: &[Row]) -> String {
    let head = ["payload", "requests", "outstanding", "mean us", "p50 us", "p99 us", "max us"];
    let head = head.iter().chain(&["requests/s"]).map(ToString::to_string);
    let mut lines: Vec<Vec<String>> = vec![head.collect()];
    for row in rows {
        let times = [row.mean_us, row.p50_us, row.p99_us, row.max_us];
        let mut line = vec![row.payload.clone(), row.requests.to_string()];
        line.push(row.outstanding.to_string());
        line.extend(times.map(|us| format!("{us:.1}")));
        line.push(format!("{:.0}", row.requests_per_s));
        lines.push(line);
    }
    columns(&lines)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Row {
        let mut latencies = Latencies::new();
        for us in 1..=100 {
            latencies.add(Duration::from_micros(us));
        }
        latencies.row("0/4096".into(), 1, Duration::from_millis(10))
    }

    #[test]
    fn a_row_sums_the_latencies_up() {
        let row = sample();
        assert_eq!((row.requests, row.requests_per_s), (100, 10_000.0));
        let near = |a: f64, b: f64| (a - b).abs() < 0.2;
        assert!(near(row.mean_us, 50.5) && near(row.p50_us, 50.0), "{row:?}");
        assert!(near(row.p99_us, 99.0) && near(row.max_us, 100.0), "{row:?}");
    }

    #[test]
    fn json_has_exactly_the_promised_keys() {
        let json = serde_json::to_value(sample()).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        let mut promised = [
            "payload",
            "requests",
            "outstanding",
            "mean_us",
            "p50_us",
            "p99_us",
            "max_us",
            "requests_per_s",
        ];
        promised.sort();
        assert_eq!(keys, promised);
    }

    #[test]
    fn the_table_is_aligned() {
        let text = render(&[sample(), Row { payload: "floor".into(), ..sample() }]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("payload  requests  outstanding  mean us  p50 us"), "{text}");
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    }
}
