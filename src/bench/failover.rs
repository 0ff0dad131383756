//! How long service pauses when the sequencer's guest, or its host, is killed under load, and
//! where that time goes; and whether the sequencer stays the same while nobody is killed.
//!
//! One client keeps [`OUTSTANDING`] requests under way. Each time the process is killed (SIGKILL),
//! and nothing else is done until service is back: the cores are those that bring it back. Then the
//! process is started again, and the next kill comes when all servers are at work. What passed
//! meanwhile is read from the stamps of a surviving host: who left the term when, and when the
//! next was opened. The gap is the time between the last answer before that and the next.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use client::Client;
use shared_registers::cluster::Paths;
use shared_registers::guest_side::Next;
use shared_registers::ids::{ServerId, Term};
use shared_registers::record::Body;
use tokio::time::sleep;

use super::cpu::Meter;
use super::own::{Own, Said, Spec};
use super::payload::Shape;
use super::table::{Latencies, Row, columns};
use super::tally::Tally;
use crate::supervisor::Role;
use crate::{output, registers, session};

/// Requests that the client has under way.
const OUTSTANDING: usize = 16;
/// The load without kills: so many clients, each with so many requests under way.
const STEADY_CLIENTS: u32 = 4;
/// The scenario of that.
const STEADY: &str = "steady";
/// See [`STEADY_CLIENTS`].
const STEADY_OUTSTANDING: usize = 64;
/// The load runs so long before each kill. It halves the patience that the last change doubled (P4).
const BEFORE: Duration = Duration::from_millis(500);
/// Service is back when so many requests were answered after the kill: far more than were under way.
const ANSWERS: usize = 1000;
/// Service, and a process that was started again, have so long to come back.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(10);
/// The goals for the gap: its median, and the worst.
const GOAL_P50: Duration = Duration::from_millis(100);
/// See [`GOAL_P50`].
const GOAL_WORST: Duration = Duration::from_millis(500);

/// When answers came since somebody last began to look.
struct Pulse {
    last: Cell<Instant>,
    /// The longest time between two answers.
    longest: Cell<Duration>,
    /// How long each request took.
    latencies: RefCell<Latencies>,
    /// When each answer came, if that is looked at: the last one before it was is the first.
    beats: RefCell<Option<Vec<Instant>>>,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse {
            last: Cell::new(Instant::now()),
            longest: Cell::new(Duration::ZERO),
            latencies: RefCell::new(Latencies::new()),
            beats: RefCell::new(None),
        }
    }

    /// An answer came to what was sent then.
    fn beat(&self, sent: Instant) {
        let now = Instant::now();
        self.longest.set(self.longest.get().max(now - self.last.replace(now)));
        self.latencies.borrow_mut().add(now - sent);
        if let Some(beats) = self.beats.borrow_mut().as_mut() {
            beats.push(now);
        }
    }

    /// Forgets what was so far.
    fn forget(&self) {
        self.longest.set(Duration::ZERO);
        self.latencies.replace(Latencies::new());
    }

    /// Begins to take down when answers come.
    fn watch(&self) {
        self.beats.replace(Some(vec![self.last.get()]));
    }

    /// How many came since.
    fn watched(&self) -> usize {
        self.beats.borrow().as_ref().map_or(0, |beats| beats.len() - 1)
    }

    /// Ends it. Returns the last answer until `at` and the first after it.
    fn around(&self, at: Instant) -> Option<(Instant, Instant)> {
        let beats = self.beats.take()?;
        let after = beats.partition_point(|beat| *beat <= at);
        Some((*beats.get(after.checked_sub(1)?)?, *beats.get(after)?))
    }
}

/// Keeps requests under way; ends only by an error.
async fn load(client: &Client, outstanding: usize, pulse: &Pulse) -> Result<()> {
    let payload = Shape::EMPTY.payload();
    let mut under_way = VecDeque::with_capacity(outstanding);
    loop {
        while under_way.len() < outstanding {
            let sent = Instant::now();
            under_way.push_back((sent, client.submit(payload.clone()).await?));
        }
        if let Some((sent, pending)) = under_way.pop_front() {
            pending.await?;
            pulse.beat(sent);
        }
    }
}

/// Does `work` under load.
async fn under_load<T>(
    clients: &[Client],
    outstanding: usize,
    pulse: &Pulse,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut loads: Vec<_> =
        clients.iter().map(|client| Box::pin(load(client, outstanding, pulse))).collect();
    let lost = std::future::poll_fn(|cx| {
        let mut ended = loads.iter_mut().map(|load| load.as_mut().poll(cx));
        ended.find(|poll| poll.is_ready()).unwrap_or(std::task::Poll::Pending)
    });
    tokio::select! {
        done = work => done,
        lost = lost => {
            lost.context("a request was not answered")?;
            bail!("the load has ended")
        }
    }
}

/// One kill: the gap, and how long after it what happened.
struct Kill {
    gap: Duration,
    /// How many terms were left.
    terms: u64,
    phases: [Duration; PHASES.len()],
}

/// Where the time goes: from the end of one to the end of the next.
const PHASES: [&str; 4] = ["first CHANGE", "f+1 CHANGEs", "opening", "first answer"];

/// What the records of one change say, in microseconds since 1970.
struct Change {
    /// When each server left the term, the earliest first.
    left: Vec<u64>,
    opened: u64,
}

/// Kills the sequencer's guest and the sequencer's host `kills` times each, and prints a table.
/// Returns a row of each: the gaps.
pub(crate) async fn measure(kills: u16) -> Result<Vec<Row>> {
    let mut own = Own::start(&Spec::new(1, 1)).await?;
    let client = [session::connect(own.dir(), 0)?];
    let pulse = Pulse::new();
    let mut lines = vec![head()];
    let (mut verdicts, mut rows) = (Vec::new(), Vec::new());
    for role in [Role::GuestReplica, Role::HostAgent] {
        let done =
            under_load(&client, OUTSTANDING, &pulse, kill_often(&mut own, role, kills, &pulse));
        let done = done.await?;
        lines.push(line(role, &done));
        verdicts.push(verdict(role, &done));
        rows.push(row(role, &done));
    }
    let timing = own.operator.cluster.timing;
    output::print(&format!(
        "Killed under load ({OUTSTANDING} requests under way; change_ms {}, host_down_ms {}, \
         resend_ms {}), in milliseconds:\n{}\n{}",
        timing.change_ms,
        timing.host_down_ms,
        timing.resend_ms,
        columns(&lines),
        verdicts.join("\n")
    ))?;
    own.close()?;
    Ok(rows)
}

fn row(role: Role, kills: &[Kill]) -> Row {
    let mut gaps = Latencies::new();
    kills.iter().for_each(|kill| gaps.add(kill.gap));
    let mut tally = Tally::new(Shape::EMPTY, 1, OUTSTANDING);
    tally.add(&gaps, kills.iter().map(|kill| kill.gap).sum(), None);
    tally.row(&format!("gap after the death of the sequencer's {role}"))
}

fn head() -> Vec<String> {
    let head = ["killed", "times", "gap p50", "gap worst", "terms left"];
    let phases = PHASES.map(|phase| format!("to {phase}"));
    head.map(str::to_owned).into_iter().chain(phases).collect()
}

fn line(role: Role, kills: &[Kill]) -> Vec<String> {
    let (p50, worst) = sum_up(kills);
    let terms: u64 = kills.iter().map(|kill| kill.terms).sum();
    let mut line = vec![format!("sequencer's {role}"), kills.len().to_string()];
    line.extend([ms(p50), ms(worst), terms.to_string()]);
    let count = kills.len().max(1) as u32;
    line.extend((0..PHASES.len()).map(|phase| {
        let sum: Duration = kills.iter().map(|kill| kill.phases[phase]).sum();
        ms(sum / count)
    }));
    line
}

fn verdict(role: Role, kills: &[Kill]) -> String {
    let (p50, worst) = sum_up(kills);
    let reached = |reached| if reached { "reached" } else { "NOT REACHED" };
    format!(
        "{role}: goal p50 {} ms {}; goal worst {} ms {}",
        GOAL_P50.as_millis(),
        reached(p50 <= GOAL_P50),
        GOAL_WORST.as_millis(),
        reached(worst <= GOAL_WORST)
    )
}

/// The median gap and the worst.
fn sum_up(kills: &[Kill]) -> (Duration, Duration) {
    let mut gaps: Vec<_> = kills.iter().map(|kill| kill.gap).collect();
    gaps.sort_unstable();
    let middle = gaps.get(gaps.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    (middle, gaps.last().copied().unwrap_or_default())
}

fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

async fn kill_often(own: &mut Own, role: Role, kills: u16, pulse: &Pulse) -> Result<Vec<Kill>> {
    let mut done = Vec::new();
    for _ in 0..kills {
        all_at_work(own).await?;
        sleep(BEFORE).await;
        done.push(kill_once(own, role, pulse).await?);
    }
    all_at_work(own).await?;
    Ok(done)
}

async fn kill_once(own: &mut Own, role: Role, pulse: &Pulse) -> Result<Kill> {
    let n = own.operator.cluster.n();
    let term = own.newest_term().await?;
    let (sequencer, witness) = (term.sequencer(n), term.next().sequencer(n));
    pulse.watch();
    let killed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64;
    let killed_at = Instant::now();
    own.supervisor.strike(role, sequencer)?;
    let served = until(|| async { (pulse.watched() > ANSWERS).then_some(()) }).await;
    served.with_context(|| format!("no service after {role} {sequencer} was killed"))?;
    own.supervisor.kill(role, sequencer)?;
    let next = until(|| async { own.newest_term().await.ok().filter(|now| *now > term) }).await;
    let next = next.with_context(|| format!("no next term although {role} {sequencer} is dead"))?;
    let change = read_change(own, witness, term, next)?;
    let since = |at: u64| Duration::from_micros(at.saturating_sub(killed));
    let opened = since(change.opened);
    let gap = pulse.around(killed_at + opened);
    let (from, answered) = gap.context("no answer after the next term was opened")?;
    let left = |count: usize| change.left.get(count).map_or(Duration::ZERO, |at| since(*at));
    let ends = [left(0), left(own.operator.cluster.f), opened, answered - killed_at];
    let mut before = Duration::ZERO;
    let phases = ends.map(|end| end.saturating_sub(std::mem::replace(&mut before, end)));
    own.supervisor.start_again(role, sequencer)?;
    Ok(Kill { gap: answered - from, terms: next.0 - term.0, phases })
}

/// Waits for something, and not for ever.
async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(found) = look().await {
            return Some(found);
        }
        sleep(LOOK).await;
    }
    None
}

/// Waits until every server is at work, in one term, which it returns.
async fn all_at_work(own: &Own) -> Result<Term> {
    let n = own.operator.cluster.n();
    let last = RefCell::new(Said::default());
    let looked = until(|| async {
        *last.borrow_mut() = own.ask().await;
        let said = last.borrow();
        let mut work = said.servers().filter(|s| s.host_up && s.catching_up.is_none());
        let term = said.newest_term().ok()?;
        let all = work.clone().count() == n && work.all(|status| status.term == term);
        all.then_some(term)
    });
    let all = looked.await;
    all.with_context(|| format!("not all servers are at work again: {:?}", last.borrow()))
}

/// Reads in a host's file who left `term` when, and when `next` was opened.
fn read_change(own: &Own, host: ServerId, term: Term, next: Term) -> Result<Change> {
    let cluster = &own.operator.cluster;
    let path = Paths::new(own.dir()).read_file(host);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut streams, _) = registers::map(cluster.geometry(host), &file)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut change = Change { left: Vec::new(), opened: u64::MAX };
    for writer in ServerId::all(cluster.n()) {
        loop {
            match streams.next(writer) {
                Next::Nothing => break,
                Next::Reclaimed => streams.rewind(writer),
                Next::Damaged => bail!("{} holds what is no record", path.display()),
                Next::Record(record) => {
                    let time = record.stamp.time.0;
                    match Body::decode(record.body, cluster.n()) {
                        Ok(Body::Change(left)) if left.term == term => change.left.push(time),
                        Ok(Body::Propose(propose)) if propose.term == next => {
                            change.opened = change.opened.min(time);
                        }
                        _ => {}
                    }
                    streams.advance(writer);
                }
            }
        }
    }
    ensure!(change.opened < u64::MAX, "host {host} does not show how term {next} was opened");
    change.left.sort_unstable();
    Ok(change)
}

/// Puts full load on a cluster for so long, and counts the terms that were left: there must be none.
/// Returns the load's row.
pub(crate) async fn steady(seconds: u64) -> Result<Row> {
    let own = Own::start(&Spec::new(1, STEADY_CLIENTS)).await?;
    let clients = (0..STEADY_CLIENTS).map(|client| session::connect(own.dir(), client));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let (pulse, meter) = (Pulse::new(), Meter::of(&own));
    let work = async {
        let before = all_at_work(&own).await?;
        let (cpu, start) = (meter.read()?, Instant::now());
        pulse.forget();
        sleep(Duration::from_secs(seconds)).await;
        let (elapsed, longest) = (start.elapsed(), pulse.longest.get());
        let mut tally = Tally::new(Shape::EMPTY, clients.len(), STEADY_OUTSTANDING);
        tally.add(&pulse.latencies.borrow(), elapsed, Some(meter.read()? - cpu));
        let after = all_at_work(&own).await?;
        Ok((after.0 - before.0, tally.row(STEADY), longest))
    };
    let (changes, row, longest) = under_load(&clients, STEADY_OUTSTANDING, &pulse, work).await?;
    output::print(&format!(
        "Full load for {seconds} s ({STEADY_CLIENTS} clients with {STEADY_OUTSTANDING} requests \
         under way each): {:.0} requests/s, longest time between two answers {} ms, \
         sequencer changes {changes}",
        row.requests_per_s,
        ms(longest)
    ))?;
    ensure!(changes == 0, "the sequencer changed {changes} times although nothing had failed");
    own.close()?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(gap_ms: u64) -> Kill {
        let gap = Duration::from_millis(gap_ms);
        Kill { gap, terms: 1, phases: [gap / 4; PHASES.len()] }
    }

    #[test]
    fn gaps_are_summed_up_and_judged() {
        let kills = [320, 88, 80, 112].map(kill);
        assert_eq!(sum_up(&kills), (Duration::from_millis(88), Duration::from_millis(320)));
        let said = verdict(Role::HostAgent, &kills);
        assert_eq!(said, "host agent: goal p50 100 ms reached; goal worst 500 ms reached");
        let said = verdict(Role::HostAgent, &[501].map(kill));
        assert_eq!(said, "host agent: goal p50 100 ms NOT REACHED; goal worst 500 ms NOT REACHED");
        let row = row(Role::HostAgent, &kills);
        assert_eq!(row.requests, 4);
        assert!((row.max_us - 320_000.0).abs() < 1000.0, "{row:?}");
        let line = line(Role::HostAgent, &kills);
        assert_eq!(line.len(), head().len());
        assert_eq!(line[1..6], ["4", "88.0", "320.0", "4", "37.5"]);
    }

    #[test]
    fn the_longest_time_between_two_answers_is_kept() {
        let pulse = Pulse::new();
        let earlier = Instant::now() - Duration::from_secs(5);
        pulse.last.set(earlier);
        pulse.beat(earlier);
        pulse.beat(Instant::now());
        assert!(pulse.longest.get() >= Duration::from_secs(5));
        assert_eq!(pulse.latencies.borrow().count(), 2);
        pulse.forget();
        assert_eq!(pulse.longest.get(), Duration::ZERO);
        assert_eq!(pulse.latencies.borrow().count(), 0);
    }

    #[test]
    fn the_gap_is_the_one_in_which_the_next_term_was_opened() {
        let pulse = Pulse::new();
        let start = pulse.last.get();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((pulse.watched(), pulse.around(start)), (0, None));
        // A longer one comes later.
        pulse.beats.replace(Some([0, 10, 110, 120, 720].map(at).into()));
        assert_eq!(pulse.watched(), 4);
        assert_eq!(pulse.around(at(60)), Some((at(10), at(110))));
        pulse.watch();
        pulse.beat(start);
        assert_eq!(pulse.watched(), 1);
        assert_eq!(pulse.around(Instant::now()), None, "nothing was answered since");
    }
}
