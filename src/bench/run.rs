//! One load on a cluster: so many requests of one shape, so many of them under way at a time.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, ensure};
use client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use shared_registers::ids::OrderNumber;

use super::payload::Shape;
use super::table::{Latencies, Row};
use crate::exit::bad_input;

/// How many requests, and how.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Requests that are measured.
    pub(crate) requests: u64,
    /// Requests before them that are not.
    pub(crate) warmup: u64,
    /// Requests that are under way at a time.
    pub(crate) outstanding: usize,
}

/// What came of a load.
pub(crate) struct Measured {
    /// The latencies, summed up.
    pub(crate) row: Row,
    /// The order number of the first request, the warm-up's included.
    pub(crate) first: OrderNumber,
    /// The order number of the last request.
    pub(crate) last: OrderNumber,
}

/// Puts a load on the cluster, shows its progress on stderr if that is a terminal, and measures.
pub(crate) async fn measure(client: &Client, shape: Shape, load: Load) -> Result<Measured> {
    let Load { requests, warmup, outstanding } = load;
    let bar = progress_bar(shape, warmup + requests);
    let mut flight = Flight::new(client, shape, outstanding, bar);
    flight.send(warmup).await?;
    flight.latencies = Latencies::new();
    let start = Instant::now();
    flight.send(requests).await?;
    let row = flight.latencies.row(shape.to_string(), outstanding, start.elapsed());
    let Some((first, last)) = flight.span else {
        return Err(bad_input("no requests: there is nothing to measure"));
    };
    flight.bar.finish_and_clear();
    Ok(Measured { row, first, last })
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

struct Flight<'a> {
    client: &'a Client,
    shape: Shape,
    payload: Vec<u8>,
    outstanding: usize,
    bar: ProgressBar,
    latencies: Latencies,
    /// The first and the last order number so far.
    span: Option<(OrderNumber, OrderNumber)>,
}

impl<'a> Flight<'a> {
    fn new(client: &'a Client, shape: Shape, outstanding: usize, bar: ProgressBar) -> Flight<'a> {
        let (payload, latencies) = (shape.payload(), Latencies::new());
        Flight { client, shape, payload, outstanding, bar, latencies, span: None }
    }

    /// Sends so many and waits for all.
    async fn send(&mut self, requests: u64) -> Result<()> {
        let mut under_way = VecDeque::with_capacity(self.outstanding);
        let mut unsent = requests;
        loop {
            while unsent > 0 && under_way.len() < self.outstanding {
                let start = Instant::now();
                let pending = self.client.submit(self.payload.clone()).await?;
                under_way.push_back((start, pending));
                unsent -= 1;
            }
            // One client's requests are delivered in the order sent, so the first is done first.
            let Some((start, pending)) = under_way.pop_front() else { return Ok(()) };
            let answer = pending.await?;
            self.latencies.add(start.elapsed());
            self.check(answer.order, answer.bytes.len())?;
            self.bar.inc(1);
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
        let (first, last) = self.span.unwrap_or((order, OrderNumber(order.0.saturating_sub(1))));
        ensure!(order > last, "order {order} was answered after order {last}");
        self.span = Some((first, order));
        Ok(())
    }
}
