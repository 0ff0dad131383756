//! All loads that the targets need, on clusters of its own, in small slices that take turns.
//!
//! A machine that others use too is now faster, now slower. What is compared is therefore measured
//! in turns, a slice each, in rounds whose order is reversed every time; and a row is the sum of
//! its slices. Three parts, one after the other:
//!
//! * **latency**: the floor, a cluster with all servers alive, and one with f of them dead, guests
//!   and hosts, each with every payload, one request at a time. With every other pair of clusters
//!   the sequencer is among the dead, and the next one serves before anything is measured: its
//!   death is a failover and no steady state. After each pair the cluster that was alive loses f
//!   servers and a fresh one takes its place, so that most clusters are measured both ways;
//! * **throughput**: many requests under way, from one client and from sixteen;
//! * **durability**: the same loads on a cluster of durability `disk` and on one of `process`.
//!
//! A sequencer that changes meanwhile, although nobody killed it, makes outliers: it is counted.

use anyhow::{Result, ensure};
use shared_registers::cluster::Durability;
use shared_registers::ids::{ServerId, Term};

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
pub(crate) const SHAPES: [Shape; 3] = [Shape::EMPTY, ANSWER, FULL];
/// 0/4 KB.
pub(crate) const ANSWER: Shape = Shape { request: 0, reply: 4096 };
/// 4/4 KB.
pub(crate) const FULL: Shape = Shape { request: 4096, reply: 4096 };
/// The loads of the throughput part: payload, clients, outstanding requests of each.
pub(crate) const MANY: [(Shape, usize, usize); 5] = [
    (Shape::EMPTY, 1, 64),
    (Shape::EMPTY, 16, 4),
    (Shape::EMPTY, 16, 64),
    (FULL, 1, 64),
    (FULL, 16, 4),
];
/// Those of the durability part.
pub(crate) const DURABLE: [(Shape, usize, usize); 3] =
    [(Shape::EMPTY, 1, 1), (FULL, 1, 1), (Shape::EMPTY, 1, 64)];

/// The scenario of a cluster with f servers dead that the sequencer is not among.
pub(crate) const DEAD: &str = "f dead";
/// Of one whose f dead servers are the sequencer and those whose turn would come next.
pub(crate) const DEAD_SEQUENCER: &str = "f dead, the sequencer among them";
/// Of one of durability `disk`.
pub(crate) const DISK: &str = "disk";
/// Of one of durability `process` in turns with that.
pub(crate) const PROCESS: &str = "process";

/// Rounds of each part, at most.
const ROUNDS: u64 = 10;
/// Pairs of clusters, one alive and one with f dead, that are measured one after the other.
const PAIRS: u64 = 4;
/// With many under way so many times `--requests` are measured: they are soon done, and beginning
/// and end of a slice shall be a small part of it.
const MANY_TIMES: u64 = 50;
/// Of a disk so many times fewer.
const DISK_TIMES_FEWER: u64 = 5;
/// Requests before the first slice of a cluster.
const WARMUP: u64 = 1000;

/// Everything that was measured.
pub(crate) struct Measured {
    /// A row of each load.
    pub(crate) rows: Vec<Row>,
    /// In how many terms more each kind of cluster was afterwards than before.
    pub(crate) changes: Vec<(&'static str, u64)>,
}

/// How much is measured.
struct Plan {
    f: usize,
    requests: u64,
    rounds: u64,
}

impl Plan {
    /// Part of `requests` of all clients for each round.
    fn slice(&self, requests: u64, clients: usize, outstanding: usize) -> Load {
        let requests = requests.div_ceil(self.rounds);
        // With many under way, until all of them have been answered and sent again.
        let many = if outstanding > 1 { 2 * (clients * outstanding) as u64 } else { 0 };
        Load { requests, warmup: (requests / 10).min(200).max(many), outstanding }
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
pub(crate) async fn measure(f: usize, requests: u64) -> Result<Measured> {
    let plan = Plan { f, requests, rounds: (requests / 10).clamp(PAIRS, ROUNDS) };
    let mut all = latency(&plan).await?;
    for part in [throughput(&plan).await?, durability(&plan).await?] {
        all.rows.extend(part.rows);
        all.changes.extend(part.changes);
    }
    Ok(all)
}

/// A cluster while it is measured, and its term when that began.
struct Watched<'a> {
    own: &'a Own,
    began: Term,
}

impl Watched<'_> {
    async fn begin(own: &Own) -> Result<Watched<'_>> {
        Ok(Watched { own, began: own.newest_term().await? })
    }

    /// How many terms were left since.
    async fn changes(&self) -> Result<u64> {
        Ok(self.own.newest_term().await?.0 - self.began.0)
    }
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

async fn latency(plan: &Plan) -> Result<Measured> {
    output::print("Latency: the floor, all servers alive, f dead, in turns ...")?;
    let load = plan.slice(plan.requests, 1, 1);
    let series = |scenario| SHAPES.map(|shape| Series::new(shape, 1, load, scenario));
    let mut floors = SHAPES.map(|shape| Floor::new(shape, 2 * plan.f + 1));
    let (mut alive, mut dead) = (series(CLUSTER), [DEAD, DEAD_SEQUENCER].map(series));
    let mut changes = [(CLUSTER, 0), (DEAD, 0), (DEAD_SEQUENCER, 0)];
    let mut older = plan.start(1, Durability::Process).await?;
    for pair in 0..PAIRS {
        let newer = plan.start(1, Durability::Process).await?;
        let which = (pair % 2) as usize;
        let victims = kill_f(&mut older, plan.f, which == 1).await?;
        let whole = plan.clients(&newer, (0, 1)).await?;
        let halved = plan.clients(&older, (0, 1)).await?;
        ensure_served(&older, &victims).await?;
        let watched = [Watched::begin(&newer).await?, Watched::begin(&older).await?];
        let rounds = plan.rounds / PAIRS + u64::from(pair < plan.rounds % PAIRS);
        for round in 0..rounds {
            for turn in turns(round, 3 * SHAPES.len()) {
                let (shape, kind) = (turn % SHAPES.len(), turn / SHAPES.len());
                match kind {
                    0 => floors[shape].measure(load.requests).await?,
                    1 => alive[shape].slice(&whole).await?,
                    _ => dead[which][shape].slice(&halved).await?,
                }
            }
        }
        changes[0].1 += watched[0].changes().await?;
        changes[1 + which].1 += watched[1].changes().await?;
        std::mem::replace(&mut older, newer).close()?;
    }
    older.close()?;
    let floors = floors.iter().map(Floor::row);
    let rows = floors.chain(alive.iter().chain(dead.iter().flatten()).map(Series::row)).collect();
    Ok(Measured { rows, changes: changes.into() })
}

/// Kills guests and hosts of `f` servers: of the sequencer and of those whose turn comes next, or
/// of those whose turn comes last.
async fn kill_f(own: &mut Own, f: usize, sequencer_too: bool) -> Result<Vec<ServerId>> {
    let n = own.operator.cluster.n();
    let term = own.newest_term().await?;
    let first = if sequencer_too { 0 } else { n - f };
    let turns = (first..first + f).map(|turn| Term(term.0 + turn as u64).sequencer(n));
    let victims: Vec<ServerId> = turns.collect();
    for id in &victims {
        for role in [Role::GuestReplica, Role::HostAgent] {
            own.supervisor.kill(role, *id)?;
        }
    }
    Ok(victims)
}

/// Makes sure that a server serves which is not dead.
async fn ensure_served(own: &Own, dead: &[ServerId]) -> Result<()> {
    let term = own.newest_term().await?;
    let sequencer = term.sequencer(own.operator.cluster.n());
    ensure!(!dead.contains(&sequencer), "server {sequencer} is dead and is to serve term {term}");
    Ok(())
}

async fn throughput(plan: &Plan) -> Result<Measured> {
    output::print("Throughput: one client and sixteen, in turns ...")?;
    let own = plan.start(17, Durability::Process).await?;
    let (one, sixteen) = (plan.clients(&own, (0, 1)).await?, plan.clients(&own, (1, 16)).await?);
    let series = |(shape, clients, outstanding)| {
        let load = plan.slice(MANY_TIMES * plan.requests, clients, outstanding);
        Series::new(shape, clients, load, CLUSTER)
    };
    let mut all = MANY.map(series);
    let watched = Watched::begin(&own).await?;
    for round in 0..plan.rounds {
        for turn in turns(round, all.len()) {
            let (_, clients, _) = MANY[turn];
            all[turn].slice(if clients == 1 { &one } else { &sixteen }).await?;
        }
    }
    let changes = vec![("throughput", watched.changes().await?)];
    own.close()?;
    Ok(Measured { rows: all.iter().map(Series::row).collect(), changes })
}

async fn durability(plan: &Plan) -> Result<Measured> {
    output::print("Durability: disk and process, in turns ...")?;
    let disk = plan.start(1, Durability::Disk).await?;
    let process = plan.start(1, Durability::Process).await?;
    let groups = [plan.clients(&disk, (0, 1)).await?, plan.clients(&process, (0, 1)).await?];
    let requests = plan.requests.div_ceil(DISK_TIMES_FEWER);
    let series = |scenario| {
        DURABLE.map(|(shape, clients, outstanding)| {
            let times = if outstanding > 1 { MANY_TIMES } else { 1 };
            let load = plan.slice(times * requests, clients, outstanding);
            Series::new(shape, clients, load, scenario)
        })
    };
    let mut all = [series(DISK), series(PROCESS)];
    let watched = [Watched::begin(&disk).await?, Watched::begin(&process).await?];
    for round in 0..plan.rounds {
        for turn in turns(round, 2 * DURABLE.len()) {
            let (kind, load) = (turn % 2, turn / 2);
            all[kind][load].slice(&groups[kind]).await?;
        }
    }
    let mut changes = Vec::new();
    for (scenario, watched) in [DISK, PROCESS].into_iter().zip(watched) {
        changes.push((scenario, watched.changes().await?));
    }
    disk.close()?;
    process.close()?;
    Ok(Measured { rows: all.iter().flatten().map(Series::row).collect(), changes })
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
        let load = plan.slice(plan.requests, 1, 1);
        assert_eq!((load.requests, load.warmup, load.outstanding), (10, 1, 1));
        // All that is under way twice.
        let load = plan.slice(plan.requests, 16, 4);
        assert_eq!((load.requests, load.warmup, load.outstanding), (10, 128, 4));
    }
}
