//! From points in time to a table: where the microseconds of a request go, hop by hop.
//!
//! A request is done when its client has `f + 1` equal replies (and the bytes). So its path is
//! followed back from the reply that completed them: from the server that sent it, *R*, to the record
//! that committed the order there, a vote of *V* (R itself or another), to the PROPOSE of the
//! sequencer *S* that it is about. What other servers did meanwhile nobody waited for, and it is not in
//! the table. The points of one path follow each other, so the hops add up to the whole.
//!
//! Points are taken by different processes, each at its own moment: a host's stamp is the beginning of
//! the turn of its loop in which it admitted the record, and a guest may have been awake already when
//! there was something to see. Such a point is moved to where its neighbours let it be. A request that
//! lacks a point, or whose other points do not rise, is left out and counted.

use std::collections::{BTreeMap, BTreeSet};

use protocol::trace::{Moment, Point};
use serde::Serialize;
use shared_registers::crypto::Digest;
use shared_registers::ids::{Micros, OrderId, OrderNumber, Seq, ServerId};

use super::table::columns;

/// The hops, each from one point of a path to the next.
pub(crate) const HOPS: [&str; 14] = [
    "client seals and sends it; guest S wakes up",
    "guest S opens the order",
    "guest S makes a batch and writes PROPOSE",
    "guest S rings; host S wakes up",
    "host S admits and sends it; host V takes it; guest V wakes up",
    "guest V finds PROPOSE",
    "guest V reads PROPOSE and writes ACCEPT",
    "guest V rings; host V wakes up",
    "host V admits it, and sends it if R is another; guest R wakes up",
    "guest R finds the vote",
    "guest R reads the vote; the order is committed and executed",
    "guest R seals the reply",
    "guest R sends it; client wakes up and opens it",
    "client believes it and hands it to the caller",
];
const POINTS: usize = HOPS.len() + 1;

/// A reply as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// Who sent it.
    pub(crate) server: ServerId,
    /// When the client had opened it, in nanoseconds since 1970.
    pub(crate) at_ns: u64,
    /// What `f + 1` servers have to say alike.
    pub(crate) value: (OrderNumber, Digest),
    /// Whether the reply's bytes were in it.
    pub(crate) bytes: bool,
}

/// A request as its client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Its name.
    pub(crate) id: OrderId,
    /// When it was handed to the client library.
    pub(crate) submitted_ns: u64,
    /// The replies, in the order in which they came.
    pub(crate) heard: Vec<Heard>,
    /// When the caller had the answer.
    pub(crate) answered_ns: u64,
}

impl Request {
    /// The reply with which the client had `f + 1` equal ones, and the bytes if there are any.
    fn decisive(&self, f: usize, wants_bytes: bool) -> Option<&Heard> {
        (0..self.heard.len()).find_map(|last| {
            let (so_far, last) = (&self.heard[..=last], &self.heard[last]);
            let alike = so_far.iter().filter(|heard| heard.value == last.value);
            let servers: BTreeSet<_> = alike.clone().map(|heard| heard.server).collect();
            let bytes = !wants_bytes || alike.clone().any(|heard| heard.bytes);
            (servers.len() > f && bytes).then_some(last)
        })
    }
}

/// A record that was read: where, when the reader woke up for it, when it read it, its stamp.
#[derive(Clone, Copy)]
struct Found {
    position: (ServerId, Seq),
    woke_ns: u64,
    at_ns: u64,
    stamp: Micros,
}

/// What one guest noted, by what it is about. What happened twice counts as it happened first.
#[derive(Default)]
pub(crate) struct Noted {
    received: BTreeMap<OrderId, Point>,
    written: BTreeMap<Seq, u64>,
    read: BTreeMap<(ServerId, Seq), Found>,
    proposed: BTreeMap<OrderId, Found>,
    /// When, and by reading what.
    delivered: BTreeMap<OrderId, (u64, Found)>,
    replied: BTreeMap<OrderId, u64>,
    last: Option<Found>,
}

impl Noted {
    /// Takes the next point that the guest noted.
    pub(crate) fn take(&mut self, point: Point) {
        let Point { woke_ns, at_ns, moment } = point;
        match moment {
            Moment::Received(id) => {
                self.received.entry(id).or_insert(point);
            }
            Moment::Written(seq) => {
                self.written.entry(seq).or_insert(at_ns);
            }
            Moment::Read { writer, seq, time, order } => {
                let found = Found { position: (writer, seq), woke_ns, at_ns, stamp: time };
                self.read.entry((writer, seq)).or_insert(found);
                if let Some(id) = order {
                    self.proposed.entry(id).or_insert(found);
                }
                self.last = Some(found);
            }
            Moment::Delivered(id) => {
                if let Some(found) = self.last {
                    self.delivered.entry(id).or_insert((at_ns, found));
                }
            }
            Moment::Replied(id) => {
                self.replied.entry(id).or_insert(at_ns);
            }
        }
    }
}

/// The path of a request.
struct Path {
    at_ns: [u64; POINTS],
    voter: ServerId,
    replier: ServerId,
}

/// A point of a path: one that must not lie before the one before it, or one that is moved there.
#[derive(Clone, Copy)]
enum At {
    Firm(u64),
    Loose(u64),
}

/// Why there is no path.
#[derive(Debug, PartialEq, Eq)]
enum NoPath {
    Missing,
    NotRising,
}

/// The points of a request's path, if all are known, and the voter and the replier.
fn points(
    request: &Request,
    noted: &[Noted],
    decisive: &Heard,
) -> Option<([At; POINTS], ServerId)> {
    use At::{Firm, Loose};
    // A host's clock is read in whole microseconds: half of one was cut off on average.
    let stamp = |found: &Found| Loose(found.stamp.0.saturating_mul(1000).saturating_add(500));
    let (id, of) = (request.id, |server: ServerId| noted.get(server.index()));
    let replier = of(decisive.server)?;
    let (delivered, vote) = replier.delivered.get(&id)?;
    let propose = replier.proposed.get(&id)?;
    if vote.position == propose.position {
        return None; // Nothing is committed by its proposal alone: the vote's point is lost.
    }
    let ((sequencer, proposed), (voter, voted)) = (propose.position, vote.position);
    let (s, v) = (of(sequencer)?, of(voter)?);
    let received = s.received.get(&id)?;
    let read = v.read.get(&propose.position)?;
    let points = [
        Firm(request.submitted_ns),
        Loose(received.woke_ns),
        Firm(received.at_ns),
        Loose(*s.written.get(&proposed)?),
        stamp(propose),
        Loose(read.woke_ns),
        Firm(read.at_ns),
        Loose(*v.written.get(&voted)?),
        stamp(vote),
        Loose(vote.woke_ns),
        Firm(vote.at_ns),
        Firm(*delivered),
        Firm(*replier.replied.get(&id)?),
        Firm(decisive.at_ns),
        Firm(request.answered_ns),
    ];
    Some((points, voter))
}

/// Moves the loose points to where those before them and the next firm one let them be.
fn settle(points: &[At; POINTS]) -> Option<[u64; POINTS]> {
    let mut settled = [0; POINTS];
    let mut before = 0;
    for (i, point) in points.iter().enumerate() {
        let next_firm = points[i..].iter().find_map(|point| match point {
            At::Firm(at) => Some(*at),
            At::Loose(_) => None,
        })?;
        if next_firm < before {
            return None;
        }
        settled[i] = match point {
            At::Firm(at) => *at,
            At::Loose(at) => (*at).clamp(before, next_firm),
        };
        before = settled[i];
    }
    Some(settled)
}

/// The paths of all requests of one shape.
pub(crate) struct Paths {
    f: usize,
    wants_bytes: bool,
    paths: Vec<Path>,
    missing: usize,
    not_rising: usize,
    /// By server, how long after its submission the client had its reply to each request.
    replies_ns: Vec<Vec<u64>>,
}

impl Paths {
    /// None yet, of a cluster of `2f + 1`; `wants_bytes`: a reply without bytes is no answer.
    pub(crate) fn new(f: usize, wants_bytes: bool) -> Paths {
        let replies_ns = vec![Vec::new(); 2 * f + 1];
        Paths { f, wants_bytes, paths: Vec::new(), missing: 0, not_rising: 0, replies_ns }
    }

    /// Adds a request's path. `noted` is what the guests noted, by server.
    pub(crate) fn add(&mut self, request: &Request, noted: &[Noted]) {
        match self.path(request, noted) {
            Ok(path) => self.paths.push(path),
            Err(NoPath::Missing) => self.missing += 1,
            Err(NoPath::NotRising) => self.not_rising += 1,
        }
        for (server, replies) in self.replies_ns.iter_mut().enumerate() {
            let first = request.heard.iter().find(|heard| heard.server.index() == server);
            replies.extend(first.map(|h| h.at_ns.saturating_sub(request.submitted_ns)));
        }
    }

    fn path(&self, request: &Request, noted: &[Noted]) -> Result<Path, NoPath> {
        let decisive = request.decisive(self.f, self.wants_bytes).ok_or(NoPath::Missing)?;
        let (points, voter) = points(request, noted, decisive).ok_or(NoPath::Missing)?;
        let at_ns = settle(&points).ok_or(NoPath::NotRising)?;
        Ok(Path { at_ns, voter, replier: decisive.server })
    }

    /// The table, for this payload.
    pub(crate) fn table(&self, payload: String) -> Trace {
        let hop = |i: usize| {
            let took = self.paths.iter().map(|path| path.at_ns[i + 1] - path.at_ns[i]);
            took.collect::<Vec<_>>()
        };
        let whole = self.paths.iter().map(|path| path.at_ns[POINTS - 1] - path.at_ns[0]);
        let whole = Times::of(whole.collect());
        let hops = HOPS.iter().enumerate().map(|(i, name)| {
            let times = Times::of(hop(i));
            let share = times.mean_us / whole.mean_us.max(f64::MIN_POSITIVE);
            Hop { hop: (*name).to_owned(), times, share }
        });
        let servers = self.replies_ns.iter().enumerate().map(|(id, replies)| {
            let count = |which: fn(&Path) -> ServerId| {
                self.paths.iter().filter(|path| which(path).index() == id).count()
            };
            ServerPart {
                server: id,
                decisive_replies: count(|path| path.replier),
                decisive_votes: count(|path| path.voter),
                replies: replies.len(),
                reply: Times::of(replies.clone()),
            }
        });
        Trace {
            payload,
            traced: self.paths.len(),
            missing: self.missing,
            not_rising: self.not_rising,
            own_votes: self.paths.iter().filter(|path| path.voter == path.replier).count(),
            hops: hops.collect(),
            whole,
            servers: servers.collect(),
        }
    }
}

/// Times that something took, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Times {
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Times {
    /// Zeros if there are none.
    fn of(mut times_ns: Vec<u64>) -> Times {
        times_ns.sort_unstable();
        let quantile = |q: f64| {
            let last = times_ns.len().saturating_sub(1);
            let at = (last as f64 * q).round() as usize;
            times_ns.get(at).copied().unwrap_or(0) as f64 / 1000.0
        };
        let sum: f64 = times_ns.iter().map(|ns| *ns as f64).sum();
        let mean_us = sum / times_ns.len().max(1) as f64 / 1000.0;
        Times { mean_us, p50_us: quantile(0.5), p99_us: quantile(0.99) }
    }

    fn cells(&self) -> [String; 3] {
        [self.mean_us, self.p50_us, self.p99_us].map(|us| format!("{us:.1}"))
    }
}

/// A row of the table. The names, here and below, are those of the JSON file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Hop {
    pub(crate) hop: String,
    #[serde(flatten)]
    pub(crate) times: Times,
    /// Of the mean of the whole.
    pub(crate) share: f64,
}

/// What one server had to do with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ServerPart {
    pub(crate) server: usize,
    /// How often it was R.
    pub(crate) decisive_replies: usize,
    /// How often it was V.
    pub(crate) decisive_votes: usize,
    /// How many requests it answered before the next request was done.
    pub(crate) replies: usize,
    /// From the submission until the client had this server's reply, decisive or not.
    pub(crate) reply: Times,
}

/// Where the time of the requests of one shape goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Trace {
    pub(crate) payload: String,
    /// How many requests are in it.
    pub(crate) traced: usize,
    /// How many are not, since a point of their path was not noted or is lost,
    pub(crate) missing: usize,
    /// or since their points do not rise.
    pub(crate) not_rising: usize,
    /// Of how many V is R.
    pub(crate) own_votes: usize,
    pub(crate) hops: Vec<Hop>,
    pub(crate) whole: Times,
    pub(crate) servers: Vec<ServerPart>,
}

/// What the letters in the names of [`HOPS`] mean.
const LEGEND: &str = "S: the sequencer. R: whose reply was the last that the client needed. V: whose \
                      vote was the last that R needed.";

impl Trace {
    /// As lines of text, without a line break at the end.
    pub(crate) fn render(&self) -> String {
        let Trace { payload, traced, missing, not_rising, own_votes, .. } = self;
        let mut text =
            format!("{payload}: where the time of {traced} requests goes, one at a time");
        if missing + not_rising > 0 {
            text += &format!(
                " (left out: {missing} of which a point is missing, {not_rising} whose points do \
                 not rise)"
            );
        }
        let head = ["hop", "mean us", "p50 us", "p99 us", "share"];
        let line = |name: &str, times: &Times, share: f64| {
            let mut line = vec![name.to_owned()];
            line.extend(times.cells());
            line.push(format!("{:.1}%", share * 100.0));
            line
        };
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        lines.extend(self.hops.iter().map(|hop| line(&hop.hop, &hop.times, hop.share)));
        lines.push(line("the whole", &self.whole, 1.0));
        let head = ["server", "was R", "was V", "reply: mean us", "p50 us", "p99 us"];
        let mut servers = vec![head.map(str::to_owned).to_vec()];
        for part in &self.servers {
            let counts = [part.server, part.decisive_replies, part.decisive_votes];
            let mut line = counts.map(|count| count.to_string()).to_vec();
            line.extend(part.reply.cells());
            servers.push(line);
        }
        let (hops, servers) = (columns(&lines), columns(&servers));
        format!("{text}\n{hops}\n{LEGEND}\nV is R itself {own_votes} times.\n{servers}")
    }
}

#[cfg(test)]
mod tests;
