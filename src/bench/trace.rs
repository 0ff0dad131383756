//! `difato bench --trace`: sends requests one at a time, has every guest note what it does when, and
//! fetches that between them, so that nothing but the noting itself is in their way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use client::{Client, ClientConfig};
use protocol::limits::{TRACE_PAGE_POINTS, TRACE_POINTS};
use protocol::messages::{Body, Reply, ToClient};
use protocol::trace::Points;
use shared_registers::ids::ServerId;

use super::path::{Heard, Noted, Paths, Request, Trace};
use super::payload::Shape;
use crate::session::Operator;

/// Requests of each shape that are traced, at most.
pub(crate) const MOST_TRACED: u64 = 2_000;
/// Requests between two questions to the guests, at most.
const REQUESTS_PER_ROUND: usize = 256;
/// Answers that a guest may give for one round: all that it keeps, and some without a point.
const PAGES_PER_ROUND: usize = 2 * TRACE_POINTS.div_ceil(TRACE_PAGE_POINTS);
/// A guest has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Replies as they come, with the session and the count that they answer.
type Witnessed = Arc<Mutex<Vec<((u64, u64), Heard)>>>;

/// Who traces: a client whose replies are witnessed, and the operator.
pub(crate) struct Tracer<'a> {
    operator: &'a Operator,
    client: Client,
    witnessed: Witnessed,
    /// By server, the number of the point that is asked for next; `None` if it did not answer.
    next: Vec<Option<u64>>,
}

impl<'a> Tracer<'a> {
    /// Connects as this client of the cluster in `dir`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub(crate) fn connect(operator: &'a Operator, dir: &Path, client: u32) -> Result<Tracer<'a>> {
        let witnessed = Witnessed::default();
        let mut config = ClientConfig::load(dir, client)?;
        let sink = witnessed.clone();
        config.witness = Some(Arc::new(move |server, message| {
            if let ToClient::Reply(reply) = message {
                let heard = (name(reply), heard(server, reply));
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
            }
        }));
        let next = vec![None; operator.cluster.n()];
        Ok(Tracer { operator, client: Client::connect(config), witnessed, next })
    }

    /// Traces requests of one shape, after `warmup` others.
    pub(crate) async fn trace(&mut self, shape: Shape, warmup: u64, count: u64) -> Result<Trace> {
        let payload = shape.payload();
        for _ in 0..warmup {
            self.client.invoke(payload.clone()).await?;
        }
        let (f, n) = (self.operator.cluster.f, self.operator.cluster.n());
        let mut paths = Paths::new(f, shape.reply > 0);
        // At each guest a request has a point per server's record, and less than 8 others.
        let round = REQUESTS_PER_ROUND.min(TRACE_POINTS / 2 / (n + 8));
        let mut left = count;
        while left > 0 {
            // All that was noted before is of others.
            for server in ServerId::all(n) {
                let points = self.ask(server, u64::MAX).await;
                self.next[server.index()] = points.map(|points| points.end);
            }
            let now = left.min(round as u64);
            let requests = self.send(&payload, now).await?;
            let mut noted = Vec::with_capacity(n);
            for server in ServerId::all(n) {
                noted.push(self.fetch(server).await);
            }
            requests.iter().for_each(|request| paths.add(request, &noted));
            left -= now;
        }
        let trace = paths.table(shape.to_string());
        if trace.traced == 0 {
            bail!(
                "{shape}: none of {count} requests could be traced ({} lack a point, the points of \
                 {} do not rise): all servers must run on this machine, answer the operator, and \
                 have little else to do",
                trace.missing,
                trace.not_rising
            );
        }
        Ok(trace)
    }

    /// Sends so many requests, one at a time.
    async fn send(&mut self, payload: &[u8], count: u64) -> Result<Vec<Request>> {
        self.take_witnessed();
        let mut requests = Vec::new();
        for _ in 0..count {
            let payload = payload.to_vec();
            let submitted_ns = wall_ns();
            let reply = self.client.invoke(payload).await?;
            let answered_ns = wall_ns();
            let heard = Vec::new();
            requests.push(Request { id: reply.id, submitted_ns, heard, answered_ns });
        }
        let mut witnessed = BTreeMap::new();
        for (name, heard) in self.take_witnessed() {
            witnessed.entry(name).or_insert_with(Vec::new).push(heard);
        }
        for request in &mut requests {
            let name = (request.id.session, request.id.count);
            request.heard = witnessed.remove(&name).unwrap_or_default();
        }
        Ok(requests)
    }

    fn take_witnessed(&self) -> Vec<((u64, u64), Heard)> {
        std::mem::take(&mut *self.witnessed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, server: ServerId, from: u64) -> Option<Points> {
        self.operator.ask_trace(server, from, PATIENCE).await.ok()
    }

    /// What a guest has noted since it was asked last.
    async fn fetch(&mut self, server: ServerId) -> Noted {
        let mut noted = Noted::default();
        let Some(mut next) = self.next[server.index()] else { return noted };
        for _ in 0..PAGES_PER_ROUND {
            let Some(Points { first, end, points }) = self.ask(server, next).await else { break };
            next = first.saturating_add(points.len() as u64);
            points.into_iter().take(TRACE_PAGE_POINTS).for_each(|point| noted.take(point));
            if next >= end {
                break;
            }
        }
        noted
    }
}

/// Which of its client's orders a reply answers.
fn name(reply: &Reply) -> (u64, u64) {
    (reply.session, reply.count)
}

fn heard(server: ServerId, reply: &Reply) -> Heard {
    let bytes = matches!(reply.body, Body::Here(_));
    Heard { server, at_ns: wall_ns(), value: (reply.order, reply.digest), bytes }
}

/// The clock that guests and hosts note times by.
fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
