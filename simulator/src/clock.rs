//! Clocks of processes: each has an offset and a drift of its own against the simulation's time.

use shared_registers::ids::Micros;

const MILLION: i128 = 1_000_000;

/// A clock that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it shows at the simulation's time 0.
    pub offset: Micros,
    /// How many microseconds it gains in a second; negative if it loses.
    pub drift_ppm: i32,
}

impl Clock {
    /// What it shows at the simulation's time `at`.
    pub fn show(&self, at: Micros) -> Micros {
        let at = i128::from(at.0);
        let shown = at + at * i128::from(self.drift_ppm) / MILLION;
        self.offset.plus(Micros(u64::try_from(shown).unwrap_or(0)))
    }

    /// The simulation's time at which it shows `shown`, or 0 if it always showed more.
    pub fn when(&self, shown: Micros) -> Micros {
        let passed = i128::from(shown.since(self.offset).0);
        let at = passed * MILLION / (MILLION + i128::from(self.drift_ppm));
        let mut at = Micros(u64::try_from(at).unwrap_or(u64::MAX));
        while self.show(at) < shown && at.0 < u64::MAX / 2 {
            at = Micros(at.0 + 1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_what_was_asked_for_and_not_earlier() {
        for drift_ppm in [-50_000, -7, 0, 3, 50_000] {
            let clock = Clock { offset: Micros(1234), drift_ppm };
            for shown in [0, 1234, 5000, 1_000_003, 77_777_777] {
                let at = clock.when(Micros(shown));
                assert!(clock.show(at) >= Micros(shown));
                assert!(at.0 == 0 || clock.show(Micros(at.0 - 2)) < Micros(shown.max(1234)));
            }
        }
    }
}
