//! One load on a cluster: so many requests of one shape from one or several clients, so many of
//! each client's under way at a time.
//!
//! All clients live in this process, on its one thread. What that costs is measured with the rest
//! (see [`cpu`](super::cpu)), since on a machine with few cores it takes from the cluster.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use shared_registers::cluster::Cluster;
use shared_registers::ids::OrderNumber;
use tokio::task::JoinSet;

use super::cpu::Meter;
use super::payload::Shape;
use super::table::Latencies;
use super::tally::Tally;
use crate::exit::bad_input;
use crate::session;

/// How many requests, and how.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Requests that are measured, of all clients together.
    pub(crate) requests: u64,
    /// Requests before them that are not.
    pub(crate) warmup: u64,
    /// Requests of each client that are under way at a time.
    pub(crate) outstanding: usize,
}

/// Files that are open beside the connections of one group of clients: other groups' and the
/// processes' logs.
const OTHER_FILES: u64 = 256;
/// What [`Load::long_enough`] adds is no more than so many bytes of payload.
const ADDED_BYTES: u64 = 64 << 20;

impl Load {
    /// As many requests as so many clients need at least: all of them are connected and have sent
    /// before the clock starts, and beginning and end are a small part of what is measured.
    pub(crate) fn long_enough(self, clients: usize, shape: Shape) -> Load {
        let under_way = (clients * self.outstanding) as u64;
        let bytes = u64::from(shape.request) + u64::from(shape.reply);
        let at_least = |times: u64| (times * under_way).min(ADDED_BYTES / bytes.max(1));
        let (requests, warmup) = (self.requests.max(at_least(20)), self.warmup.max(at_least(4)));
        Load { requests, warmup, outstanding: self.outstanding }
    }
}

/// The order numbers that a load was given, its warm-up included.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// The lowest.
    pub(crate) first: OrderNumber,
    /// The highest.
    pub(crate) last: OrderNumber,
}

/// Clients of one cluster that send at a time, and whose CPU time to look at meanwhile.
pub(crate) struct Group {
    clients: Vec<Arc<Client>>,
    meter: Meter,
}

impl Group {
    /// Connects as `count` clients from `first` on. Must be called within a runtime.
    pub(crate) fn connect(
        dir: &Path,
        cluster: &Cluster,
        (first, count): (u32, u32),
        meter: Meter,
    ) -> Result<Group> {
        raise_open_files(cluster, count)?;
        let end = u64::from(first) + u64::from(count);
        // A single one is looked for, and named, as every other command does.
        if count > 1 && end > u64::from(cluster.clients) {
            return Err(bad_input(format!(
                "--clients {count} are clients {first} to {}, and the cluster has keys for clients \
                 0 to {}: take fewer, or make a cluster for more with `difato cluster init \
                 --clients`",
                end - 1,
                cluster.clients.saturating_sub(1)
            )));
        }
        let clients = (first..).take(count as usize);
        let clients = clients.map(|id| session::connect(dir, id).map(Arc::new));
        Ok(Group { clients: clients.collect::<Result<_>>()?, meter })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &Client {
        &self.clients[0]
    }

    /// Puts a load on the cluster, shows its progress on stderr if that is a terminal, and adds
    /// what was measured to `tally`.
    pub(crate) async fn measure(
        &self,
        shape: Shape,
        load: Load,
        tally: &mut Tally,
    ) -> Result<Span> {
        let Load { requests, warmup, outstanding } = load;
        let bar = progress_bar(shape, warmup + requests);
        // Made before the clock starts: a histogram is half a megabyte.
        let [warming, measuring] = [warmup, requests].map(|n| Arc::new(Work::new(n, bar.clone())));
        let before = self.send(shape, outstanding, &warming).await?;
        let (cpu, start) = (self.meter.read()?, Instant::now());
        let span = self.send(shape, outstanding, &measuring).await?;
        let elapsed = start.elapsed();
        tally.add(&measuring.latencies(), elapsed, Some(self.meter.read()? - cpu));
        bar.finish_and_clear();
        join(before, span).ok_or_else(|| bad_input("no requests: there is nothing to measure"))
    }

    /// Has all clients send, whoever has room the next one, and waits for all answers.
    async fn send(
        &self,
        shape: Shape,
        outstanding: usize,
        work: &Arc<Work>,
    ) -> Result<Option<Span>> {
        let mut flights = JoinSet::new();
        for client in &self.clients {
            let flight = Flight::new(client.clone(), shape, outstanding, work.clone());
            flights.spawn(flight.send());
        }
        let mut span = None;
        while let Some(done) = flights.join_next().await {
            span = join(span, done.context("a client of the load broke")??);
        }
        Ok(span)
    }
}

/// Lets this process hold a connection of each client to each server.
fn raise_open_files(cluster: &Cluster, clients: u32) -> Result<()> {
    let wanted = u64::from(clients) * cluster.n() as u64 + OTHER_FILES;
    let allowed = guest_replica::raise_open_files(wanted);
    if allowed < wanted {
        return Err(bad_input(format!(
            "--clients {clients} of a cluster with {} servers need {wanted} open files, and at most \
             {allowed} are allowed: take fewer, or raise the hard limit (`ulimit -Hn`)",
            cluster.n()
        )));
    }
    Ok(())
}

/// What all clients work on.
struct Work {
    unsent: AtomicU64,
    latencies: Mutex<Latencies>,
    bar: ProgressBar,
}

impl Work {
    fn new(requests: u64, bar: ProgressBar) -> Work {
        let latencies = Mutex::new(Latencies::new());
        Work { unsent: AtomicU64::new(requests), latencies, bar }
    }

    /// Whether there is one more to send, which is then the caller's.
    fn take(&self) -> bool {
        let less = |unsent: u64| unsent.checked_sub(1);
        self.unsent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Nobody waits for it: there is one thread.
    fn latencies(&self) -> MutexGuard<'_, Latencies> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(a: Option<Span>, b: Option<Span>) -> Option<Span> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Span { first: a.first.min(b.first), last: a.last.max(b.last) }),
        (a, b) => a.or(b),
    }
}

fn progress_bar(shape: Shape, requests: u64) -> ProgressBar {
    // Hidden by itself where stderr is no terminal.
    let bar = ProgressBar::new(requests).with_prefix(shape.to_string());
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:40}] {pos}/{len} {eta}");
    match style {
        Ok(style) => bar.with_style(style.progress_chars("##-")),
        Err(_) => bar,
    }
}

/// One client's part.
struct Flight {
    client: Arc<Client>,
    shape: Shape,
    payload: Vec<u8>,
    outstanding: usize,
    work: Arc<Work>,
    span: Option<Span>,
}

impl Flight {
    fn new(client: Arc<Client>, shape: Shape, outstanding: usize, work: Arc<Work>) -> Flight {
        Flight { client, shape, payload: shape.payload(), outstanding, work, span: None }
    }

    /// Sends as long as there are any, and waits for all of its own.
    async fn send(mut self) -> Result<Option<Span>> {
        let mut under_way = VecDeque::with_capacity(self.outstanding);
        loop {
            while under_way.len() < self.outstanding && self.work.take() {
                let start = Instant::now();
                let pending = self.client.submit(self.payload.clone()).await?;
                under_way.push_back((start, pending));
            }
            // One client's requests are delivered in the order sent, so the first is done first.
            let Some((start, pending)) = under_way.pop_front() else { return Ok(self.span) };
            let answer = pending.await?;
            self.work.latencies().add(start.elapsed());
            self.check(answer.order, answer.bytes.len())?;
            self.work.bar.inc(1);
        }
    }

    fn check(&mut self, order: OrderNumber, reply: usize) -> Result<()> {
        let wanted = self.shape.reply as usize;
        if reply != wanted {
            return Err(bad_input(format!(
                "a reply has {reply} bytes instead of {wanted}: the cluster must run the \
                 application echo-sized (see cluster.toml)"
            )));
        }
        let first = match self.span {
            Some(Span { first, last }) => {
                ensure!(order > last, "order {order} was answered after order {last}");
                first
            }
            None => order,
        };
        self.span = Some(Span { first, last: order });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_long_enough_for_what_is_under_way() {
        let of = |load: Load| (load.requests, load.warmup, load.outstanding);
        let few = Load { requests: 10_000, warmup: 500, outstanding: 16 };
        assert_eq!(of(few.long_enough(256, Shape::EMPTY)), (81_920, 16_384, 16));
        assert_eq!(of(few.long_enough(1, Shape::EMPTY)), (10_000, 500, 16));
        // 64 MiB of payload are added at most, and nothing is taken away.
        let large = Shape { request: 1 << 20, reply: 0 };
        let load = Load { requests: 100, warmup: 1, outstanding: 16 };
        assert_eq!(of(load.long_enough(1, large)), (100, 64, 16));
    }
}
