//! `difato bench --targets`: what was measured beside what it should be.
//!
//! Every target is a value computed from the rows of one run (see [`campaign`](super::campaign)),
//! most of them a ratio of two rows that were measured in turns. Some have no bar: they are there
//! to be known.

use anyhow::{Context, Result};

use super::campaign::{
    ANSWER, DEAD, DEAD_SEQUENCER, DISK, DURABLE, FULL, MANY, Measured, PROCESS, SHAPES,
};
use super::floor::FLOOR;
use super::payload::Shape;
use super::table::{Row, columns};
use super::tally::CLUSTER;

/// What a value should be.
#[derive(Clone, Copy)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// It is reported.
    None,
}

/// One target.
struct Target {
    what: String,
    measured: f64,
    unit: &'static str,
    bar: Bar,
}

impl Target {
    fn new(what: impl Into<String>, measured: f64, unit: &'static str, bar: Bar) -> Target {
        // Rounded, so that the verdict is on what is printed.
        Target { what: what.into(), measured: (measured * 1000.0).round() / 1000.0, unit, bar }
    }

    fn verdict(&self) -> &'static str {
        match self.bar {
            Bar::AtMost(bar) if self.measured <= bar => "reached",
            Bar::AtLeast(bar) if self.measured >= bar => "reached",
            Bar::None => "-",
            _ => "missed",
        }
    }

    fn line(&self) -> Vec<String> {
        let Target { what, measured, unit, bar } = self;
        // As many digits as a row has, of a ratio three.
        let digits = if *unit == TIMES { 3 } else { 1 };
        let bar = match bar {
            Bar::AtMost(bar) => format!("at most {bar} {unit}"),
            Bar::AtLeast(bar) => format!("at least {bar} {unit}"),
            Bar::None => "-".into(),
        };
        vec![what.clone(), format!("{measured:.digits$} {unit}"), bar, self.verdict().into()]
    }
}

const TIMES: &str = "x";

/// The targets and whether they are reached, as a table, and how often a sequencer changed.
pub(crate) fn report(Measured { rows, changes }: &Measured) -> Result<String> {
    let rows = Rows(rows);
    let mut targets = latency(&rows)?;
    targets.extend(throughput(&rows)?);
    targets.extend(crash(&rows)?);
    targets.extend(durability(&rows)?);
    let head = ["target", "measured", "bar", ""].map(String::from).to_vec();
    let lines: Vec<Vec<String>> =
        std::iter::once(head).chain(targets.iter().map(Target::line)).collect();
    let changes: Vec<String> =
        changes.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    // One among thousands of requests does not show in a median, but in the slowest.
    let changes = changes.join("; ");
    Ok(columns(&lines) + "\nSequencer changes while it was measured: " + &changes)
}

/// The rows, to be found by what they are.
struct Rows<'a>(&'a [Row]);

impl Rows<'_> {
    fn get(
        &self,
        scenario: &str,
        (shape, clients, outstanding): (Shape, usize, usize),
    ) -> Result<&Row> {
        let payload = shape.to_string();
        let wanted = |row: &&Row| {
            (row.scenario.as_str(), &row.payload) == (scenario, &payload)
                && (row.clients, row.outstanding) == (clients, outstanding)
        };
        let found = self.0.iter().find(wanted);
        found.with_context(|| format!("no row of {scenario} {payload} {clients} x {outstanding}"))
    }

    /// The median, one request at a time.
    fn p50(&self, scenario: &str, shape: Shape) -> Result<f64> {
        Ok(self.get(scenario, (shape, 1, 1))?.p50_us.max(0.1))
    }
}

/// Point 1 of the targets: a request by the floor, and with bytes by one without.
fn latency(rows: &Rows<'_>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for shape in SHAPES {
        let bar = if shape == Shape::EMPTY { Bar::AtMost(1.5) } else { Bar::None };
        let ratio = rows.p50(CLUSTER, shape)? / rows.p50(FLOOR, shape)?;
        targets.push(Target::new(format!("{shape} p50 by the floor's"), ratio, TIMES, bar));
    }
    let empty = rows.p50(CLUSTER, Shape::EMPTY)?;
    let tail = rows.get(CLUSTER, (Shape::EMPTY, 1, 1))?.p99_us / empty;
    targets.push(Target::new("0/0 p99 by its p50", tail, TIMES, Bar::AtMost(3.0)));
    for (shape, bar) in [(ANSWER, 1.15), (FULL, 1.25)] {
        let ratio = rows.p50(CLUSTER, shape)? / empty;
        let what = format!("{shape} p50 by 0/0's");
        targets.push(Target::new(what, ratio, TIMES, Bar::AtMost(bar)));
    }
    Ok(targets)
}

/// Point 2: requests, or bytes of them, in a second.
fn throughput(rows: &Rows<'_>) -> Result<Vec<Target>> {
    let target = |load: (Shape, usize, usize)| {
        let (shape, clients, outstanding) = load;
        let row = rows.get(CLUSTER, load)?;
        let what = format!("{shape}, {clients} x {outstanding} outstanding");
        Ok(match shape.request {
            0 => Target::new(what, row.requests_per_s, "/s", Bar::AtLeast(80_000.0)),
            _ => Target::new(what, row.payload_mb_per_s, "MB/s", Bar::AtLeast(250.0)),
        })
    };
    MANY.into_iter().map(target).collect()
}

/// Point 3: f servers dead.
fn crash(rows: &Rows<'_>) -> Result<Vec<Target>> {
    let target = |(scenario, shape)| {
        let ratio = rows.p50(scenario, shape)? / rows.p50(CLUSTER, shape)?;
        let what = format!("{shape} p50 by all alive's: {scenario}");
        Ok(Target::new(what, ratio, TIMES, Bar::AtMost(1.1)))
    };
    let each = |scenario| SHAPES.map(|shape| (scenario, shape));
    [DEAD, DEAD_SEQUENCER].into_iter().flat_map(each).map(target).collect()
}

/// Point 6: a disk, for which there is no bar.
fn durability(rows: &Rows<'_>) -> Result<Vec<Target>> {
    let target = |load: (Shape, usize, usize)| {
        let (shape, clients, outstanding) = load;
        let (disk, process) = (rows.get(DISK, load)?, rows.get(PROCESS, load)?);
        Ok(if outstanding == 1 {
            let what = format!("{shape} p50 on disk by process");
            Target::new(what, disk.p50_us / process.p50_us.max(0.1), TIMES, Bar::None)
        } else {
            let what = format!("{shape}, {clients} x {outstanding}: requests/s on disk by process");
            let ratio = disk.requests_per_s / process.requests_per_s.max(0.1);
            Target::new(what, ratio, TIMES, Bar::None)
        })
    };
    DURABLE.into_iter().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scenario: &str, (shape, clients, outstanding): (Shape, usize, usize), us: f64) -> Row {
        Row {
            scenario: scenario.into(),
            payload: shape.to_string(),
            requests: 1,
            clients,
            outstanding,
            mean_us: us,
            p50_us: us,
            p99_us: 3.0 * us,
            max_us: 9.0 * us,
            requests_per_s: 80_000.0,
            payload_mb_per_s: 249.0,
            cpu_s_per_million: None,
        }
    }

    fn measured() -> Measured {
        let mut rows = Vec::new();
        for (shape, us) in SHAPES.into_iter().zip([100.0, 115.0, 126.0]) {
            rows.push(row(FLOOR, (shape, 1, 1), 60.0));
            rows.push(row(CLUSTER, (shape, 1, 1), us));
            rows.push(row(DEAD, (shape, 1, 1), us * 1.05));
            rows.push(row(DEAD_SEQUENCER, (shape, 1, 1), us * 1.1004));
        }
        rows.extend(MANY.map(|load| row(CLUSTER, load, 700.0)));
        rows.extend(DURABLE.map(|load| row(DISK, load, 900.0)));
        rows.extend(DURABLE.map(|load| row(PROCESS, load, 100.0)));
        Measured { rows, changes: vec![(CLUSTER, 0), (DEAD, 2)] }
    }

    #[test]
    fn every_target_stands_beside_its_bar() {
        let text = report(&measured()).unwrap();
        let verdict = |what: &str| {
            let line = text.lines().find(|line| line.starts_with(what)).expect(what);
            line.split_whitespace().last().unwrap().to_owned()
        };
        let wanted = [
            ("0/0 p50 by the floor's", "missed"),
            ("0/4096 p50 by the floor's", "-"),
            ("0/0 p99 by its p50", "reached"),
            ("0/4096 p50 by 0/0's", "reached"),
            ("4096/4096 p50 by 0/0's", "missed"),
            ("0/0, 1 x 64 outstanding", "reached"),
            ("0/0, 16 x 64 outstanding", "reached"),
            ("4096/4096, 16 x 4 outstanding", "missed"),
            ("4096/4096 p50 by all alive's: f dead ", "reached"),
            ("0/0 p50 by all alive's: f dead, the sequencer among them", "reached"),
            ("0/0 p50 on disk by process", "-"),
        ];
        for (what, verdict_wanted) in wanted {
            assert_eq!(verdict(what), verdict_wanted, "{what}: {text}");
        }
        for words in ["1.667 x ", " at most 1.5 x", "249.0 MB/s  at least 250 MB/s"] {
            assert!(text.contains(words), "no `{words}`: {text}");
        }
        assert!(text.ends_with("while it was measured: cluster 0; f dead 2"), "{text}");
    }

    #[test]
    fn the_verdict_is_on_what_is_printed() {
        let line = |measured| Target::new("", measured, TIMES, Bar::AtMost(1.5)).line();
        assert_eq!(line(1.5004)[1..], ["1.500 x", "at most 1.5 x", "reached"]);
        assert_eq!(line(1.504)[1..], ["1.504 x", "at most 1.5 x", "missed"]);
    }

    #[test]
    fn a_row_that_is_missing_is_named() {
        let mut measured = measured();
        measured.rows.remove(0);
        let error = report(&measured).unwrap_err();
        assert!(error.to_string().contains("floor 0/0"), "{error}");
    }
}
