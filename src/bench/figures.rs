//! What is measured on clusters of its own, one after the other, and the paper's figures of it.

use anyhow::{Context, Result};

use super::cpu::Meter;
use super::own::{Own, Spec};
use super::payload::Shape;
use super::plot::{self, Axis, Panel, Point, Series};
use super::run::{Group, Load};
use super::scale::{self, OUTSTANDING, Scale, Scaled};
use super::table::{self, Row, render};
use super::tally::{CLUSTER, Tally};
use super::{failover, faulty};
use crate::cli::{BenchArgs, Figures};
use crate::output;

/// Axes that several panels share.
const LATENCY: &str = "latency, median (µs)";
const THROUGHPUT: &str = "throughput (requests/s)";
const SHAPE: &str = "request / reply (bytes)";

/// Whether any of it is asked for.
pub(crate) fn wanted(figures: &Figures) -> bool {
    let Figures { failover, steady, faulty, scale, plot, .. } = figures;
    failover.is_some() || steady.is_some() || faulty.is_some() || *scale || plot.is_some()
}

/// Measures what is asked for, and draws it.
pub(crate) async fn measure(args: &BenchArgs) -> Result<Vec<Row>> {
    let Figures { failover, steady, faulty, faulty_servers, scale, plot } = &args.figures;
    // Before an hour of measuring rather than after it.
    let drawing = plot.as_deref().map(table::open).transpose()?;
    let (mut rows, mut panels) = (Vec::new(), Vec::new());
    if let Some(program) = faulty {
        faulty::check(program)?;
    }
    if let Some(kills) = failover {
        rows.extend(failover::measure(*kills).await?);
    }
    if let Some(seconds) = steady {
        rows.push(failover::steady(*seconds).await?);
    }
    let shapes = &args.measure.payloads;
    let (requests, warmup) = (args.measure.requests, args.warmup);
    if faulty.is_some() || plot.is_some() {
        let plain = measure_plain(shapes, &[Load { requests, warmup, outstanding: 1 }]).await?;
        output::print(&render(&plain))?;
        panels.push(by_payload("Figure 3a: latency without faults", &plain));
        rows.extend(plain);
    }
    if let Some(program) = faulty {
        let load = Load { requests, warmup, outstanding: 1 };
        let wrong = faulty::measure(program, *faulty_servers, shapes, load).await?;
        output::print(&render(&wrong))?;
        let title = "Figure 3b: one proposal in ten of the sequencer is wrong";
        panels.push(by_payload(title, &wrong));
        rows.extend(wrong);
    }
    align(&mut panels);
    if plot.is_some() {
        let loads = OUTSTANDING.map(|outstanding| Load { requests, warmup, outstanding });
        let all = measure_plain(shapes, &loads).await?;
        output::print(&render(&all))?;
        panels.push(against_throughput(shapes, &all));
        rows.extend(all);
    }
    if *scale {
        let scale = scale::measure(requests, warmup).await?;
        panels.extend(of_scale(&scale));
        let Scale { faults, clients, payloads } = scale;
        rows.extend([faults, clients, payloads].into_iter().flatten().map(|scaled| scaled.row));
    }
    if let Some(file) = drawing {
        table::replace(file, &plot::render(&panels)?).context("cannot write the figures")?;
        output::print(&format!("{} figures drawn", panels.len()))?;
    }
    Ok(rows)
}

/// Each load with each payload, on one cluster that is nothing special.
async fn measure_plain(shapes: &[Shape], loads: &[Load]) -> Result<Vec<Row>> {
    let own = Own::start(&Spec::new(1, 1)).await?;
    let cluster = &own.operator.cluster;
    shapes.iter().try_for_each(|shape| shape.check(cluster))?;
    let group = Group::connect(own.dir(), cluster, (0, 1), Meter::of(&own))?;
    let mut rows = Vec::new();
    for shape in shapes {
        for load in loads {
            let load = load.long_enough(group.len(), *shape);
            let mut tally = Tally::new(*shape, group.len(), load.outstanding);
            group.measure(*shape, load, &mut tally).await?;
            rows.push(tally.row(CLUSTER));
        }
    }
    drop(group);
    own.close()?;
    Ok(rows)
}

/// Figures 3a and 3b: latency by payload, one request at a time.
fn by_payload(title: &str, rows: &[Row]) -> Panel {
    let series = ["median", "mean", "99 of 100 requests"].map(|name| {
        let points = rows.iter().enumerate().map(|(i, row)| {
            let y = match name {
                "median" => row.p50_us,
                "mean" => row.mean_us,
                _ => row.p99_us,
            };
            Point { x: i as f64, y, note: format!("{y:.0}") }
        });
        Series { name: name.to_owned(), points: points.collect() }
    });
    Panel {
        title: title.to_owned(),
        x: Axis::names(SHAPE, rows.iter().map(|row| row.payload.clone()).collect()),
        y: Axis::log("latency, one request at a time (µs)"),
        lines: false,
        series: series.into(),
    }
}

/// Gives panels the same vertical axis, to be compared.
fn align(panels: &mut [Panel]) {
    let points = panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
    let all: Vec<f64> = points.map(|point| point.y).collect();
    panels.iter_mut().for_each(|panel| panel.y.holds.clone_from(&all));
}

/// A line of throughput and latency, whose points are named.
fn line<'a>(name: String, rows: impl Iterator<Item = (&'a Row, usize)>) -> Series {
    let points = rows.map(|(row, name)| Point {
        x: row.requests_per_s,
        y: row.p50_us,
        note: name.to_string(),
    });
    Series { name, points: points.collect() }
}

fn against_throughput(shapes: &[Shape], rows: &[Row]) -> Panel {
    let series = shapes.iter().map(|shape| {
        let name = shape.to_string();
        let rows = rows.iter().filter(|row| row.payload == name);
        line(format!("{name} bytes"), rows.map(|row| (row, row.outstanding)))
    });
    let series = series.collect();
    Panel {
        title: "Throughput and latency; at points: requests under way".to_owned(),
        x: Axis::linear(THROUGHPUT),
        y: Axis::log(LATENCY),
        lines: true,
        series,
    }
}

/// What differs of some rows, in the order in which it comes.
fn kinds<T: PartialEq>(rows: &[Scaled], of: impl Fn(&Scaled) -> T) -> Vec<T> {
    let mut kinds = Vec::new();
    for kind in rows.iter().map(of) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn of_scale(scale: &Scale) -> Vec<Panel> {
    let Scale { faults, clients, payloads } = scale;
    let servers = kinds(faults, |scaled| scaled.n);
    let by_faults = servers.iter().map(|n| {
        let rows = faults.iter().filter(|scaled| scaled.n == *n);
        let name = format!("f = {} ({n} servers)", (n - 1) / 2);
        line(name, rows.map(|scaled| (&scaled.row, scaled.row.outstanding)))
    });
    let each = kinds(clients, |scaled| scaled.row.outstanding);
    let by_clients = each.iter().map(|outstanding| {
        let rows = clients.iter().filter(|scaled| scaled.row.outstanding == *outstanding);
        let name = format!("{outstanding} under way for each client");
        line(name, rows.map(|scaled| (&scaled.row, scaled.row.clients)))
    });
    vec![
        Panel {
            title: "By faults tolerated; at points: requests under way".to_owned(),
            x: Axis::linear(THROUGHPUT),
            y: Axis::log(LATENCY),
            lines: true,
            series: by_faults.collect(),
        },
        Panel {
            title: "By clients; at points: how many".to_owned(),
            x: Axis::linear(THROUGHPUT),
            y: Axis::log(LATENCY),
            lines: true,
            series: by_clients.collect(),
        },
        by_size("Latency by request size", LATENCY, payloads, |scaled| scaled.row.p50_us),
        by_size("Payload ordered by request size", "throughput (MB/s)", payloads, |scaled| {
            scaled.row.payload_mb_per_s
        }),
        batches(faults),
        frames(faults, &servers),
    ]
}

/// A value by the size of the request.
fn by_size(title: &str, label: &str, rows: &[Scaled], of: fn(&Scaled) -> f64) -> Panel {
    let sizes = kinds(rows, |scaled| scaled.bytes);
    let series = kinds(rows, |scaled| scaled.row.outstanding).into_iter().map(|outstanding| {
        let rows = rows.iter().filter(|scaled| scaled.row.outstanding == outstanding);
        let points = rows.enumerate().map(|(i, scaled)| Point {
            x: i as f64,
            y: of(scaled),
            note: String::new(),
        });
        Series { name: format!("{outstanding} under way"), points: points.collect() }
    });
    let series = series.collect();
    let name = |bytes: &u32| match bytes {
        0..1024 => bytes.to_string(),
        // The largest is a header short of a whole number.
        _ if *bytes > (1 << 20) - 1024 => "1 Mi".to_owned(),
        _ => format!("{} Ki", bytes >> 10),
    };
    Panel {
        title: title.to_owned(),
        x: Axis::names("request (bytes)", sizes.iter().map(name).collect()),
        y: Axis::log(label),
        lines: true,
        series,
    }
}

fn batches(faults: &[Scaled]) -> Panel {
    let names = kinds(faults, |scaled| scaled.row.outstanding);
    let series = kinds(faults, |scaled| scaled.n).into_iter().map(|n| {
        let rows = faults.iter().filter(|scaled| scaled.n == n).enumerate();
        let points = rows.map(|(i, scaled)| Point {
            x: i as f64,
            y: scaled.orders_per_batch,
            note: String::new(),
        });
        Series { name: format!("{n} servers"), points: points.collect() }
    });
    let series = series.collect();
    Panel {
        title: "Batches".to_owned(),
        x: Axis::names("requests under way", names.iter().map(ToString::to_string).collect()),
        y: Axis::log("orders in a PROPOSE (mean)"),
        lines: true,
        series,
    }
}

/// Frames for a batch, one request at a time, beside n².
fn frames(faults: &[Scaled], servers: &[usize]) -> Panel {
    let point = |(i, y): (usize, f64)| Point { x: i as f64, y, note: format!("{y:.1}") };
    let alone = faults.iter().filter(|scaled| scaled.row.outstanding == 1);
    let measured = alone.map(|scaled| scaled.frames_per_batch).enumerate().map(point);
    let squares = servers.iter().map(|n| (n * n) as f64).enumerate().map(point);
    Panel {
        title: "Records between hosts, one request at a time".to_owned(),
        x: Axis::names("servers", servers.iter().map(ToString::to_string).collect()),
        y: Axis::linear("records sent for a batch (mean)"),
        lines: true,
        series: vec![
            Series { name: "measured".to_owned(), points: measured.collect() },
            Series { name: "n²".to_owned(), points: squares.collect() },
        ],
    }
}
