//! Points in time, for whoever measures: see [`protocol::trace`].
//!
//! They are noted while the operator asks for them, and for [`TRACE_FOR`] after that. What it costs
//! is bounded, whoever has the operator's key: so many are [kept](TRACE_POINTS), so many are noted in
//! a turn, each for a look at the clock, and one page of them is given out in a turn. While nobody
//! asks, nothing is noted and the clock is not looked at.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::limits::{TRACE_PAGE_POINTS, TRACE_POINTS};
use protocol::messages::ToClient;
use protocol::replica::Output;
use protocol::trace::{Moment, Point, Points};
use shared_registers::ids::{ClientId, Micros, OrderId};
use shared_registers::record::{Body, Record};

use crate::limits::{TRACE_FOR, TRACE_POINTS_PER_TURN};

/// The points that are kept, and whether more are noted.
#[derive(Default)]
pub(crate) struct Trace {
    /// Until when points are noted, by the guest's clock.
    until: Option<Micros>,
    points: VecDeque<Point>,
    /// The number of the first of them.
    first: u64,
    woke_ns: u64,
    /// So many may still be noted in this turn: none while nobody asks.
    room: usize,
    /// A page was given out in this turn.
    paged: bool,
    /// Replies that wait to be given to their sockets at the end of this turn.
    sealed: Vec<OrderId>,
}

impl Trace {
    /// A turn begins.
    pub(crate) fn begin_turn(&mut self, now: Micros) {
        match self.until {
            None => {}
            Some(until) if now < until => self.renew(),
            Some(_) => *self = Trace { first: self.end(), ..Trace::default() },
        }
    }

    fn renew(&mut self) {
        self.woke_ns = wall_ns();
        self.room = TRACE_POINTS_PER_TURN;
        self.paged = false;
        self.sealed.clear();
    }

    fn end(&self) -> u64 {
        self.first + self.points.len() as u64
    }

    /// Notes that this happens now. `moment` is asked after the look at the clock.
    pub(crate) fn note(&mut self, moment: impl FnOnce() -> Moment) {
        if self.room > 0 {
            let at_ns = wall_ns();
            self.push(at_ns, moment());
        }
    }

    fn push(&mut self, at_ns: u64, moment: Moment) {
        self.room -= 1;
        if self.points.len() >= TRACE_POINTS {
            self.points.pop_front();
            self.first += 1;
        }
        self.points.push_back(Point { woke_ns: self.woke_ns, at_ns, moment });
    }

    /// A record is read now.
    pub(crate) fn read(&mut self, record: &Record<'_>) {
        self.note(|| {
            let order = match Body::decode(record.body, record.stamp.seen.len()) {
                Ok(Body::Propose(propose)) => propose.orders.first().map(|order| order.id),
                _ => None,
            };
            let stamp = &record.stamp;
            Moment::Read { writer: stamp.writer, seq: stamp.seq, time: stamp.time, order }
        });
    }

    /// A record was read, and this came of it.
    pub(crate) fn delivered(&mut self, outputs: &[Output]) {
        if self.room == 0 {
            return;
        }
        let at_ns = wall_ns();
        let replies = outputs.iter().filter_map(|output| match output {
            Output::ToClient(client, answer) => replied(*client, answer),
            _ => None,
        });
        for id in replies.take(self.room) {
            self.push(at_ns, Moment::Delivered(id));
        }
    }

    /// An answer is sealed, and will be given to its socket when this turn ends.
    pub(crate) fn on_sealed(&mut self, client: ClientId, answer: &ToClient) {
        if self.sealed.len() < self.room {
            self.sealed.extend(replied(client, answer));
        }
    }

    /// The turn ends: what is sealed is given to the sockets now.
    pub(crate) fn end_turn(&mut self) {
        if self.sealed.is_empty() {
            return;
        }
        let at_ns = wall_ns();
        let mut sealed = std::mem::take(&mut self.sealed);
        for id in sealed.drain(..).take(self.room) {
            self.push(at_ns, Moment::Replied(id));
        }
        self.sealed = sealed;
    }

    /// What is kept from number `from` on, as far as it fits an answer; the second answer in a turn
    /// holds nothing. More is noted from now on.
    pub(crate) fn page(&mut self, now: Micros, from: u64) -> Points {
        if self.until.is_none() {
            self.renew();
        }
        self.until = Some(now.plus(TRACE_FOR));
        let (first, end) = (from.clamp(self.first, self.end()), self.end());
        let most = if std::mem::replace(&mut self.paged, true) { 0 } else { TRACE_PAGE_POINTS };
        let skip = (first - self.first) as usize;
        let points = self.points.iter().skip(skip).take(most).copied().collect();
        Points { first, end, points }
    }
}

/// Which order a reply answers.
fn replied(client: ClientId, answer: &ToClient) -> Option<OrderId> {
    match answer {
        ToClient::Reply(reply) => {
            Some(OrderId { client, session: reply.session, count: reply.count })
        }
        _ => None,
    }
}

/// The clock that hosts stamp records with, more finely.
fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use shared_registers::ids::Seq;

    use super::*;

    const NOW: Micros = Micros(1_000);

    fn write(trace: &mut Trace, seqs: impl Iterator<Item = u64>) {
        for seq in seqs {
            trace.begin_turn(NOW);
            trace.note(|| Moment::Written(Seq(seq)));
        }
    }

    /// A page, in a turn of its own.
    fn page(trace: &mut Trace, from: u64) -> Points {
        trace.begin_turn(NOW);
        trace.page(NOW, from)
    }

    fn seqs(points: &[Point]) -> Vec<u64> {
        let seq = |point: &Point| match point.moment {
            Moment::Written(seq) => seq.0,
            other => panic!("{other:?}"),
        };
        points.iter().map(seq).collect()
    }

    #[test]
    fn nothing_is_noted_until_somebody_asks_nor_long_after() {
        let mut trace = Trace::default();
        write(&mut trace, 0..10);
        assert_eq!(trace.woke_ns, 0, "the clock was looked at");
        assert_eq!(page(&mut trace, u64::MAX), Points::default());
        write(&mut trace, 10..13);
        let last = Micros(NOW.plus(TRACE_FOR).0 - 1);
        trace.begin_turn(last);
        assert_eq!(seqs(&trace.page(last, 0).points), [10, 11, 12]);

        let over = last.plus(TRACE_FOR);
        trace.begin_turn(over);
        trace.note(|| Moment::Written(Seq(13)));
        assert!(trace.points.capacity() == 0 && trace.until.is_none());
        // Numbers go on, so that nobody takes new points for old ones.
        let nothing = Points { first: 3, end: 3, points: Vec::new() };
        assert_eq!(trace.page(over, 0), nothing);
    }

    #[test]
    fn what_is_kept_noted_and_given_out_is_bounded() {
        let mut trace = Trace::default();
        page(&mut trace, 0);
        let all = TRACE_POINTS as u64 + 100;
        write(&mut trace, 0..all);
        assert_eq!(trace.points.len(), TRACE_POINTS);
        let (mut from, mut got) = (0, Vec::new());
        loop {
            let Points { first, end, points } = page(&mut trace, from);
            assert!(points.len() <= TRACE_PAGE_POINTS && end == all);
            // The second question in a turn costs nothing.
            assert!(trace.page(NOW, from).points.is_empty());
            got.extend(seqs(&points));
            from = first + points.len() as u64;
            if from == end {
                break;
            }
        }
        assert_eq!(got, (100..all).collect::<Vec<_>>());

        trace.begin_turn(NOW);
        let before = trace.end();
        let id = OrderId { client: ClientId(1), session: 2, count: 3 };
        for seq in 0..1000 {
            trace.note(|| Moment::Written(Seq(seq)));
            trace.sealed.push(id);
        }
        trace.end_turn();
        assert_eq!(trace.end() - before, TRACE_POINTS_PER_TURN as u64);
    }

    #[test]
    fn times_of_a_turn_rise() {
        let mut trace = Trace::default();
        page(&mut trace, 0);
        write(&mut trace, 0..50);
        let points = page(&mut trace, 0).points;
        assert!(points.iter().all(|point| 0 < point.woke_ns && point.woke_ns <= point.at_ns));
        assert!(points.windows(2).all(|two| two[0].at_ns <= two[1].woke_ns));
    }
}
