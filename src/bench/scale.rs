//! How cost grows with servers, clients, payloads and batches.
//!
//! For each there are clusters of their own. Besides what every row has, the servers' counters before
//! and after tell how many orders a PROPOSE held and how many frames hosts sent each other for it.

use anyhow::Result;

use super::cpu::Meter;
use super::own::{Own, Spec};
use super::payload::Shape;
use super::run::{Group, Load};
use super::table::{CPU_LEGEND, Row, columns, seconds};
use super::tally::Tally;
use crate::output;

/// Faulty servers tolerated.
const FAULTS: [usize; 3] = [1, 2, 3];
/// Requests of one client under way at a time: what makes batches.
pub(crate) const OUTSTANDING: [usize; 5] = [1, 4, 16, 64, 256];
/// Clients that send at a time.
const CLIENTS: [u32; 5] = [1, 4, 16, 64, 256];
/// Requests that each of them has under way, in one run and in another.
const EACH: [usize; 2] = [1, 16];
/// Bytes of a request, the header of the largest included, which is as large as can be.
const PAYLOADS: [u32; 7] = [0, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, (1 << 20) - 8];
/// Requests of such payloads under way, in one run and in another.
const PAYLOADS_OUTSTANDING: [usize; 2] = [1, 16];
/// Of one payload so many bytes are sent, at most, unless that is less than [`LEAST`] requests or
/// not [long enough](Load::long_enough).
const PAYLOAD_BYTES: u64 = 64 << 20;
/// See [`PAYLOAD_BYTES`].
const LEAST: u64 = 100;

/// A row, and what the servers counted meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Scaled {
    pub(crate) row: Row,
    /// Servers.
    pub(crate) n: usize,
    /// Bytes of a request.
    pub(crate) bytes: u32,
    /// Orders in a PROPOSE, on average.
    pub(crate) orders_per_batch: f64,
    /// Records that hosts sent each other for a PROPOSE, on average.
    pub(crate) frames_per_batch: f64,
}

/// Everything.
#[derive(Default)]
pub(crate) struct Scale {
    /// By how many faulty servers are tolerated, and how many requests are under way.
    pub(crate) faults: Vec<Scaled>,
    /// By how many clients send.
    pub(crate) clients: Vec<Scaled>,
    /// By the payload's size.
    pub(crate) payloads: Vec<Scaled>,
}

/// What the servers of a cluster counted so far.
#[derive(Clone, Copy)]
struct Counts {
    batches: u64,
    frames: u64,
}

async fn counts(own: &Own) -> Result<Counts> {
    let said = own.ask_all().await?;
    let (batches, frames) = (said.sum("batches_proposed"), said.sum("host_record_frames_sent"));
    Ok(Counts { batches, frames })
}

/// Measures one load on a cluster, or more of it if that is too short.
async fn measure_one(own: &Own, group: &Group, shape: Shape, load: Load) -> Result<Scaled> {
    let load = load.long_enough(group.len(), shape);
    let before = counts(own).await?;
    let mut tally = Tally::new(shape, group.len(), load.outstanding);
    group.measure(shape, load, &mut tally).await?;
    let after = counts(own).await?;
    let n = own.operator.cluster.n();
    let batches = (after.batches - before.batches).max(1) as f64;
    Ok(Scaled {
        row: tally.row(&format!("{n} servers")),
        n,
        bytes: shape.request,
        orders_per_batch: (load.warmup + load.requests) as f64 / batches,
        frames_per_batch: (after.frames - before.frames) as f64 / batches,
    })
}

/// Measures everything, each load with so many requests at least, and prints a table of each kind.
pub(crate) async fn measure(requests: u64, warmup: u64) -> Result<Scale> {
    let mut scale = Scale::default();
    let load = |outstanding| Load { requests, warmup, outstanding };
    for f in FAULTS {
        let own = Own::start(&Spec::new(f, 1)).await?;
        let group = connect(&own, 1)?;
        for outstanding in OUTSTANDING {
            let scaled = measure_one(&own, &group, Shape::EMPTY, load(outstanding)).await?;
            scale.faults.push(scaled);
        }
        drop(group);
        own.close()?;
    }
    print("By servers and by requests under way", &scale.faults)?;
    let own = Own::start(&Spec::new(1, CLIENTS[CLIENTS.len() - 1])).await?;
    for count in CLIENTS {
        let group = connect(&own, count)?;
        for outstanding in EACH {
            let scaled = measure_one(&own, &group, Shape::EMPTY, load(outstanding)).await?;
            scale.clients.push(scaled);
        }
    }
    own.close()?;
    print("By clients", &scale.clients)?;
    for request in PAYLOADS {
        let own = Own::start(&Spec::new(1, 1)).await?;
        let group = connect(&own, 1)?;
        let most = (PAYLOAD_BYTES / u64::from(request.max(1))).max(LEAST);
        for outstanding in PAYLOADS_OUTSTANDING {
            let Load { requests, warmup, outstanding } = load(outstanding);
            let (requests, warmup) = (requests.min(most), warmup.min(most / 10));
            let load = Load { requests, warmup, outstanding };
            let shape = Shape { request, reply: 0 };
            scale.payloads.push(measure_one(&own, &group, shape, load).await?);
        }
        drop(group);
        own.close()?;
    }
    print("By payload", &scale.payloads)?;
    Ok(scale)
}

fn connect(own: &Own, clients: u32) -> Result<Group> {
    Group::connect(own.dir(), &own.operator.cluster, (0, clients), Meter::of(own))
}

fn print(title: &str, rows: &[Scaled]) -> Result<()> {
    output::print(&format!("{title}:\n{}\n", render(rows)))
}

fn render(rows: &[Scaled]) -> String {
    let head = [
        "servers",
        "clients",
        "outstanding",
        "payload",
        "p50 us",
        "p99 us",
        "requests/s",
        "MB/s",
        "orders/batch",
        "frames/batch",
        "frames/n^2",
        "guests",
        "hosts",
        "load",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for Scaled { row, n, orders_per_batch, frames_per_batch, .. } in rows {
        let cpu = row.cpu_s_per_million.unwrap_or_default();
        lines.push(vec![
            n.to_string(),
            row.clients.to_string(),
            row.outstanding.to_string(),
            row.payload.clone(),
            format!("{:.1}", row.p50_us),
            format!("{:.1}", row.p99_us),
            format!("{:.0}", row.requests_per_s),
            format!("{:.1}", row.payload_mb_per_s),
            format!("{orders_per_batch:.2}"),
            format!("{frames_per_batch:.2}"),
            format!("{:.3}", frames_per_batch / (n * n) as f64),
            seconds(cpu.guests),
            seconds(cpu.host_agents),
            seconds(Some(cpu.load)),
        ]);
    }
    columns(&lines) + CPU_LEGEND
}
