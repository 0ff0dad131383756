//! Whose turn it is to be replaced: time is cut into turns of a period's `n`-th part, which go round
//! among the servers by the time of day. Nothing needs to be said between hosts for that; their
//! clocks may differ by less than half a turn.

use std::time::Duration;

use shared_registers::ids::ServerId;

use super::LEAST_TURN;

/// The turns of one server.
pub(crate) struct Turns {
    me: ServerId,
    n: usize,
    turn: Duration,
    /// The last turn in which it was replaced, or that it missed and said so.
    last: u128,
}

impl Turns {
    /// Those of a server that starts clean at `wall`, the time of day. `None` if the period leaves
    /// them too short.
    pub(crate) fn new(me: ServerId, n: usize, period: Duration, wall: Duration) -> Option<Turns> {
        let turn = period / n as u32;
        let mut this = Turns { me, n, turn, last: 0 };
        this.last = this.at(wall);
        (turn >= LEAST_TURN).then_some(this)
    }

    fn at(&self, wall: Duration) -> u128 {
        wall.as_nanos() / self.turn.as_nanos().max(1)
    }

    fn mine(&self, turn: u128) -> bool {
        turn % self.n as u128 == u128::from(self.me.0) && turn != self.last
    }

    /// Whether it is to be replaced now: in its turn's first half. The other half is for coming back.
    pub(crate) fn due(&self, wall: Duration) -> bool {
        self.mine(self.at(wall)) && self.into(wall) * 2 < self.turn
    }

    /// How long ago the second half of the turn before began. Whoever has written since then is back
    /// from its own turn.
    pub(crate) fn since_all_are_back(&self, wall: Duration) -> Duration {
        self.into(wall) + self.turn / 2
    }

    /// How far into the turn it is.
    fn into(&self, wall: Duration) -> Duration {
        let nanos = wall.as_nanos() % self.turn.as_nanos().max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whether its turn passed without it; says so once a turn.
    pub(crate) fn missed(&mut self, wall: Duration) -> bool {
        let turn = self.at(wall);
        let missed = self.mine(turn) && !self.due(wall);
        if missed {
            self.last = turn;
        }
        missed
    }

    /// It is replaced in this turn.
    pub(crate) fn taken(&mut self, wall: Duration) {
        self.last = self.at(wall);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn at(tenths: u64) -> Duration {
        Duration::from_millis(1_700_000_010_000 + 100 * tenths)
    }

    #[test]
    fn every_server_has_one_turn_a_period_and_never_two_at_a_time() {
        let mut all: Vec<_> =
            ServerId::all(3).map(|me| Turns::new(me, 3, PERIOD, at(0)).unwrap()).collect();
        let mut replaced = [0; 3];
        for tenth in 0..3000 {
            let due: Vec<_> = (0..3).filter(|i| all[*i].due(at(tenth))).collect();
            assert!(due.len() <= 1);
            for i in due {
                all[i].taken(at(tenth));
                replaced[i] += 1;
            }
        }
        // The one whose turn it was when all started had just started.
        assert_eq!(replaced.iter().sum::<i32>(), 29);
        assert!(replaced.iter().all(|count| (9..=10).contains(count)), "{replaced:?}");
    }

    #[test]
    fn a_turn_is_missed_in_its_second_half_and_said_so_once() {
        let me = ServerId(((at(0).as_secs() / 10 + 1) % 3) as u16);
        let mut turns = Turns::new(me, 3, PERIOD, at(0)).unwrap();
        assert!(!turns.due(at(99)) && !turns.missed(at(99)));
        assert!(turns.due(at(100)) && turns.due(at(149)) && !turns.missed(at(149)));
        assert!(!turns.due(at(150)) && turns.missed(at(150)) && !turns.missed(at(151)));
        assert!(turns.due(at(400)));
    }

    #[test]
    fn a_period_that_leaves_no_time_is_none() {
        let tight = Duration::from_millis(2999);
        assert!(Turns::new(ServerId(0), 3, tight, at(0)).is_none());
    }
}
