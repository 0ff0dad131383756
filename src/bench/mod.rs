//! `difato bench`: what ordering costs, in microseconds and in requests per second.
//!
//! | module | one job |
//! |---|---|
//! | [`own`] | a cluster of one's own for one measurement |
//! | [`payload`] | request and reply sizes |
//! | [`run`](mod@run) | a load on a cluster, measured |
//! | [`failover`] | how long service pauses when the sequencer is killed |
//! | [`figures`] | what is measured on clusters of its own, and drawn |
//! | [`floor`] | what the machine itself can do |
//! | [`table`] | rows for people and for programs |

mod failover;
mod figures;
pub(crate) mod floor;
pub(crate) mod own;
pub(crate) mod payload;
pub(crate) mod run;
pub(crate) mod table;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use shared_registers::cluster::{Cluster, Paths};

use self::floor::{Floor, NODES, TOKEN_BYTES};
use self::run::{Load, measure};
use self::table::{Row, render};
use crate::cli::{ApplicationName, BenchArgs};
use crate::exit::bad_input;
use crate::{output, session};

/// Runs `difato bench`.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    if figures::wanted(&args) {
        return own::run(figures::measure(&args));
    }
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
    json.map_or(Ok(()), |file| write(file, &rows).context("cannot write the JSON file"))
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

fn write(mut file: File, rows: &[Row]) -> Result<()> {
    let mut json = serde_json::to_string_pretty(rows)?;
    json.push('\n');
    // A pipe or a terminal has no earlier contents.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file.write_all(json.as_bytes())?)
}
