//! R6: where a host's own stream ends, if its own file does not say so any more.
//!
//! Whoever lost, or may have lost, records that others have seen must not write others in their
//! places. So it asks **all** other hosts, and takes nothing of its guest before it has what the
//! longest answer names. There is no question and no answer as such: hosts exchange LENGTHS anyway,
//! and these carry the sender's **floors**, the least incarnation of each host that it listens to.
//! Floors never fall and everyone adopts the highest that it hears of. So LENGTHS that carry floors
//! at least as high as the asker's are an answer, and a promise: how many records of the asker's
//! stream there are, and that none will come from those who may know of more:
//!
//! * the asker itself, in its earlier life (a process that hangs, bytes that are still on their
//!   way): the asker raises its own floor, and becomes that incarnation;
//! * a third host's earlier life, which had more of the stream than the third host has found again:
//!   that one has raised its floor too, and an answer that does not know of that does not count;
//!   nor does one of a host that has not yet found out what to raise it to;
//! * a host that was retired, which nobody asks: its floor is one above its last incarnation.
//!
//! So there are two passes: in the first the asker learns which incarnations there were, from
//! whatever all others say; in the second it asks as the next one.
//!
//! A host that has lost its file has lost the floors that it promised to keep, too. So it takes no
//! records before it has heard of them again: from `f` hosts that are past their first pass, one of
//! which at least has not lost them. (No floor was raised since without this host: whoever raises
//! one waits for its answer, past its first pass.)
//!
//! Records that come from third hosts are taken all the while: whoever sends them has answered with
//! them, or will. Incarnations are even; an odd floor says that its host is retired, and that nobody
//! needs to wait for it. It comes back as the next incarnation above, as all do that recover.

use shared_registers::canary::{Canary, broken};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::is_retired;

use crate::peers::Lengths;

/// What a peer said last.
struct Answer {
    unnamed: bool,
    floors: Box<[u32]>,
    /// How many records of the own stream it has.
    count: u64,
}

/// A host that recovers.
pub(crate) struct Recovery {
    me: ServerId,
    /// Which incarnation it asks as, once it knows of all that there were.
    incarnation: Option<u32>,
    answers: Vec<Option<Answer>>,
}

/// What a host that recovers is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for these hosts, one bit for each: for their answers, or for the records that they
    /// have. None: for records of other streams, which the last of its own has seen.
    Wait(u64),
    /// Ask everyone (again), as this incarnation.
    Ask(u32),
    /// Go on, as this incarnation.
    Done(u32),
}

impl Recovery {
    pub(crate) fn new(me: ServerId, n: usize) -> Recovery {
        Recovery { me, incarnation: None, answers: (0..n).map(|_| None).collect() }
    }

    /// A peer sent LENGTHS.
    pub(crate) fn answer(&mut self, peer: ServerId, said: &Lengths) {
        let (floors, count) = (said.floors.clone(), said.counts[self.me.index()]);
        let answer = Answer { unnamed: said.unnamed, floors, count };
        self.answers[peer.index()] = Some(answer);
    }

    /// Whether this host has yet to learn which incarnations of it there were.
    pub(crate) fn unnamed(&self) -> bool {
        self.incarnation.is_none()
    }

    /// Whether it knows the floors that there are, so that it may take records.
    pub(crate) fn oriented(&self) -> bool {
        let named = self.answers.iter().flatten().filter(|answer| !answer.unnamed).count();
        !self.unnamed() || named >= self.answers.len() / 2
    }

    /// What to do, with these floors, and so many own records here and exposed.
    pub(crate) fn step(&mut self, floors: &[u32], copied: Seq, exposed: Seq) -> Step {
        let (mut silent, mut longer) = (0_u64, 0);
        for (k, answer) in self.answers.iter().enumerate() {
            if k == self.me.index() || is_retired(floors[k]) {
                continue;
            }
            let knows = |answer: &&Answer| {
                let floors = answer.floors.iter().zip(floors).all(|(theirs, own)| theirs >= own);
                self.unnamed() || (floors && !answer.unnamed)
            };
            match answer.as_ref().filter(knows) {
                None => silent |= 1 << k,
                Some(answer) if answer.count > copied.0 => longer |= 1 << k,
                Some(_) => {}
            }
        }
        let heard = self.answers.len() - 1 - silent.count_ones() as usize;
        let enough = broken(Canary::R6Answers) && heard >= self.answers.len() / 2;
        if silent != 0 && !enough {
            return Step::Wait(silent);
        }
        let floor = floors[self.me.index()];
        match self.incarnation {
            Some(incarnation) if incarnation == floor => {
                let complete = longer == 0 && (exposed == copied || broken(Canary::R6Past));
                if complete { Step::Done(incarnation) } else { Step::Wait(longer) }
            }
            _ => {
                // Above all that anybody knows of, and even.
                let incarnation = (floor | 1) + 1;
                self.incarnation = Some(incarnation);
                Step::Ask(incarnation)
            }
        }
    }
}
