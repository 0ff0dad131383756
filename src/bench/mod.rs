//! `difato bench`: what ordering costs, in microseconds and in requests per second.
//!
//! | module | one job |
//! |---|---|
//! | [`payload`] | request and reply sizes |
//! | [`run`](mod@run) | a load on a cluster, measured |
//! | [`floor`] | what the machine itself can do |
//! | [`trace`] | requests that every guest notes its points in time of |
//! | [`mod@path`] | from those points to a table of hops |
//! | [`table`] | rows for people and for programs |

pub(crate) mod floor;
mod path;
pub(crate) mod payload;
pub(crate) mod run;
pub(crate) mod table;
mod trace;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use shared_registers::cluster::{Cluster, Paths};

use self::floor::{Floor, NODES, TOKEN_BYTES};
use self::path::Trace;
use self::run::{Load, measure};
use self::table::{Row, render};
use self::trace::{MOST_TRACED, Tracer};
use crate::cli::{ApplicationName, BenchArgs};
use crate::exit::bad_input;
use crate::session::Operator;
use crate::{output, session};

/// Runs `difato bench`.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let paths = Paths::new(&args.dir);
    let cluster = Cluster::load(&paths)?;
    if cluster.application != ApplicationName::EchoSized.name() {
        return Err(bad_input(format!(
            "{} says application = \"{}\": a benchmark needs one of \"echo-sized\"",
            paths.cluster_toml().display(),
            cluster.application
        )));
    }
    for shape in &args.measure.payloads {
        shape.check(&cluster)?;
    }
    // Before an hour of measuring rather than after it.
    let json = args.json.as_deref().map(open).transpose()?;
    let operator = args.trace.then(|| Operator::load(&args.dir)).transpose()?;
    let mut floor = Floor::new();
    if args.floor {
        floor.measure(args.measure.requests)?;
    }
    let mut rows = measure_all(&args)?;
    output::print(&render(&rows))?;
    if args.floor {
        floor.measure(args.measure.requests)?;
        output::print(&compare(&rows, &floor))?;
        rows.push(floor.row());
    }
    let mut elements: Vec<Element> = rows.into_iter().map(Element::Row).collect();
    if let Some(operator) = operator {
        for trace in trace_all(&args, &operator)? {
            output::print(&format!("\n{}", trace.render()))?;
            elements.push(Element::Trace(trace));
        }
    }
    json.map_or(Ok(()), |file| write(file, &elements).context("cannot write the JSON file"))
}

/// An element of the JSON file's array.
#[derive(Serialize)]
#[serde(untagged)]
enum Element {
    Row(Row),
    Trace(Trace),
}

fn trace_all(args: &BenchArgs, operator: &Operator) -> Result<Vec<Trace>> {
    let count = args.measure.requests.min(MOST_TRACED);
    session::runtime()?.block_on(async {
        let mut tracer = Tracer::connect(operator, &args.dir, args.client)?;
        let mut traces = Vec::new();
        for shape in &args.measure.payloads {
            traces.push(tracer.trace(*shape, args.warmup, count).await?);
        }
        Ok(traces)
    })
}

fn measure_all(args: &BenchArgs) -> Result<Vec<Row>> {
    let BenchArgs { warmup, outstanding, .. } = *args;
    let requests = args.measure.requests;
    let load = Load { requests, warmup, outstanding: usize::from(outstanding) };
    session::runtime()?.block_on(async {
        let client = session::connect(&args.dir, args.client)?;
        let mut rows = Vec::new();
        for shape in &args.measure.payloads {
            rows.push(measure(&client, *shape, load).await?.row);
        }
        Ok(rows)
    })
}

fn compare(rows: &[Row], floor: &Floor) -> String {
    let each: Vec<String> = floor.p50s_us.iter().map(|us| format!("{us:.1} us")).collect();
    let p50 = floor.row().p50_us;
    let ratios = rows.iter().map(|row| format!("{} {:.2}", row.payload, row.p50_us / p50.max(0.1)));
    format!(
        "floor ({TOKEN_BYTES} bytes once around {NODES} processes over loopback TCP): p50 {}, \
         before and after; {p50:.1} us in all\n\
         p50 as a multiple of the floor's: {}",
        each.join(" and "),
        ratios.collect::<Vec<_>>().join(", ")
    )
}

fn open(path: &Path) -> Result<File> {
    // What is in it stays until there is something new.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| bad_input(format!("cannot write {}: {error}", path.display())))
}

fn write(mut file: File, elements: &[Element]) -> Result<()> {
    let mut json = serde_json::to_string_pretty(elements)?;
    json.push('\n');
    // A pipe or a terminal has no earlier contents.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file.write_all(json.as_bytes())?)
}
