//! `difato bench`: what ordering costs, in microseconds, requests per second and CPU seconds.
//!
//! | module | one job |
//! |---|---|
//! | [`own`] | a cluster of one's own for one measurement |
//! | [`payload`] | request and reply sizes |
//! | [`run`](mod@run) | a load on a cluster, measured |
//! | [`cpu`] | CPU seconds by role |
//! | [`tally`] | what slices of one kind of load sum up to |
//! | [`hops`](mod@hops) | the way of a request: channels and bytes |
//! | [`floor`], [`floor_node`] | how fast a bare token goes that way: the ring, and one process of it |
//! | [`trace`] | requests of which every guest notes what it does when |
//! | [`mod@path`] | from those points in time to a table of hops |
//! | [`targets`] | what was measured beside what it should be |
//! | [`campaign`] | all loads that the targets need, in slices that take turns |
//! | [`failover`] | how long service pauses when the sequencer is killed |
//! | [`faulty`] | a sequencer that proposes wrongly on purpose |
//! | [`scale`] | how cost grows with servers, clients, payloads and batches |
//! | [`figures`] | what is measured on clusters of its own, and drawn |
//! | [`plot`] | panels in an SVG file |
//! | [`table`] | rows for people and for programs |

pub(crate) mod campaign;
pub(crate) mod cpu;
mod failover;
mod faulty;
mod figures;
pub(crate) mod floor;
pub(crate) mod floor_node;
pub(crate) mod hops;
pub(crate) mod own;
mod path;
pub(crate) mod payload;
mod plot;
pub(crate) mod run;
mod scale;
pub(crate) mod table;
pub(crate) mod tally;
pub(crate) mod targets;
mod trace;

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use shared_registers::cluster::{Cluster, Durability, Paths};

use self::cpu::Meter;
use self::floor::Floor;
use self::hops::HOPS;
use self::own::{Own, Spec};
use self::path::Trace;
use self::run::{Group, Load};
use self::table::{Row, render};
use self::tally::{CLUSTER, Tally};
use self::trace::{MOST_TRACED, Tracer};
use crate::cli::{ApplicationName, BenchArgs};
use crate::exit::bad_input;
use crate::output;
use crate::session::Operator;

/// Runs `difato bench`.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    // Before an hour of measuring rather than after it.
    let json = args.json.as_deref().map(table::open).transpose()?;
    let elements = own::run(async {
        if args.targets { against_targets(&args).await } else { measure(&args).await }
    })?;
    json.map_or(Ok(()), |file| table::write(file, &elements))
}

/// An element of the JSON file's array.
#[derive(Serialize)]
#[serde(untagged)]
enum Element {
    Row(Row),
    Trace(Trace),
}

async fn against_targets(args: &BenchArgs) -> Result<Vec<Element>> {
    let f = usize::from(args.f.unwrap_or(1));
    let measured = campaign::measure(f, args.measure.requests).await?;
    output::print(&render(&measured.rows))?;
    output::print(&targets::report(&measured)?)?;
    Ok(measured.rows.into_iter().map(Element::Row).collect())
}

async fn measure(args: &BenchArgs) -> Result<Vec<Element>> {
    if figures::wanted(&args.figures) {
        let rows = figures::measure(args).await?;
        return Ok(rows.into_iter().map(Element::Row).collect());
    }
    let Some(dir) = &args.dir else {
        let mut spec = Spec::new(usize::from(args.f.unwrap_or(1)), args.clients.into());
        spec.durability = args.durability.map_or(Durability::Process, Durability::from);
        spec.spin_us = args.spin_us.unwrap_or(0);
        let own = Own::start(&spec).await?;
        let cluster = &own.operator.cluster;
        let group = connect(args, own.dir(), cluster, 0, Meter::of(&own))?;
        let traced = args.trace.then_some((&own.operator, own.dir(), 0));
        let elements = with_trace(args, group, cluster.n(), traced).await?;
        own.close()?;
        return Ok(elements);
    };
    let Some(client) = args.client else {
        return Err(bad_input(
            "--dir needs --client C: as which of the cluster's clients to measure (the first of \
             them, with --clients)",
        ));
    };
    let paths = Paths::new(dir);
    let cluster = Cluster::load(&paths)?;
    if cluster.application != ApplicationName::EchoSized.name() {
        return Err(bad_input(format!(
            "{} says application = \"{}\": a benchmark needs one of \"echo-sized\"",
            paths.cluster_toml().display(),
            cluster.application
        )));
    }
    let operator = args.trace.then(|| Operator::load(dir)).transpose()?;
    let group = connect(args, dir, &cluster, client, Meter::of_load())?;
    let traced = operator.as_ref().map(|operator| (operator, dir.as_path(), client));
    with_trace(args, group, cluster.n(), traced).await
}

/// The clients, if what they shall send can pass.
fn connect(
    args: &BenchArgs,
    dir: &Path,
    cluster: &Cluster,
    first: u32,
    meter: Meter,
) -> Result<Group> {
    for shape in &args.measure.payloads {
        shape.check(cluster)?;
    }
    Group::connect(dir, cluster, (first, args.clients.into()), meter)
}

/// Measures, and then traces if there is `traced`: who asks the guests, the cluster's folder, and as
/// which client.
async fn with_trace(
    args: &BenchArgs,
    group: Group,
    servers: usize,
    traced: Option<(&Operator, &Path, u32)>,
) -> Result<Vec<Element>> {
    let rows = with_floor(args, &group, servers).await?;
    // Who is sent no orders replies on all connections of a client: one is to be traced.
    drop(group);
    let mut elements: Vec<Element> = rows.into_iter().map(Element::Row).collect();
    let Some((operator, dir, client)) = traced else { return Ok(elements) };
    let mut tracer = Tracer::connect(operator, dir, client)?;
    let count = args.measure.requests.min(MOST_TRACED);
    for shape in &args.measure.payloads {
        let trace = tracer.trace(*shape, args.warmup, count).await?;
        output::print(&format!("\n{}", trace.render()))?;
        elements.push(Element::Trace(trace));
    }
    Ok(elements)
}

async fn with_floor(args: &BenchArgs, group: &Group, servers: usize) -> Result<Vec<Row>> {
    let shapes = args.measure.payloads.iter().filter(|_| args.floor);
    let mut floors: Vec<Floor> = shapes.map(|shape| Floor::new(*shape, servers)).collect();
    for floor in &mut floors {
        floor.measure(args.measure.requests).await?;
    }
    let mut rows = payloads(args, group).await?;
    for floor in &mut floors {
        floor.measure(args.measure.requests).await?;
    }
    let above = args.floor.then(|| compare(&rows, &floors));
    rows.extend(floors.iter().map(Floor::row));
    output::print(&render(&rows))?;
    above.map_or(Ok(()), |above| output::print(&above))?;
    Ok(rows)
}

async fn payloads(args: &BenchArgs, group: &Group) -> Result<Vec<Row>> {
    let outstanding = usize::from(args.outstanding);
    let load = Load { requests: args.measure.requests, warmup: args.warmup, outstanding };
    let mut rows = Vec::new();
    for shape in &args.measure.payloads {
        let mut tally = Tally::new(*shape, group.len(), outstanding);
        group.measure(*shape, load, &mut tally).await?;
        rows.push(tally.row(CLUSTER));
    }
    Ok(rows)
}

fn compare(rows: &[Row], floors: &[Floor]) -> String {
    let each: Vec<String> = floors.iter().map(Floor::summary).collect();
    let ratio = |(row, floor): (&Row, &Floor)| {
        format!("{} {:.2}", row.payload, row.p50_us / floor.row().p50_us.max(0.1))
    };
    let ratios: Vec<String> = rows.iter().zip(floors).map(ratio).collect();
    format!(
        "floor (a bare token once around {HOPS} processes, over the same kinds of channels, in the \
         same sizes), p50 before and after: {}\n\
         p50 as a multiple of the floor's: {}",
        each.join("; "),
        ratios.join(", ")
    )
}
