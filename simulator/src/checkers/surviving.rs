//! R6: what a run looks like without what nobody remembers.
//!
//! Records that only hosts held which lost them have vanished, and others take their places. Whoever
//! was shown one was faulty: its host lost it. So what such a guest concluded since is its own
//! affair; it has started over. All checkers but that of the registers judge what is left.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use shared_registers::ids::ServerId;

use super::Events;
use crate::history::Event;

/// A host between two losses.
#[derive(Default)]
struct Life {
    /// When it had shown how many records of each stream to its guest.
    shown: Vec<(usize, Vec<u64>)>,
    /// When the host began to recover.
    end: Option<usize>,
}

#[derive(Default)]
struct Seen {
    /// By stream and record: the events of its admission.
    admitted: BTreeMap<ServerId, Vec<Vec<usize>>>,
    lives: BTreeMap<ServerId, Vec<Life>>,
    /// By stream, when its host recovered last.
    recovered: BTreeMap<ServerId, usize>,
    died: BTreeMap<ServerId, usize>,
    /// Spans of events of which a server's conclusions do not count.
    void: Vec<(ServerId, usize, usize)>,
    vanished: BTreeSet<usize>,
}

impl Seen {
    fn life(&mut self, host: ServerId) -> &mut Life {
        let lives = self.lives.entry(host).or_default();
        if lives.last().is_none_or(|life| life.end.is_some()) {
            lives.push(Life::default());
        }
        lives.last_mut().expect("pushed if there was none")
    }

    fn begin_to_recover(&mut self, host: ServerId, at: usize) {
        self.life(host).end = Some(at);
        // One that died in mid-step had perhaps shown more than it told of.
        if let Some(died) = self.died.get(&host) {
            self.void.push((host, *died, at));
        }
    }

    fn recover(&mut self, host: ServerId, end: u64, at: usize) {
        let records = self.admitted.entry(host).or_default();
        let gone = records.split_off(records.len().min(end as usize));
        self.vanished.extend(gone.into_iter().flatten());
        let since = self.recovered.insert(host, at).unwrap_or(0);
        for (server, lives) in &self.lives {
            for life in lives {
                let beyond = |(when, upto): &&(usize, Vec<u64>)| {
                    *when > since && upto.get(host.index()).is_some_and(|upto| *upto > end)
                };
                if let Some((from, _)) = life.shown.iter().find(beyond) {
                    self.void.push((*server, *from, life.end.unwrap_or(at)));
                }
            }
        }
    }

    fn take(&mut self, at: usize, event: &Event) {
        match event {
            Event::Admitted { host, .. } => {
                self.admitted.entry(*host).or_default().push(vec![at]);
            }
            Event::Claimed { host, .. } => {
                let records = self.admitted.entry(*host).or_default();
                records.last_mut().into_iter().for_each(|events| events.push(at));
            }
            Event::Exposed { host, upto } => self.life(*host).shown.push((at, upto.clone())),
            Event::HostCrashed { host } => {
                self.died.insert(*host, at);
            }
            Event::HostStarted { host, recovers: true, .. } => self.begin_to_recover(*host, at),
            Event::HostRecovered { host, end } => self.recover(*host, *end, at),
            _ => {}
        }
    }
}

/// Whose conclusion an event is.
fn concludes(event: &Event) -> Option<ServerId> {
    match event {
        Event::Committed { server, .. }
        | Event::Delivered { server, .. }
        | Event::Stable { server, .. }
        | Event::FellBehind { server }
        | Event::Restored { server, .. } => Some(*server),
        Event::Reclaimed { host, .. } => Some(*host),
        _ => None,
    }
}

/// See the [module](self).
pub fn of(events: &Events) -> Cow<'_, Events> {
    let lost = |event: &Event| matches!(event, Event::HostStarted { recovers: true, .. });
    if !events.iter().any(|(_, event)| lost(event)) {
        return Cow::Borrowed(events);
    }
    let mut seen = Seen::default();
    events.iter().enumerate().for_each(|(at, (_, event))| seen.take(at, event));
    let stays = |at: usize, event: &Event| {
        let void = |server| {
            seen.void.iter().any(|(whose, from, to)| *whose == server && (*from..*to).contains(&at))
        };
        !seen.vanished.contains(&at) && !concludes(event).is_some_and(void)
    };
    let left = events.iter().enumerate().filter(|(at, (_, event))| stays(*at, event));
    Cow::Owned(left.map(|(_, event)| event.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::made_up::{admitted, committed};
    use crate::history::Says;
    use shared_registers::crypto::Digest;
    use shared_registers::ids::Micros;

    fn exposed(host: u16, upto: [u64; 3]) -> Event {
        Event::Exposed { host: ServerId(host), upto: upto.to_vec() }
    }

    fn started(host: u16, copied: [u64; 3]) -> Event {
        let (host, recovers, copied) = (ServerId(host), true, copied.to_vec());
        Event::HostStarted { host, recovers, copied, exposed: vec![0; 3], changes: vec![None; 3] }
    }

    fn left(events: &[Event]) -> Vec<usize> {
        let all: Vec<_> = (0..).map(Micros).zip(events.iter().cloned()).collect();
        of(&all).iter().map(|(at, _)| at.0 as usize).collect()
    }

    #[test]
    fn a_vanished_record_takes_with_it_what_was_concluded_from_it() {
        let write = |seq| admitted(1, seq, [0, seq - 1, 0], Says::Nothing);
        let conclude = |server| committed(server, 1, Digest::default());
        let lost = [
            write(1),
            exposed(1, [0, 1, 0]),
            conclude(1),
            write(2),
            exposed(1, [0, 2, 0]),
            conclude(1),
            conclude(0),
            started(1, [0; 3]),
            conclude(1),
        ];
        let recovered = |end| Event::HostRecovered { host: ServerId(1), end };
        let with = |end| [&lost[..], &[recovered(end), write(2), conclude(1)]].concat();
        assert_eq!(left(&with(2)), (0..12).collect::<Vec<_>>());
        assert_eq!(left(&with(1)), [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]);
        assert_eq!(left(&lost[..7]), (0..7).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_host_showed_before_it_died_without_telling_does_not_count() {
        let crashed = Event::HostCrashed { host: ServerId(1) };
        let conclude = |server| committed(server, 1, Digest::default());
        let events = [conclude(1), crashed, conclude(1), conclude(0), started(1, [0; 3])];
        assert_eq!(left(&events), [0, 1, 3, 4]);
    }
}
