//! All loads that the targets need, on clusters of its own, in small slices that take turns.
//!
//! A machine that others use too is now faster, now slower. What is compared is therefore measured
//! in turns, a slice each, in rounds whose order is reversed every time; and a row is the sum of
//! its slices. Three parts, one after the other:
//!
//! * **latency**: the floor, a cluster with all servers alive, and one with f of them dead, each
//!   with every payload, one request at a time. The dead are the last servers, guests and hosts:
//!   not the sequencer, whose death is a failover and no steady state. After half of the rounds the
//!   cluster that was alive loses its f servers and a fresh one takes its place, so that one of
//!   three clusters is measured both ways;
//! * **throughput**: many requests under way, from one client and from sixteen;
//! * **durability**: the same loads on a cluster of durability `disk` and on one of `process`.

use anyhow::Result;
use shared_registers::cluster::Durability;
use shared_registers::ids::ServerId;

use super::cpu::Meter;
use super::floor::Floor;
use super::own::{Own, Spec};
use super::payload::Shape;
use super::run::{Group, Load};
use super::table::Row;
use super::tally::{CLUSTER, Tally};
use crate::output;
use crate::supervisor::Role;

/// The payloads of the targets.
pub(crate) const SHAPES: [Shape; 3] = [EMPTY, ANSWER, FULL];
/// 0/0.
pub(crate) const EMPTY: Shape = Shape { request: 0, reply: 0 };
/// 0/4 KB.
pub(crate) const ANSWER: Shape = Shape { request: 0, reply: 4096 };
/// 4/4 KB.
pub(crate) const FULL: Shape = Shape { request: 4096, reply: 4096 };
/// The loads of the throughput part: payload, clients, outstanding requests of each.
pub(crate) const MANY: [(Shape, usize, usize); 5] =
    [(EMPTY, 1, 64), (EMPTY, 16, 4), (EMPTY, 16, 64), (FULL, 1, 64), (FULL, 16, 4)];
/// Those of the durability part.
pub(crate) const DURABLE: [(Shape, usize, usize); 3] =
    [(EMPTY, 1, 1), (FULL, 1, 1), (EMPTY, 1, 64)];

/// The scenario of a cluster whose f last servers are dead.
pub(crate) const DEAD: &str = "f dead";
/// Of one of durability `disk`.
pub(crate) const DISK: &str = "disk";
/// Of one of durability `process` in turns with that.
pub(crate) const PROCESS: &str = "process";

/// Rounds of each part, at most.
const ROUNDS: u64 = 10;
/// Pairs of clusters, one alive and one with f dead, that are measured one after the other.
const PAIRS: u64 = 2;
/// With many under way so many times `--requests` are measured: they are soon done.
const MANY_TIMES: u64 = 10;
/// Of a disk so many times fewer.
const DISK_TIMES_FEWER: u64 = 5;
/// Requests before the first slice of a cluster.
const WARMUP: u64 = 1000;

/// How much is measured.
struct Plan {
    f: usize,
    requests: u64,
    rounds: u64,
}

impl Plan {
    /// Part of `requests` for each round.
    fn slice(&self, requests: u64, outstanding: usize) -> Load {
        let requests = requests.div_ceil(self.rounds);
        Load { requests, warmup: (requests / 10).min(200), outstanding }
    }

    async fn start(&self, clients: u32, durability: Durability) -> Result<Own> {
        Own::start(&Spec { durability, ..Spec::new(self.f, clients) }).await
    }

    /// Clients of the cluster, which have warmed it up.
    async fn clients(&self, own: &Own, clients: (u32, u32)) -> Result<Group> {
        let meter = Meter::of(own);
        let group = Group::connect(own.dir(), &own.operator.cluster, clients, meter)?;
        let load = Load { requests: WARMUP.min(self.requests), warmup: 0, outstanding: 1 };
        for shape in SHAPES {
            group.measure(shape, load, &mut Tally::new(shape, group.len(), 1)).await?;
        }
        Ok(group)
    }
}

/// Measures everything, of clusters that tolerate `f` faulty servers. `requests` scales it.
pub(crate) async fn measure(f: usize, requests: u64) -> Result<Vec<Row>> {
    let plan = Plan { f, requests, rounds: (requests / 10).clamp(PAIRS, ROUNDS) };
    let mut rows = latency(&plan).await?;
    rows.extend(throughput(&plan).await?);
    rows.extend(durability(&plan).await?);
    Ok(rows)
}

/// One kind of load, and where its slices are summed up.
struct Series {
    shape: Shape,
    load: Load,
    scenario: &'static str,
    tally: Tally,
}

impl Series {
    fn new(shape: Shape, clients: usize, load: Load, scenario: &'static str) -> Series {
        Series { shape, load, scenario, tally: Tally::new(shape, clients, load.outstanding) }
    }

    async fn slice(&mut self, group: &Group) -> Result<()> {
        group.measure(self.shape, self.load, &mut self.tally).await.map(|_| ())
    }

    fn row(&self) -> Row {
        self.tally.row(self.scenario)
    }
}

/// The order in which `count` things take their turn in this round.
fn turns(round: u64, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| if round.is_multiple_of(2) { i } else { count - 1 - i })
}

async fn latency(plan: &Plan) -> Result<Vec<Row>> {
    output::print("Latency: the floor, all servers alive, f dead, in turns ...")?;
    let load = plan.slice(plan.requests, 1);
    let servers = 2 * plan.f + 1;
    let mut floors = SHAPES.map(|shape| Floor::new(shape, servers));
    let mut alive = SHAPES.map(|shape| Series::new(shape, 1, load, CLUSTER));
    let mut dead = SHAPES.map(|shape| Series::new(shape, 1, load, DEAD));
    let mut older = plan.start(1, Durability::Process).await?;
    for pair in 0..PAIRS {
        let newer = plan.start(1, Durability::Process).await?;
        kill_last(&mut older, plan.f)?;
        let whole = plan.clients(&newer, (0, 1)).await?;
        let halved = plan.clients(&older, (0, 1)).await?;
        let rounds = plan.rounds / PAIRS + u64::from(pair < plan.rounds % PAIRS);
        for round in 0..rounds {
            for turn in turns(round, 3 * SHAPES.len()) {
                let (shape, kind) = (turn % SHAPES.len(), turn / SHAPES.len());
                match kind {
                    0 => floors[shape].measure(load.requests).await?,
                    1 => alive[shape].slice(&whole).await?,
                    _ => dead[shape].slice(&halved).await?,
                }
            }
        }
        std::mem::replace(&mut older, newer).close()?;
    }
    older.close()?;
    let floors = floors.iter().map(Floor::row);
    Ok(floors.chain(alive.iter().chain(&dead).map(Series::row)).collect())
}

/// Kills guest and host of the `f` last servers.
fn kill_last(own: &mut Own, f: usize) -> Result<()> {
    let n = own.operator.cluster.n();
    for id in ServerId::all(n).skip(n - f) {
        for role in [Role::GuestReplica, Role::HostAgent] {
            own.supervisor.kill(role, id)?;
        }
    }
    Ok(())
}

async fn throughput(plan: &Plan) -> Result<Vec<Row>> {
    output::print("Throughput: one client and sixteen, in turns ...")?;
    let own = plan.start(17, Durability::Process).await?;
    let (one, sixteen) = (plan.clients(&own, (0, 1)).await?, plan.clients(&own, (1, 16)).await?);
    let series = |(shape, clients, outstanding)| {
        let load = plan.slice(MANY_TIMES * plan.requests, outstanding);
        Series::new(shape, clients, load, CLUSTER)
    };
    let mut all = MANY.map(series);
    for round in 0..plan.rounds {
        for turn in turns(round, all.len()) {
            let (_, clients, _) = MANY[turn];
            all[turn].slice(if clients == 1 { &one } else { &sixteen }).await?;
        }
    }
    own.close()?;
    Ok(all.iter().map(Series::row).collect())
}

async fn durability(plan: &Plan) -> Result<Vec<Row>> {
    output::print("Durability: disk and process, in turns ...")?;
    let disk = plan.start(1, Durability::Disk).await?;
    let process = plan.start(1, Durability::Process).await?;
    let groups = [plan.clients(&disk, (0, 1)).await?, plan.clients(&process, (0, 1)).await?];
    let requests = plan.requests.div_ceil(DISK_TIMES_FEWER);
    let series = |scenario| {
        DURABLE.map(|(shape, clients, outstanding)| {
            let times = if outstanding > 1 { MANY_TIMES } else { 1 };
            Series::new(shape, clients, plan.slice(times * requests, outstanding), scenario)
        })
    };
    let mut all = [series(DISK), series(PROCESS)];
    for round in 0..plan.rounds {
        for turn in turns(round, 2 * DURABLE.len()) {
            let (kind, load) = (turn % 2, turn / 2);
            all[kind][load].slice(&groups[kind]).await?;
        }
    }
    disk.close()?;
    process.close()?;
    Ok(all.iter().flatten().map(Series::row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        assert_eq!(turns(0, 3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(turns(1, 3).collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn slices_add_up_to_at_least_what_was_asked_for() {
        let plan = Plan { f: 1, requests: 95, rounds: 10 };
        let load = plan.slice(plan.requests, 4);
        assert_eq!((load.requests, load.warmup, load.outstanding), (10, 1, 4));
    }
}
