//! Catching up (P6, section 6): which snapshot a guest wants whose records are reclaimed, and when
//! it has what it needs to go on.
//!
//! What is left of the streams is shown to it record by record: the claims in it say what is stable.
//! The claims of all writers count in the order of their heights ([`Claims::count_lowest`]):
//! [`CatchUp::look`] shows nothing more of a stream whose last claim waits until every stream was
//! shown as far as it goes, or waits too.
//! The snapshot of the newest stable checkpoint is [fetched](Fetch). The cluster does not wait
//! meanwhile: as soon as a newer checkpoint is stable it turns to that one, since nobody keeps the
//! one before. What has not changed between the two is not fetched again, nor is what was known
//! before.

use std::sync::Arc;

use shared_registers::checkpoint::Claims;
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::record::{Accept, Body, Checkpoint, Record, Stamp};
use shared_registers::words::News;

use crate::replica::Replica;
use crate::snapshot::Part;
use crate::transfer::{Fetch, FetchConfig};

/// A guest without a replica, on its way to one.
pub struct CatchUp {
    config: FetchConfig,
    /// What is left of the streams says so.
    claims: Claims,
    /// By writer, the claim that was found last, if it is not counted yet.
    found: Vec<Option<(Stamp, Checkpoint)>>,
    fetch: Option<Fetch>,
    /// Parts of a snapshot that are known already.
    known: Vec<Arc<Part>>,
}

impl CatchUp {
    /// Begins. `known`: parts of a snapshot that are at hand; `stable`: the last stable checkpoint
    /// that is known of.
    pub fn new(config: FetchConfig, known: Vec<Arc<Part>>, stable: Option<Checkpoint>) -> CatchUp {
        let (claims, found) = (Claims::new(config.n, stable), vec![None; config.n]);
        CatchUp { config, claims, found, fetch: None, known }
    }

    /// Has it shown what is left of the streams, up to `most` records; may be called again. `next`
    /// is to [show](Self::show) it the next record of a stream, and says whether there was one.
    /// Returns whether there may be more.
    pub fn look<E>(
        &mut self,
        most: usize,
        mut next: impl FnMut(&mut CatchUp, ServerId) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut count = 0;
        loop {
            for writer in ServerId::all(self.config.n) {
                while count < most && self.found[writer.index()].is_none() && next(self, writer)? {
                    count += 1;
                }
            }
            if count == most {
                return Ok(true); // Not every stream was shown as far as it goes.
            }
            if self.claims.count_lowest(&mut self.found).is_none() {
                return Ok(false);
            }
        }
    }

    /// Looks at the next record of a stream.
    pub fn show(&mut self, record: &Record<'_>) {
        let body = Body::decode(record.body, self.config.n);
        if let Ok(Body::Accept(Accept { checkpoint: Some(claim), .. })) = body
            && self.claims.says_something(&record.stamp, &claim)
        {
            self.found[record.stamp.writer.index()] = Some((record.stamp.clone(), claim));
        }
    }

    /// Turns to the newest stable checkpoint, if it has not all that it needs and what lies behind
    /// that one's cut is still there: `first` says how many records of a stream are reclaimed.
    /// Returns it if it is another than before.
    pub fn choose(&mut self, first: impl Fn(ServerId) -> Seq) -> Option<&Checkpoint> {
        let stable = self.claims.stable()?;
        let known = self.fetch.as_ref().is_some_and(|fetch| fetch.wanted() == stable);
        if known || self.is_whole(&first) || is_reclaimed(stable, &first) {
            return None;
        }
        match &mut self.fetch {
            Some(fetch) => fetch.restart(stable.clone()),
            None => {
                let mut fetch = Fetch::new(self.config, stable.clone());
                fetch.know(std::mem::take(&mut self.known));
                self.fetch = Some(fetch);
            }
        }
        Some(stable)
    }

    /// Whether the snapshot is there, and what lies behind its cut too.
    pub fn is_whole(&self, first: impl Fn(ServerId) -> Seq) -> bool {
        let fetch = self.fetch.as_ref().filter(|fetch| fetch.is_complete());
        fetch.is_some_and(|fetch| !is_reclaimed(fetch.wanted(), first))
    }

    /// The transfer, once it is known what to fetch.
    pub fn fetch(&self) -> Option<&Fetch> {
        self.fetch.as_ref()
    }

    /// The same, to go on with.
    pub fn fetch_mut(&mut self) -> Option<&mut Fetch> {
        self.fetch.as_mut()
    }
}

/// How far a guest is (P6): it has a replica, or is on its way to one (`C`).
pub enum Core<C> {
    /// It has a replica, which acts once the host has taken what an earlier guest wrote and it has
    /// read all that was exposed: its own stream tells it what it did before.
    Replica {
        /// The replica.
        replica: Box<Replica>,
        /// Whether it may act.
        at_work: bool,
    },
    /// Records that it needs are reclaimed, and it has no replica until it has a snapshot.
    CatchingUp(Box<C>),
}

impl<C> Core<C> {
    /// A replica that reads, and does not act yet.
    pub fn reading(replica: Replica) -> Core<C> {
        Core::Replica { replica: Box::new(replica), at_work: false }
    }

    /// The replica, if there is one.
    pub fn replica(&self) -> Option<&Replica> {
        match self {
            Core::Replica { replica, .. } => Some(replica),
            Core::CatchingUp(_) => None,
        }
    }

    /// The same, to give it what it reads.
    pub fn replica_mut(&mut self) -> Option<&mut Replica> {
        match self {
            Core::Replica { replica, .. } => Some(replica),
            Core::CatchingUp(_) => None,
        }
    }

    /// The replica, if it may act.
    pub fn at_work(&mut self) -> Option<&mut Replica> {
        match self {
            Core::Replica { replica, at_work: true } => Some(replica),
            Core::Replica { .. } | Core::CatchingUp(_) => None,
        }
    }

    /// For which news its host is to ring. One that is on its way to work reads all that there is.
    pub fn wanted(&self) -> News {
        match self {
            Core::Replica { replica, at_work: true } => replica.wanted(),
            Core::Replica { .. } | Core::CatchingUp(_) => News::ALL,
        }
    }

    /// When it has something to do. One that may not act yet cannot act on what is due.
    pub fn next_deadline(&self, catching_up: impl Fn(&C) -> Option<Micros>) -> Option<Micros> {
        match self {
            Core::Replica { replica, at_work } => replica.next_deadline().filter(|_| *at_work),
            Core::CatchingUp(way) => catching_up(way),
        }
    }
}

/// Whether records that come right behind the cut of a checkpoint are reclaimed.
fn is_reclaimed(checkpoint: &Checkpoint, first: impl Fn(ServerId) -> Seq) -> bool {
    let mut cuts = ServerId::all(checkpoint.cut.len()).zip(&checkpoint.cut);
    cuts.any(|(writer, cut)| first(writer).0 > *cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_registers::crypto::{ClusterId, Digest};
    use shared_registers::ids::{Batch, Term};

    fn checkpoint(batch: u64, cut: u64) -> Checkpoint {
        let (term, batch, digest) = (Term(0), Batch(batch), Digest([batch as u8; 32]));
        Checkpoint { term, batch, digest, cut: vec![cut; 3] }
    }

    /// A record of `writer`, which claims this, if anything, and has seen its cut.
    fn show(catch_up: &mut CatchUp, writer: ServerId, claim: Option<&Checkpoint>) {
        let mut body = Vec::new();
        let checkpoint = claim.cloned();
        Body::Accept(Accept { term: Term(0), vote: None, checkpoint }).encode(&mut body);
        let (seq, seen) = (Seq(100), Box::from([99; 3]));
        let stamp = Stamp { writer, seq, time: Micros(0), incarnation: 0, seen };
        catch_up.show(&Record { stamp, body: &body });
    }

    fn claim(catch_up: &mut CatchUp, writer: u16, claim: &Checkpoint) {
        show(catch_up, ServerId(writer), Some(claim));
        let CatchUp { claims, found, .. } = catch_up;
        assert!(claims.count_lowest(found).is_some() && claims.count_lowest(found).is_none());
    }

    /// Found by the simulator (seed 583): whoever looked at one stream after the other, or at so many
    /// records of each, forgot over a broken-in guest's later claims that an earlier one was stable.
    #[test]
    fn a_writers_later_claims_do_not_hide_what_is_stable() {
        let (me, n, cluster) = (ServerId(2), 3, ClusterId([1; 32]));
        let config = FetchConfig { me, n, cluster, silence: Micros(1) };
        let stable = checkpoint(3, 3);
        for (most, before) in [(1, 0), (7, 100), (64, 2000), (10_000, 2000)] {
            let mut catch_up = CatchUp::new(config, vec![], None);
            // Server 0's stream has one claim after the other; server 1's has one, far behind.
            let dense = (3..40).map(|batch| Some(checkpoint(batch, batch)));
            let deep = std::iter::repeat_n(None, before).chain([Some(stable.clone())]);
            let mut streams: [Vec<_>; 3] = [dense.collect(), deep.collect(), Vec::new()];
            streams.iter_mut().for_each(|stream| stream.reverse());
            let all: usize = streams.iter().map(Vec::len).sum();
            let mut looks = 0;
            let mut look = || {
                catch_up.look(most, |catch_up, writer| {
                    let next = streams[writer.index()].pop();
                    if let Some(claim) = &next {
                        show(catch_up, writer, claim.as_ref());
                    }
                    Ok::<_, ()>(next.is_some())
                })
            };
            while look().unwrap() {
                looks += 1;
                assert!(looks <= all / most + 1, "no more than it was told");
            }
            assert_eq!(catch_up.choose(|_| Seq(0)), Some(&stable), "{most} at a time");
        }
    }

    #[test]
    fn it_turns_to_what_is_stable_and_newest_unless_that_is_reclaimed_further() {
        let (me, n, cluster) = (ServerId(2), 3, ClusterId([1; 32]));
        let config = FetchConfig { me, n, cluster, silence: Micros(1) };
        let mut catch_up = CatchUp::new(config, vec![], None);
        let (old, new) = (checkpoint(3, 5), checkpoint(9, 20));
        let first = |count| move |_| Seq(count);
        claim(&mut catch_up, 0, &old);
        assert_eq!(catch_up.choose(first(5)), None, "one claim");
        claim(&mut catch_up, 1, &old);
        assert_eq!(catch_up.choose(first(6)), None, "what lies behind its cut is reclaimed");
        assert_eq!(catch_up.choose(first(5)), Some(&old));
        assert_eq!(catch_up.choose(first(5)), None, "it is at it");
        claim(&mut catch_up, 0, &new);
        claim(&mut catch_up, 1, &new);
        assert_eq!(catch_up.choose(first(5)), Some(&new));
        assert_eq!(catch_up.fetch().map(Fetch::wanted), Some(&new));
        assert!(!catch_up.is_whole(first(5)), "nothing has come");
    }
}
