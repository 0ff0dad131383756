//! Rules broken on purpose, one at a time, to see that the simulator's checkers notice.
//!
//! A checker that never turns red says nothing. So the places that keep the rules of
//! `docs/protocol.md` ask [`broken`] whether this one is to be kept, and the simulator, built with
//! the feature `canaries`, breaks each in turn and must find out. Without the feature the answer is
//! a constant `false` and nothing of it is left in the program; [`BUILT_IN`] lets every binary
//! refuse to be compiled with it.

/// Whether this build can break a rule. No binary that anybody deploys may.
pub const BUILT_IN: bool = cfg!(feature = "canaries");

macro_rules! canaries {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What can be broken. The first two letters of a name are the rule's number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Canary { $($(#[$doc])* $name,)* }

        impl Canary {
            /// All of them.
            pub const ALL: &[Canary] = &[$(Canary::$name,)*];
        }
    };
}

canaries! {
    /// R1: an order is admitted whatever its MAC.
    R1OrderMac,
    /// R1: an order is admitted whatever digest it is said to have.
    R1OrderDigest,
    /// R1: a CHANGE is admitted whatever CHANGEs its guest has seen.
    R1Change,
    /// R1: a frame is checked, and then copied out of its guest's file once more.
    R1DoubleFetch,
    /// R1: a frame behind a drop takes the dropped one's place, acknowledged or not. (As built its
    /// number would not fit either: both checks are off.)
    R1Unacknowledged,
    /// R3: a frame is admitted again, if it comes again.
    R3Number,
    /// R3: two hosts go by one name and admit different records. The simulator plays them, and no
    /// host asks for this: it breaks the model itself.
    R3Twin,
    /// R4: a record is exposed before what its `seen` names.
    R4Exposure,
    /// R4: `seen` counts what the host has copied, not what its guest was shown.
    R4Stamp,
    /// R5: a host hands on its own records alone.
    R5ThirdParties,
    /// R6: a host goes on with a file that another boot of its machine left in mid-work.
    R6OtherBoot,
    /// R6: a host that recovers has enough of the answers of whoever is first, its own and `f`.
    R6Answers,
    /// R6: a host that recovers takes frames of its guest's meanwhile.
    R6Early,
    /// R6: a host goes on before its own last record's past is there.
    R6Past,
    /// V0: a record is read before what its `seen` names.
    V0Seen,
    /// V1: a vote counts whatever segment it stands in.
    V1Vote,
    /// V1: a PROPOSE counts whatever segment it stands in.
    V1Propose,
    /// V1: a CHANGE closes one segment, also if it is of a later term.
    V1Jump,
    /// V2: `f` CHANGEs open a term.
    V2EvidenceCount,
    /// V2: CHANGEs of one writer count as often as they are cited.
    V2EvidenceWriters,
    /// V2: an opening may cite what it has not seen.
    V2EvidenceSeen,
    /// V2: an opening may cite CHANGEs of any term.
    V2EvidenceTerm,
    /// V2: a batch may be proposed again, and takes the place of the first.
    V2Consecutive,
    /// V2: batches may run ahead of what is committed without end.
    V2Window,
    /// V2: a later PROPOSE without orders opens the term once more.
    V2Reopened,
    /// V3: a vote may be for a batch that its writer has not seen.
    V3Unseen,
    /// V3: a vote counts whatever chain it names.
    V3Chain,
    /// V3: a later vote may take an earlier one back.
    V3Falling,
    /// V3: a PROPOSE is not its writer's vote.
    V3Propose,
    /// V3: an opening is not its writer's vote.
    V3Opening,
    /// B1: the base is the lowest of the cited writers' votes.
    B1Lowest,
    /// B1: votes are compared by their batch alone.
    B1BatchOnly,
    /// B1: only the opener's own votes are looked at.
    B1OwnVotes,
    /// C1: `f` votes commit.
    C1Quorum,
    /// C2: a delivered order is delivered again.
    C2Repeated,
    /// C2: an order is delivered before those that its client sent earlier.
    C2Early,
    /// C2: an order that is skipped takes an order number.
    C2Skipped,
    /// P1: a client whose clock went back takes the very next session.
    P1Leap,
    /// P3: a sequencer does not suspect itself.
    P3Self,
    /// P3: an order that its client sent to a backup goes no further.
    P3Forward,
    /// P4: a replica goes on voting after its own CHANGE.
    P4VoteAfterChange,
    /// P4: an opening without a batch gets no votes.
    P4BaseVote,
    /// P5: a client believes `f` equal replies.
    P5Quorum,
    /// P5: a listener believes `f` equal deliveries.
    P5ListenerQuorum,
    /// Section 6: the cut at a term's base is what another term's opening had seen.
    S6Cut,
    /// Section 6: `f` equal claims make a checkpoint stable.
    S6Quorum,
    /// Section 6: a claim counts though its record had not seen the whole cut.
    S6Seen,
    /// Section 6: a checkpoint is claimed before its snapshot is stored.
    S6Store,
    /// Section 6: a snapshot leaves out the writers' last CHANGEs.
    S6LastChange,
    /// Section 6: a snapshot leaves out that the next term is dead.
    S6NextDead,
    /// Section 6: a snapshot leaves out the votes at the cut.
    S6Votes,
    /// Section 6: a stable checkpoint lets nothing go at replicas.
    S6Prune,
    /// Section 6: whoever fetches a snapshot takes any manifest for the one that was claimed.
    S6Manifest,
    /// Section 6: ... and any bytes for the part that the manifest names.
    S6Part,
    /// Section 6: a host reclaims whatever its guest may see.
    S6Reclaim,
    /// Section 6: a host that starts again forgets the last CHANGE that was reclaimed.
    S6Changed,
    /// Section 6: a host that jumps is not told of the CHANGEs that it jumps over.
    S6JumpChanges,
}

#[cfg(not(feature = "canaries"))]
/// Whether `canary` is the rule that is broken now: never, in this build.
pub const fn broken(_: Canary) -> bool {
    false
}

#[cfg(feature = "canaries")]
pub use armed::{broken, with};

#[cfg(feature = "canaries")]
mod armed {
    use std::cell::Cell;

    use super::Canary;

    std::thread_local! {
        static BROKEN: Cell<Option<Canary>> = const { Cell::new(None) };
    }

    /// Whether `canary` is the rule that is broken now, in this thread.
    pub fn broken(canary: Canary) -> bool {
        BROKEN.get() == Some(canary)
    }

    /// Does `body` with that rule broken in this thread, or with none.
    pub fn with<T>(canary: impl Into<Option<Canary>>, body: impl FnOnce() -> T) -> T {
        struct Restore(Option<Canary>);
        impl Drop for Restore {
            fn drop(&mut self) {
                BROKEN.set(self.0);
            }
        }
        let _restore = Restore(BROKEN.replace(canary.into()));
        body()
    }
}

#[cfg(all(test, feature = "canaries"))]
mod tests {
    use super::*;

    #[test]
    fn one_rule_is_broken_and_mended_again_even_by_a_panic() {
        let is_broken = || Canary::ALL.iter().filter(|c| broken(**c)).count();
        assert_eq!(is_broken(), 0);
        let panicked = std::panic::catch_unwind(|| {
            with(Canary::C1Quorum, || {
                assert!(broken(Canary::C1Quorum) && is_broken() == 1);
                panic!("as code with a broken rule may");
            })
        });
        assert!(panicked.is_err() && is_broken() == 0);
    }
}
