//! Points in time, as a guest that is asked for them notes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::limits::TRACE_PAGE_POINTS;
use protocol::messages::{ToClient, ToServer};
use protocol::trace::{Moment, Points};
use shared_registers::ids::{ClientId, OrderId, ServerId};

use crate::broadcast;
use crate::cluster::{Cluster, Peer};

/// An order is delivered everywhere long before.
const PATIENCE: Duration = Duration::from_secs(60);

fn ask(operator: &mut Peer, from: u64) -> Points {
    operator.send(&ToServer::Trace { from });
    match operator.next() {
        Some(ToClient::Trace(points)) => points,
        other => panic!("no points but {other:?}"),
    }
}

/// Everything from `from` on.
fn all(operator: &mut Peer, mut from: u64) -> Vec<Moment> {
    let mut moments = Vec::new();
    loop {
        let Points { first, end, points } = ask(operator, from);
        assert!(points.len() <= TRACE_PAGE_POINTS);
        let rising = points.windows(2).all(|two| two[0].at_ns <= two[1].at_ns);
        assert!(rising && points.iter().all(|p| p.woke_ns <= p.at_ns), "{points:?}");
        from = first + points.len() as u64;
        moments.extend(points.iter().map(|point| point.moment));
        if from == end {
            return moments;
        }
    }
}

#[test]
fn a_guest_notes_what_it_does_with_an_order_from_when_it_is_asked_on() {
    let cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=1, b"before");
    let mut operators: Vec<_> = (0..3).map(|server| cluster.operator(server)).collect();
    let begin: Vec<u64> =
        operators.iter_mut().map(|operator| ask(operator, u64::MAX).end).collect();
    assert_eq!(begin, [0, 0, 0], "points were noted before anybody asked");
    for count in 2..=4 {
        broadcast(&cluster, 0, count..=count, b"each in a batch of its own");
    }

    let id = |count| OrderId { client: ClientId(0), session: 1, count };
    for (server, operator) in operators.iter_mut().enumerate() {
        let (mut moments, until) = (Vec::new(), Instant::now() + PATIENCE);
        while !moments.contains(&Moment::Delivered(id(4))) {
            assert!(Instant::now() < until, "not delivered at {server}: {moments:?}");
            moments = all(operator, 0);
        }
        let at = |moment: Moment| {
            let found = moments.iter().position(|other| *other == moment);
            found.unwrap_or_else(|| panic!("no {moment:?} at {server}: {moments:?}"))
        };
        for count in 2..=4 {
            let propose = moments.iter().position(|moment| {
                matches!(moment, Moment::Read { order: Some(order), .. } if *order == id(count))
            });
            let (propose, delivered) = (propose.unwrap(), at(Moment::Delivered(id(count))));
            let Moment::Read { writer, seq, .. } = moments[propose] else { unreachable!() };
            assert!(writer == ServerId(0) && propose < delivered, "{moments:?}");
            // What was read last is what committed it.
            let read_last =
                moments[..delivered].iter().rposition(|m| matches!(m, Moment::Read { .. }));
            assert!(read_last.unwrap() > propose, "{moments:?}");
            if server == 0 {
                let (received, written) =
                    (at(Moment::Received(id(count))), at(Moment::Written(seq)));
                let replied = at(Moment::Replied(id(count)));
                assert!(received < written && written < propose && delivered < replied);
            }
        }
        // The others' votes.
        let votes = moments.iter().any(|moment| match moment {
            Moment::Written(_) => server != 0,
            Moment::Read { order, .. } => server == 0 && order.is_none(),
            _ => false,
        });
        assert!(votes, "{moments:?}");
    }
}

#[test]
fn only_the_operator_may_have_points_noted() {
    let cluster = Cluster::start();
    let mut client = cluster.client(1, 0);
    client.send(&ToServer::Trace { from: 0 });
    client.await_closed();
    assert_eq!((cluster.count(0, "bad_frames"), cluster.count(0, "traces_sent")), (1, 0));
    broadcast(&cluster, 0, 1..=3, b"x");
    // Nothing was noted.
    assert_eq!(ask(&mut cluster.operator(0), 0), Points::default());
}

/// Also if what is between fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_asks_all_the_time_stops_nobody() {
    let cluster = Cluster::start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut operator = cluster.operator(0);
                while !over.load(Ordering::Relaxed) {
                    // From the oldest on: every answer could be a full page.
                    operator.send(&ToServer::Trace { from: 0 });
                }
            });
        }
        cluster.await_count(0, "traces_sent", 100);
        broadcast(&cluster, 0, 1..=200, b"meanwhile");
    });
    let mut operator = cluster.operator(0);
    assert!(ask(&mut operator, 0).end > 100, "what happened was noted");
}
