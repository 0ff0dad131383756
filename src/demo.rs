//! `difato demo`: see it all on one machine, without any set-up.
//!
//! A temporary cluster of real processes is measured; then the guest that puts the messages in
//! order is killed while a client goes on sending, and what happens to the order is shown *and
//! checked*: that the numbers go on without a gap, under the next sequencer, and that two listeners
//! see the same. A check that fails makes the exit code non-zero. Whatever happens, the processes
//! are stopped and the folder is removed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::{Client, Message};
use protocol::messages::Status;
use shared_registers::ids::{OrderNumber, ServerId, Term};
use tokio::time::{sleep, timeout};

use crate::bench::cpu::Meter;
use crate::bench::own::{self, Own, Spec};
use crate::bench::payload::Shape;
use crate::bench::run::{Group, Load};
use crate::bench::table::{Row, render};
use crate::bench::tally::{CLUSTER, Tally};
use crate::cli::DemoArgs;
use crate::output::print;
use crate::session::{self, Operator};
use crate::supervisor::Role;

/// The clients: one sends, two listen.
const SENDER: u32 = 0;
const LISTENERS: [u32; 2] = [1, 2];
/// Requests of each payload that are not measured, at most.
const WARMUP: u64 = 500;
/// Between the requests of the light stream that runs while the sequencer is killed.
const LIGHT_GAP: Duration = Duration::from_millis(2);
/// The light stream runs so long before the kill.
const LIGHT_BEFORE: Duration = Duration::from_millis(300);
/// The light stream goes on for so many requests after the first that is answered again.
const LIGHT_AFTER: u64 = 100;
/// A server has so long to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Service and the listeners have so long before the demo fails.
const DEADLINE: Duration = Duration::from_secs(30);
/// How many of the last messages the listeners compare.
const COMPARED: u64 = 100;

/// Runs `difato demo`.
pub(crate) fn run(args: DemoArgs) -> Result<()> {
    own::run(demo(&args))?;
    print("Done: everything is stopped and removed.")
}

async fn demo(args: &DemoArgs) -> Result<()> {
    let mut own = Own::start(&Spec::new(usize::from(args.f), 1 + LISTENERS.len() as u32)).await?;
    for shape in &args.measure.payloads {
        shape.check(&own.operator.cluster)?;
    }
    introduce(&own)?;
    let cluster = &own.operator.cluster;
    let group = Group::connect(own.dir(), cluster, (SENDER, 1), Meter::of_load())?;

    print(&format!("\n{} requests of each payload, one at a time:", args.measure.requests))?;
    let mut last = OrderNumber(0);
    let mut rows = Vec::new();
    for shape in &args.measure.payloads {
        rows.push(batch(&group, *shape, args.measure.requests, &mut last).await?);
    }
    print(&render(&rows))?;

    kill_the_sequencer(&mut own, group.first(), &mut last).await?;

    let again = (args.measure.requests / 10).max(100);
    print(&format!("\n{again} more requests under the new sequencer:"))?;
    let row = batch(&group, Shape { request: 0, reply: 0 }, again, &mut last).await?;
    print(&render(&[row]))?;

    compare_listeners(own.dir(), last).await?;
    own.close()
}

fn introduce(own: &Own) -> Result<()> {
    let cluster = &own.operator.cluster;
    let (f, n) = (cluster.f, cluster.n());
    print(&format!(
        "A cluster of {n} servers, {f} of which may be compromised, in {}; all serve; its processes:",
        own.dir().display()
    ))?;
    for process in own.supervisor.processes() {
        let server = cluster.servers[process.id.index()];
        let address = match process.role {
            Role::HostAgent => format!("trusted network, {}", server.trusted),
            Role::GuestReplica => format!("payload network, {}", server.payload),
        };
        let (role, id) = (process.role.to_string(), process.id);
        print(&format!("  {role:<13} {id}  pid {:<7}  {address}", process.pid()))?;
    }
    Ok(())
}

/// A measured load, whose order numbers must follow the last one's.
async fn batch(group: &Group, shape: Shape, requests: u64, last: &mut OrderNumber) -> Result<Row> {
    let warmup = WARMUP.min(requests / 10);
    let mut tally = Tally::new(shape, group.len(), 1);
    let span = group.measure(shape, Load { requests, warmup, outstanding: 1 }, &mut tally).await?;
    let sent = warmup + requests;
    let (first, new_last) = (span.first, span.last);
    ensure!(
        first == last.next() && new_last.0 - last.0 == sent,
        "{sent} requests after order {last} were given orders {first} to {new_last}"
    );
    *last = new_last;
    Ok(tally.row(CLUSTER))
}

/// What the light stream saw.
struct Light {
    first: OrderNumber,
    last: OrderNumber,
    /// The longest time without an answer.
    gap: Duration,
}

async fn kill_the_sequencer(own: &mut Own, client: &Client, last: &mut OrderNumber) -> Result<()> {
    let Own { supervisor, operator, .. } = own;
    let n = operator.cluster.n();
    let before = newest(&operator.ask(PATIENCE).await).context("no server answers")?;
    let sequencer = before.term.sequencer(n);
    print(&format!(
        "\nIn term {} server {sequencer} puts the messages in order; the last number is {last}.",
        before.term
    ))?;
    let light = light_stream(client, || {
        let pid = supervisor.kill(Role::GuestReplica, sequencer)?;
        print(&format!("Killed its guest (pid {pid}) while a client goes on sending."))
    });
    let light = timeout(DEADLINE, light).await.with_context(|| {
        format!("no service {} s after the sequencer's guest was killed", DEADLINE.as_secs())
    })??;
    ensure!(
        light.first == last.next(),
        "order {} came after order {last}: the order has a gap",
        light.first
    );
    let after = after_change(operator, sequencer, before.term, light.last).await?;
    print(&format!(
        "Service paused for {} ms. In term {} server {} goes on: orders {} to {}, no gap.",
        light.gap.as_millis(),
        after.term,
        after.term.sequencer(n),
        light.first,
        light.last
    ))?;
    *last = light.last;
    Ok(())
}

/// One request after the other, `kill` among them. Every number must follow the one before.
async fn light_stream(client: &Client, kill: impl FnOnce() -> Result<()>) -> Result<Light> {
    let payload = Shape { request: 0, reply: 0 }.payload();
    let start = Instant::now();
    let mut kill = Some(kill);
    let mut span: Option<(OrderNumber, OrderNumber)> = None;
    let (mut gap, mut answered_at) = (Duration::ZERO, start);
    let mut after = 0;
    while after < LIGHT_AFTER {
        let pending = client.submit(payload.clone()).await?;
        if start.elapsed() >= LIGHT_BEFORE
            && let Some(kill) = kill.take()
        {
            kill()?;
        }
        let order = pending.await?.order;
        if let Some((_, last)) = span {
            ensure!(order == last.next(), "order {order} came after order {last}");
        }
        span = Some((span.map_or(order, |(first, _)| first), order));
        gap = gap.max(answered_at.elapsed());
        answered_at = Instant::now();
        after += u64::from(kill.is_none());
        sleep(LIGHT_GAP).await;
    }
    let (first, last) = span.context("the light stream sent nothing")?;
    Ok(Light { first, last, gap })
}

/// Waits until all the other servers are in a later term and have delivered up to `last`.
async fn after_change(
    operator: &Operator,
    killed: ServerId,
    term: Term,
    last: OrderNumber,
) -> Result<Status> {
    let n = operator.cluster.n();
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let said = operator.ask(PATIENCE).await;
        let there = said.iter().flatten().filter(|s| s.term > term && s.delivered >= last);
        let is_killed = |status: &Status| status.id == killed;
        if there.filter(|status| !is_killed(status)).count() == n - 1
            && let Some(status) = newest(&said)
        {
            ensure!(!is_killed(&status), "server {killed} answers although its guest was killed");
            return Ok(status);
        }
        sleep(LIGHT_GAP).await;
    }
    bail!("not all servers went on after term {term} within {} s", DEADLINE.as_secs())
}

/// The answer of the server that has come furthest.
fn newest<E>(said: &[Result<Status, E>]) -> Option<Status> {
    said.iter().flatten().max_by_key(|status| (status.term, status.delivered)).cloned()
}

/// Two clients listen to the last messages: they must see the same, without gaps.
async fn compare_listeners(dir: &Path, last: OrderNumber) -> Result<()> {
    let from = OrderNumber(last.0.saturating_sub(COMPARED - 1).max(1));
    let mut heard = Vec::new();
    for client in LISTENERS {
        let client = session::connect(dir, client)?;
        let listening = hear(&client, from, last);
        heard.push(timeout(DEADLINE, listening).await.context("a listener hears nothing")??);
    }
    let wanted = (from.0..=last.0).map(OrderNumber);
    ensure!(heard[0].iter().map(|m| m.order).eq(wanted), "a listener hears numbers with gaps");
    ensure!(heard[0] == heard[1], "two listeners hear different messages");
    print(&format!("\nTwo listeners heard the same messages {from} to {last}, without a gap."))
}

async fn hear(client: &Client, from: OrderNumber, last: OrderNumber) -> Result<Vec<Message>> {
    let mut messages = client.subscribe(from);
    let mut heard = Vec::new();
    for _ in from.0..=last.0 {
        heard.push(messages.next().await?);
    }
    Ok(heard)
}
