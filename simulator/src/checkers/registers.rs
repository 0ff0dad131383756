//! The registers of all hosts, record by record (section 2).
//!
//! * **R1** what enters a stream is a PROPOSE, an ACCEPT or a CHANGE that may stand there;
//! * **R2** the stamp names the writer;
//! * **R3** every host holds a prefix of the one sequence that the writer's host admitted;
//! * **R4** `seen` is what the host had exposed, and a record is exposed after what it has seen;
//! * **R5** in the end every live host holds the same;
//! * **R6** a host that has lost records goes on where the longest copy of its stream ends that any
//!   host has which is not retired, and admits nothing before.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared_registers::ids::{ServerId, Term};

use super::{Events, Facts};
use crate::history::{Event, RecordSeen, Said};

struct Registers {
    n: usize,
    quorum: usize,
    /// By stream, the records that its own host admitted.
    streams: Vec<Vec<Arc<RecordSeen>>>,
    /// By stream, its CHANGEs, and how many records there were with each.
    changes: Vec<Vec<(u64, Term)>>,
    /// By host, what it holds and what its guest may see of each stream.
    copied: Vec<Vec<u64>>,
    exposed: Vec<Vec<u64>>,
    /// By host, if it recovers: what it found of its own stream.
    found: Vec<Option<u64>>,
    retired: Vec<bool>,
}

impl Registers {
    fn new(facts: &Facts) -> Registers {
        let n = facts.n;
        Registers {
            n,
            quorum: facts.f + 1,
            streams: vec![Vec::new(); n],
            changes: vec![Vec::new(); n],
            copied: vec![vec![0; n]; n],
            exposed: vec![vec![0; n]; n],
            found: vec![None; n],
            retired: vec![false; n],
        }
    }

    fn copy(&mut self, host: ServerId, record: &Arc<RecordSeen>) -> Result<(), String> {
        let (writer, seq) = (record.writer, record.seq);
        if record.stamped != writer {
            return Err(format!("R2: a record of stream {writer} names {}", record.stamped));
        }
        let count = &mut self.copied[host.index()][writer.index()];
        *count += 1;
        if seq.0 != *count {
            return Err(format!("R3: host {host} holds {seq} of stream {writer} as its {count}."));
        }
        let known = self.streams[writer.index()].get(seq.0 as usize - 1);
        if host == writer && known.is_none() {
            match self.found[host.index()] {
                None => self.may_enter(record)?,
                // It died as it admitted this, and nobody was told.
                Some(found) if seq.0 <= found => {}
                Some(_) => return Err(format!("R6: host {host} admits {seq} as it recovers")),
            }
            if let Said::Change(term) = record.said {
                self.changes[writer.index()].push((seq.0, term));
            }
            self.streams[writer.index()].push(record.clone());
            return Ok(());
        }
        match known {
            None => Err(format!("R3: host {host} holds {seq} of stream {writer} before its host")),
            Some(own) if own.digest != record.digest => {
                Err(format!("R3: hosts {host} and {writer} differ in {seq} of stream {writer}"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Section 6: a host has jumped over records of another's stream.
    fn jump(&mut self, host: ServerId, writer: ServerId, to: u64) -> Result<(), String> {
        let count = &mut self.copied[host.index()][writer.index()];
        let own = host == writer && self.found[host.index()].is_none();
        if own || to <= *count {
            return Err(format!("host {host} jumps from {count} to {to} of stream {writer}"));
        }
        *count = to;
        Ok(())
    }

    /// R1 and R4, of what a host admits from its guest.
    fn may_enter(&self, record: &RecordSeen) -> Result<(), String> {
        let (writer, seq) = (record.writer, record.seq);
        let mut seen = self.exposed[writer.index()].clone();
        seen[writer.index()] = seq.0 - 1;
        if record.seen != seen {
            return Err(format!(
                "R4: record {seq} of stream {writer} says that {:?} were seen, and {seen:?} were",
                record.seen
            ));
        }
        match record.said {
            Said::Malformed => Err(format!("R1: record {seq} of stream {writer} is malformed")),
            Said::Change(term) => self.may_change(record, term),
            Said::Propose(_) | Said::Accept => Ok(()),
        }
    }

    fn may_change(&self, record: &RecordSeen, term: Term) -> Result<(), String> {
        let writer = record.writer;
        if self.changes[writer.index()].iter().any(|(_, before)| *before >= term) {
            return Err(format!("R1: server {writer} wrote CHANGE({term}) after a later one"));
        }
        let done = |(changes, seen): (&Vec<(u64, Term)>, &u64)| {
            changes.iter().any(|(at, other)| at <= seen && other.0 + 1 >= term.0)
        };
        let writers = self.changes.iter().zip(&record.seen).filter(|stream| done(*stream)).count();
        if term > Term(0) && writers < self.quorum {
            return Err(format!(
                "R1: server {writer} wrote CHANGE({term}) after those of {writers}"
            ));
        }
        Ok(())
    }

    /// R3 and R4: a host that starts again holds and has exposed no less than before.
    fn start(&self, host: ServerId, copied: &[u64], exposed: &[u64]) -> Result<(), String> {
        let known = [&self.copied[host.index()], &self.exposed[host.index()]];
        for (rule, before, now) in [("R3", known[0], copied), ("R4", known[1], exposed)] {
            if now.len() != self.n || before.iter().zip(now).any(|(before, now)| now < before) {
                return Err(format!("{rule}: host {host} starts with {now:?}, had {before:?}"));
            }
        }
        Ok(())
    }

    /// R6: a host that has lost records starts again with what it found.
    fn begin_to_recover(&mut self, host: ServerId, copied: &[u64], exposed: &[u64]) {
        // What it found and told nobody of yet is told of next.
        let known = &mut self.copied[host.index()];
        known.iter_mut().zip(copied).for_each(|(known, found)| *known = (*known).min(*found));
        self.exposed[host.index()] = exposed.to_vec();
        self.found[host.index()] = Some(copied[host.index()]);
    }

    /// R6: what only hosts held that have lost it has vanished, and nothing else.
    fn recovered(&mut self, host: ServerId, end: u64) -> Result<(), String> {
        let stream = host.index();
        let others = ServerId::all(self.n).filter(|other| !self.retired[other.index()]);
        let holds = |other: &ServerId| self.copied[other.index()][stream];
        let most = others.max_by_key(holds).filter(|other| holds(other) > end);
        if let Some(other) = most {
            let held = holds(&other);
            return Err(format!(
                "R6: host {host} goes on behind record {end} of its stream, and host {other} holds \
                 {held}"
            ));
        }
        self.streams[stream].truncate(end as usize);
        self.changes[stream].retain(|(seq, _)| *seq <= end);
        (self.found[stream], self.retired[stream]) = (None, false);
        Ok(())
    }

    /// R1: a host that starts again or has jumped knows the last CHANGE of each stream, also one
    /// that is reclaimed.
    fn knows_change(
        &self,
        host: ServerId,
        writer: ServerId,
        upto: u64,
        known: Option<Term>,
    ) -> Result<(), String> {
        // One that died while it admitted a record has more than anybody was told of.
        let told = upto <= self.streams[writer.index()].len() as u64;
        let changes = self.changes[writer.index()].iter().take_while(|(seq, _)| *seq <= upto);
        let last = changes.map(|(_, term)| *term).max();
        match !told || last == known {
            true => Ok(()),
            false => Err(format!(
                "R1: host {host} knows of {known:?} as the last CHANGE of stream {writer}, which is \
                 {last:?}"
            )),
        }
    }

    fn expose(&mut self, host: ServerId, upto: &[u64]) -> Result<(), String> {
        for writer in 0..self.n {
            let before = self.exposed[host.index()][writer];
            if upto[writer] < before || upto[writer] > self.copied[host.index()][writer] {
                return Err(format!("R4: host {host} exposes {} of {writer}", upto[writer]));
            }
            let records = &self.streams[writer];
            let shown = records.get(before as usize..upto[writer] as usize);
            let Some(shown) = shown else {
                return Err(format!("R3: host {host} exposes {} of {writer}", upto[writer]));
            };
            for record in shown {
                if record.seen.iter().zip(upto).any(|(seen, exposed)| seen > exposed) {
                    return Err(format!(
                        "R4: host {host} exposes {} of stream {writer} before what it has seen",
                        record.seq
                    ));
                }
            }
        }
        self.exposed[host.index()] = upto.to_vec();
        Ok(())
    }
}

/// R5: what one live host has, every live host has.
fn all_alike(copied: &[Option<Vec<u64>>]) -> Result<(), String> {
    let live: BTreeMap<_, _> =
        copied.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?))).collect();
    let Some((first, counts)) = live.first_key_value() else { return Ok(()) };
    match live.iter().find(|(_, other)| *other != counts) {
        None => Ok(()),
        Some((other, theirs)) => Err(format!(
            "R5: in the end host {first} holds {counts:?} and host {other} holds {theirs:?}"
        )),
    }
}

/// See the [module](self).
pub fn check(events: &Events, facts: &Facts) -> Result<(), String> {
    let mut registers = Registers::new(facts);
    for (_, event) in events {
        match event {
            Event::Copied { host, record } => registers.copy(*host, record)?,
            Event::Jumped { host, writer, to, change } => {
                registers.jump(*host, *writer, *to)?;
                registers.knows_change(*host, *writer, *to, *change)?;
            }
            Event::Exposed { host, upto } => registers.expose(*host, upto)?,
            Event::HostStarted { host, recovers, copied, exposed, changes } => {
                match recovers {
                    true => registers.begin_to_recover(*host, copied, exposed),
                    false => registers.start(*host, copied, exposed)?,
                }
                for ((writer, copied), change) in ServerId::all(facts.n).zip(copied).zip(changes) {
                    registers.knows_change(*host, writer, *copied, *change)?;
                }
            }
            Event::HostRecovered { host, end } => registers.recovered(*host, *end)?,
            Event::Retired { server } => registers.retired[server.index()] = true,
            Event::HostFault { host, peer, what } => {
                return Err(format!("host {host} says that host {peer} {what}"));
            }
            Event::Over { copied } => all_alike(copied)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made_up::judge;
    use super::*;
    use shared_registers::crypto::Digest;
    use shared_registers::ids::Seq;

    fn record(writer: u16, seq: u64, seen: [u64; 3], said: Said) -> RecordSeen {
        let (writer, digest) = (ServerId(writer), Digest([seq as u8; 32]));
        RecordSeen { writer, seq: Seq(seq), stamped: writer, seen: seen.to_vec(), digest, said }
    }

    fn accept(writer: u16, seq: u64, seen: [u64; 3]) -> RecordSeen {
        record(writer, seq, seen, Said::Accept)
    }

    fn copied(host: u16, record: RecordSeen) -> Event {
        Event::Copied { host: ServerId(host), record: Arc::new(record) }
    }

    fn exposed(host: u16, upto: [u64; 3]) -> Event {
        Event::Exposed { host: ServerId(host), upto: upto.to_vec() }
    }

    fn rejected(events: &[Event], rule: &str) {
        let why = judge(check, events).expect_err("it must be rejected");
        assert!(why.starts_with(rule), "{why}");
    }

    #[test]
    fn r1_what_may_not_enter_is_rejected() {
        rejected(&[copied(0, record(0, 1, [0; 3], Said::Malformed))], "R1");
        let change = |writer, seq, seen, term| record(writer, seq, seen, Said::Change(Term(term)));
        assert_eq!(judge(check, &[copied(0, change(0, 1, [0; 3], 0))]), Ok(()));
        // Nobody else is done with term 0, and then one more is.
        let first = copied(0, change(0, 1, [0; 3], 0));
        rejected(&[first.clone(), copied(0, change(0, 2, [1, 0, 0], 1))], "R1");
        let other = [copied(1, change(1, 1, [0; 3], 0)), copied(0, change(1, 1, [0; 3], 0))];
        let seen = exposed(0, [1, 1, 0]);
        let second = copied(0, change(0, 2, [1, 1, 0], 1));
        let events = [std::slice::from_ref(&first), &other[..], &[seen, second]].concat();
        assert_eq!(judge(check, &events), Ok(()));
        rejected(&[first, copied(0, change(0, 2, [1, 0, 0], 0))], "R1");
    }

    #[test]
    fn r2_another_writers_name_is_rejected() {
        let mut one = accept(0, 1, [0; 3]);
        one.stamped = ServerId(1);
        rejected(&[copied(0, one)], "R2");
    }

    #[test]
    fn r3_two_histories_of_one_stream_are_rejected() {
        let (one, mut other) = (accept(0, 1, [0; 3]), accept(0, 1, [0; 3]));
        assert_eq!(judge(check, &[copied(0, one.clone()), copied(1, one.clone())]), Ok(()));
        other.digest = Digest([9; 32]);
        rejected(&[copied(0, one.clone()), copied(1, other)], "R3");
        rejected(&[copied(1, one.clone())], "R3");
        rejected(&[copied(0, one.clone()), copied(0, one)], "R3");
    }

    #[test]
    fn r4_stamps_and_exposure_that_break_causality_are_rejected() {
        rejected(&[copied(0, accept(0, 1, [0, 1, 0]))], "R4");
        let first = copied(0, accept(0, 1, [0; 3]));
        rejected(&[first.clone(), exposed(0, [2, 0, 0])], "R4");
        // Record 1 of stream 1 has seen record 1 of stream 0.
        let second = [copied(1, accept(0, 1, [0; 3])), exposed(1, [1, 0, 0])];
        let second = [&second[..], &[copied(1, accept(1, 1, [1, 0, 0]))]].concat();
        let third = [copied(2, accept(1, 1, [1, 0, 0])), exposed(2, [0, 1, 0])];
        rejected(&[&[first], &second[..], &third].concat(), "R4");
    }

    #[test]
    fn a_host_that_starts_again_with_less_is_rejected() {
        let start = |copied: [u64; 3], exposed: [u64; 3]| {
            let (copied, exposed) = (copied.to_vec(), exposed.to_vec());
            let (host, recovers, changes) = (ServerId(0), false, vec![None; 3]);
            Event::HostStarted { host, recovers, copied, exposed, changes }
        };
        let before = [copied(0, accept(0, 1, [0; 3])), exposed(0, [1, 0, 0])];
        let then = |next: Event| [&before[..], &[next]].concat();
        assert_eq!(judge(check, &then(start([1, 0, 0], [1, 0, 0]))), Ok(()));
        // It died before anybody saw that it has one record more.
        assert_eq!(judge(check, &then(start([2, 0, 0], [1, 0, 0]))), Ok(()));
        rejected(&then(start([0; 3], [0; 3])), "R3");
        rejected(&then(start([1, 0, 0], [0; 3])), "R4");
    }

    #[test]
    fn a_jump_back_or_in_the_own_stream_is_rejected() {
        let jumped = |host: u16, to| {
            let (host, writer) = (ServerId(host), ServerId(0));
            Event::Jumped { host, writer, to, change: None }
        };
        let one = |host| copied(host, accept(0, 1, [0; 3]));
        let after = |next: Event| [one(0), one(1), next];
        let two = copied(0, accept(0, 2, [1, 0, 0]));
        assert_eq!(judge(check, &[one(0), two.clone(), jumped(1, 2)]), Ok(()));
        rejected(&after(jumped(1, 1)), "host 1 jumps");
        rejected(&after(jumped(0, 2)), "host 0 jumps");
        // It has what it jumped over no more.
        let again = [one(0), two, jumped(1, 2), one(1)];
        rejected(&again, "R3");
    }

    #[test]
    fn r1_a_host_that_forgets_a_change_is_rejected() {
        let first = copied(0, record(0, 1, [0; 3], Said::Change(Term(0))));
        let jumped = |change| {
            let (host, writer, to) = (ServerId(1), ServerId(0), 1);
            Event::Jumped { host, writer, to, change }
        };
        assert_eq!(judge(check, &[first.clone(), jumped(Some(Term(0)))]), Ok(()));
        rejected(&[first.clone(), jumped(None)], "R1");
        let start = |change| Event::HostStarted {
            host: ServerId(0),
            recovers: false,
            copied: vec![1, 0, 0],
            exposed: vec![1, 0, 0],
            changes: vec![change, None, None],
        };
        assert_eq!(judge(check, &[first.clone(), start(Some(Term(0)))]), Ok(()));
        rejected(&[first, start(None)], "R1");
    }

    #[test]
    fn r6_a_host_that_goes_on_before_the_longest_copy_ends_is_rejected() {
        let one = |host| copied(host, accept(0, 1, [0; 3]));
        let two = |host| copied(host, accept(0, 2, [1, 0, 0]));
        let host = ServerId(0);
        let lost = |copied: [u64; 3]| Event::HostStarted {
            host,
            recovers: true,
            copied: copied.to_vec(),
            exposed: vec![0; 3],
            changes: vec![None; 3],
        };
        let recovered = |end| Event::HostRecovered { host, end };
        let before = [one(0), exposed(0, [1, 0, 0]), two(0), exposed(0, [2, 0, 0]), one(1)];
        let then = |events: &[Event]| [&before[..], &[lost([0; 3])], events].concat();
        assert_eq!(judge(check, &then(&[one(0), recovered(1)])), Ok(()));
        rejected(&then(&[recovered(0)]), "R6: host 0 goes on behind record 0");
        rejected(&then(&[one(0), two(1), recovered(1)]), "R6");
        // Another record takes the place of the one that has vanished, but not before.
        let mut other = accept(0, 2, [1, 0, 0]);
        other.digest = Digest([9; 32]);
        let shown = exposed(0, [1, 0, 0]);
        let other = [copied(0, other)];
        let after = [one(0), shown.clone(), recovered(1)];
        assert_eq!(judge(check, &then(&[&after[..], &other].concat())), Ok(()));
        rejected(&then(&[&after[..], &other, &[two(1)]].concat()), "R3");
        rejected(&then(&[&[one(0), shown], &other[..]].concat()), "R3: hosts 0 and 0");
        let new = copied(0, accept(0, 3, [2, 0, 0]));
        rejected(&then(&[one(0), two(0), new]), "R6: host 0 admits");
        // Nobody waits for one that is retired.
        let retired = Event::Retired { server: ServerId(1) };
        assert_eq!(judge(check, &then(&[retired, recovered(0)])), Ok(()));
    }

    #[test]
    fn r5_hosts_that_end_apart_are_rejected() {
        let over = |a: u64, b: u64| Event::Over {
            copied: vec![Some(vec![a, 0, 0]), None, Some(vec![b, 0, 0])],
        };
        assert_eq!(judge(check, &[over(1, 1)]), Ok(()));
        rejected(&[over(1, 2)], "R5");
    }

    #[test]
    fn a_host_that_finds_fault_with_another_is_rejected() {
        let (host, peer, what) = (ServerId(0), ServerId(1), "lies".to_owned());
        assert!(judge(check, &[Event::HostFault { host, peer, what }]).is_err());
    }
}
