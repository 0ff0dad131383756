//! What a guest that was broken into does, as data: what, and when.
//!
//! A broken-in guest runs a correct replica underneath and deviates where its strategies say, so
//! that it stays in the middle of things while it does harm. One deed alone rarely hurts anybody;
//! the recipes of [`draw`] and [`break_in`] put together what belongs together, such as a sequencer
//! that proposes at the last moment and one that takes its vote back.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::{ClientId, Micros, OrderNumber, ServerId};

/// When a strategy is at work. Asked anew at every occasion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Never: it is there to be switched on.
    Never,
    /// Always.
    Always,
    /// With so many thousandths.
    Chance(u32),
    /// From this delivery on.
    FromOrder(OrderNumber),
    /// From the first moment to the second, by the guest's clock, counted from its start.
    Between(Micros, Micros),
}

/// How an order is forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// Its MAC is noise.
    WrongMac,
    /// It is another client's, with the MAC of a real order.
    OtherClient,
    /// Its payload is altered.
    Altered,
    /// All of it is right but its digest.
    Misnamed,
    /// It is a lying client's, which gave its keys away: nobody else has heard of it.
    Accomplice,
}

/// What an opening cites instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Citing {
    /// Right ones, chosen so that the base is as low as it can be.
    CherryPicked,
    /// One too few.
    Few,
    /// One writer's CHANGE as often as needed.
    OneWriter,
    /// One that was not seen yet, at the position where it will probably be.
    Unseen,
    /// Those of an earlier term.
    OtherTerm,
    /// Those of a later term: it opens its term only when others have left it already.
    Jumped,
    /// Whatever positions.
    Random,
}

/// How a client is lied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Replies with other bytes, and their digest.
    Reply,
    /// Replies and deliveries with a wrong digest.
    Digest,
    /// Replies from a wild term.
    Term,
    /// Replies to orders that were not delivered.
    TooSoon,
    /// Deliveries that never were.
    Delivery,
    /// REFUSED for every order.
    Refused,
    /// STALE for every order.
    Stale,
    /// TOO_OLD for every subscription.
    TooOld,
}

/// How the write file is abused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// The head moves before the frame's bytes are there.
    Torn,
    /// A frame whose length lies.
    Length,
    /// A frame is overwritten after it was published: before the host looks, between its first and
    /// its second look, if it takes one, or after it was consumed.
    Rewrite,
    /// Frames for positions that were filled, or that are far away.
    Number,
    /// Many more frames than there is anything to say.
    Flood,
    /// Random words everywhere, the header included.
    Noise,
}

/// What is wrong with a claim of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimLie {
    /// The digest; those of a collusion claim the same one.
    Digest,
    /// Its cut is too early.
    Early,
    /// Its cut is that of a later record.
    Later,
    /// Its cut is far beyond what its record has seen.
    Unseen,
    /// It is what another of the collusion claims, whether its own host has come so far or not.
    Told,
    /// There are many, which rise, of whatever batches.
    Many,
}

/// How somebody is lied to who asks for a piece of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceLie {
    /// A bit is another.
    Altered,
    /// All bytes are others.
    Noise,
    /// It ends too soon.
    Truncated,
    /// It never ends.
    Endless,
    /// Something comes, and then nothing.
    Silent,
    /// It is said to be gone.
    Gone,
}

/// What a broken-in guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Writes and sends nothing.
    Silent,
    /// Writes everything just under the time-out late.
    Slow,
    /// Two correct replicas behind one register, each with the orders of half of the clients.
    Twin,
    /// Votes in terms that are over, or have not begun.
    VoteOtherTerm,
    /// Goes on voting in a term after its own CHANGE.
    VoteAfterChange,
    /// Votes for batches that it cannot have seen.
    VoteUnseen,
    /// Votes for a chain that does not exist.
    VoteWrongChain,
    /// Takes a vote back by voting for less.
    VoteFalling,
    /// Proposes forged orders among real ones.
    Forge(Forgery),
    /// Proposes an order twice in one batch.
    Repeat,
    /// Proposes what was delivered long ago.
    Replay,
    /// Proposes a batch's orders backwards.
    Reorder,
    /// Leaves out a batch number.
    SkipBatch,
    /// Proposes a batch number again, with other orders, once somebody has voted for it.
    RepeatBatch,
    /// Proposes far more batches than V2's window lets it.
    Overrun,
    /// Opens its term a second time.
    Reopen,
    /// Proposes in a term that it has left, or that all others have left.
    ProposeLate,
    /// Proposes nothing until the first others lose patience, and then something at once.
    Hesitate,
    /// Says what it will propose to the others of its collusion before it does.
    Announce,
    /// Proposes no order of this client.
    Starve(ClientId),
    /// CHANGEs as soon as a term begins.
    ChangeEarly,
    /// CHANGEs of terms far ahead.
    ChangeJump,
    /// Never a CHANGE.
    ChangeNever,
    /// Votes, and once its vote has committed something and another has left the term, leaves too.
    Turncoat,
    /// Opens its terms at the first moment, citing this.
    Cite(Citing),
    /// Lies to clients.
    Lie(Lie),
    /// Abuses the write file.
    Abuse(Abuse),
    /// Claims checkpoints that are none.
    Claim(ClaimLie),
    /// Gives out what is no snapshot.
    Source(SourceLie),
}

/// One thing that a broken-in guest does, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// What.
    pub deed: Deed,
    /// When.
    pub when: When,
}

/// Everything that a guest can do.
pub fn all() -> Vec<Deed> {
    let mut all = vec![
        Deed::Silent,
        Deed::Slow,
        Deed::Twin,
        Deed::VoteOtherTerm,
        Deed::VoteAfterChange,
        Deed::VoteUnseen,
        Deed::VoteWrongChain,
        Deed::VoteFalling,
        Deed::Repeat,
        Deed::Replay,
        Deed::Reorder,
        Deed::SkipBatch,
        Deed::RepeatBatch,
        Deed::Overrun,
        Deed::Reopen,
        Deed::ProposeLate,
        Deed::Hesitate,
        Deed::Announce,
        Deed::Starve(ClientId(0)),
        Deed::ChangeEarly,
        Deed::ChangeJump,
        Deed::ChangeNever,
        Deed::Turncoat,
    ];
    all.extend(FORGERIES.map(Deed::Forge));
    all.extend(CITINGS.map(Deed::Cite));
    all.extend(LIES.map(Deed::Lie));
    all.extend(ABUSES.map(Deed::Abuse));
    all
}

const FORGERIES: [Forgery; 5] = [
    Forgery::WrongMac,
    Forgery::OtherClient,
    Forgery::Altered,
    Forgery::Misnamed,
    Forgery::Accomplice,
];
const CITINGS: [Citing; 7] = [
    Citing::CherryPicked,
    Citing::Few,
    Citing::OneWriter,
    Citing::Unseen,
    Citing::OtherTerm,
    Citing::Jumped,
    Citing::Random,
];
const LIES: [Lie; 8] = [
    Lie::Reply,
    Lie::Digest,
    Lie::Term,
    Lie::TooSoon,
    Lie::Delivery,
    Lie::Refused,
    Lie::Stale,
    Lie::TooOld,
];
const ABUSES: [Abuse; 6] =
    [Abuse::Torn, Abuse::Length, Abuse::Rewrite, Abuse::Number, Abuse::Flood, Abuse::Noise];

/// See [`ClaimLie`].
pub const CLAIM_LIES: [ClaimLie; 6] = [
    ClaimLie::Digest,
    ClaimLie::Early,
    ClaimLie::Later,
    ClaimLie::Unseen,
    ClaimLie::Told,
    ClaimLie::Many,
];
/// See [`SourceLie`].
pub const SOURCE_LIES: [SourceLie; 6] = [
    SourceLie::Altered,
    SourceLie::Noise,
    SourceLie::Truncated,
    SourceLie::Endless,
    SourceLie::Silent,
    SourceLie::Gone,
];

/// Has those that were broken into lie about checkpoints and snapshots too, besides what else they
/// do. Of a generator of its own: see [`Plan::draw`](crate::plan::Plan::draw).
pub fn deceive(rng: &mut ChaCha8Rng, guests: &mut [Option<Vec<Strategy>>]) {
    let several = guests.iter().flatten().count() > 1;
    let together = match several && rng.random_bool(0.5) {
        true => ClaimLie::Told,
        false => pick(rng, &CLAIM_LIES),
    };
    let agree = rng.random_bool(0.5);
    for strategies in guests.iter_mut().flatten() {
        if rng.random_bool(0.6) {
            let claim = if agree { together } else { pick(rng, &CLAIM_LIES) };
            strategies.extend(always([Deed::Claim(claim)]));
        }
        if rng.random_bool(0.8) {
            // What is almost right has most to get past.
            let altered = rng.random_bool(0.4);
            let lie = if altered { SourceLie::Altered } else { pick(rng, &SOURCE_LIES) };
            strategies.extend(always([Deed::Source(lie)]));
        }
    }
}

fn always(deeds: impl IntoIterator<Item = Deed>) -> Vec<Strategy> {
    deeds.into_iter().map(|deed| Strategy { deed, when: When::Always }).collect()
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn draw_when(rng: &mut ChaCha8Rng) -> When {
    match rng.random_range(0..10) {
        0..=3 => When::Always,
        4..=6 => When::Chance(rng.random_range(1..=500)),
        7 => When::FromOrder(OrderNumber(rng.random_range(1..=60))),
        8 => {
            let from = rng.random_range(0..8_000_000);
            When::Between(Micros(from), Micros(from + rng.random_range(0..4_000_000)))
        }
        _ => When::Never,
    }
}

/// Anything with anything.
fn mixture(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    let all = all();
    let deeds = rng.random_range(1..=5);
    (0..deeds).map(|_| Strategy { deed: pick(rng, &all), when: draw_when(rng) }).collect()
}

/// One who makes a term end badly: gets something committed with its vote while another has left
/// the term already, and then takes the vote away as far as the rules let it.
fn traitor(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    let mut deeds = vec![Deed::Turncoat];
    if rng.random_bool(0.5) {
        deeds.extend([Deed::Hesitate, Deed::Reorder]);
    }
    let ways = [
        Deed::VoteFalling,
        Deed::VoteOtherTerm,
        Deed::VoteAfterChange,
        Deed::ProposeLate,
        Deed::ChangeJump,
        Deed::Reorder,
    ];
    deeds.push(pick(rng, &ways));
    deeds.push(Deed::Cite(pick(rng, &CITINGS)));
    always(deeds)
}

/// One who does a sequencer's work badly, and has its terms come round.
fn sequencer(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    let ways = [
        Deed::Forge(pick(rng, &FORGERIES)),
        Deed::Repeat,
        Deed::Replay,
        Deed::Reorder,
        Deed::SkipBatch,
        Deed::RepeatBatch,
        Deed::Overrun,
        Deed::Reopen,
        Deed::ProposeLate,
        Deed::Starve(ClientId(rng.random_range(0..3))),
    ];
    let mut strategies = always([pick(rng, &ways), pick(rng, &ways)]);
    if rng.random_bool(0.5) {
        let chance = When::Chance(rng.random_range(20..=500));
        strategies.iter_mut().for_each(|strategy| strategy.when = chance);
    }
    if rng.random_bool(0.3) {
        strategies.extend(always([Deed::ChangeEarly, Deed::ProposeLate]));
    }
    strategies
}

/// One who leaves every term at once and goes on as if it had not.
fn ghost(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    let mut deeds = vec![Deed::ChangeEarly, Deed::VoteAfterChange, Deed::ProposeLate];
    deeds.push(Deed::Cite(pick(rng, &CITINGS)));
    always(deeds)
}

/// One who opens its terms as suits it, and perhaps twice.
fn opener(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    let mut deeds = vec![Deed::Cite(pick(rng, &CITINGS))];
    if rng.random_bool(0.5) {
        deeds.push(Deed::Turncoat);
    }
    if rng.random_bool(0.3) {
        deeds.push(Deed::Reopen);
    }
    always(deeds)
}

/// Draws what a broken-in guest does on its own.
pub fn draw(rng: &mut ChaCha8Rng) -> Vec<Strategy> {
    match rng.random_range(0..14) {
        0..=1 => mixture(rng),
        2..=3 => always([pick(rng, &all())]),
        4..=5 => traitor(rng),
        6..=8 => sequencer(rng),
        9 => ghost(rng),
        10..=12 => opener(rng),
        _ => always([pick(rng, &[Deed::Silent, Deed::Slow, Deed::Twin])]),
    }
}

/// Draws what `count` guests do together. They share a [`Script`](super::script::Script).
fn collusion(rng: &mut ChaCha8Rng, count: usize) -> Vec<Vec<Strategy>> {
    match rng.random_range(0..4) {
        // Votes for what only the collusion knows will be proposed.
        0 => {
            let first = always([Deed::Announce, Deed::Turncoat]);
            let other = always([Deed::VoteUnseen, Deed::Turncoat]);
            (0..count).map(|i| if i == 0 { first.clone() } else { other.clone() }).collect()
        }
        // The old sequencer proposes at the last moment, the next one cites what suits it.
        1 => {
            let citing = pick(rng, &CITINGS);
            let first = always([Deed::Hesitate, Deed::Reorder, Deed::Turncoat]);
            let other = always([Deed::Turncoat, Deed::Cite(citing)]);
            (0..count).map(|i| if i == 0 { first.clone() } else { other.clone() }).collect()
        }
        2 => {
            let all = traitor(rng);
            (0..count).map(|_| all.clone()).collect()
        }
        _ => {
            let all = always([Deed::Lie(pick(rng, &LIES)), Deed::Lie(pick(rng, &LIES))]);
            (0..count).map(|_| all.clone()).collect()
        }
    }
}

/// Draws which guests of a cluster are broken into, at most `f`, and what each does.
pub fn break_in(rng: &mut ChaCha8Rng, f: usize) -> Vec<Option<Vec<Strategy>>> {
    let n = 2 * f + 1;
    let mut guests = vec![None; n];
    let count = rng.random_range(0..=f);
    // Terms pass from one server to the next: neighbours have most to say to each other, and who
    // comes early has his turn in every run.
    let first = if rng.random_bool(0.5) { rng.random_range(0..2) } else { rng.random_range(0..n) };
    let neighbours = rng.random_bool(0.5);
    let mut members: Vec<usize> = Vec::new();
    while members.len() < count {
        let near = neighbours || members.is_empty();
        let next = if near { (first + members.len()) % n } else { rng.random_range(0..n) };
        if !members.contains(&next) {
            members.push(next);
        }
    }
    let together = count >= 2 && rng.random_bool(0.6);
    let drawn = match together {
        true => collusion(rng, count),
        false => (0..count).map(|_| draw(rng)).collect(),
    };
    for (member, strategies) in members.into_iter().zip(drawn) {
        guests[member] = Some(strategies);
    }
    guests
}

/// Of a cluster of `n`, `who` alone is broken into and always does these deeds; for tests.
pub fn only(n: usize, who: ServerId, deeds: &[Deed]) -> Vec<Option<Vec<Strategy>>> {
    let mut guests = vec![None; n];
    guests[who.index()] = Some(always(deeds.iter().copied()));
    guests
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_deed_is_drawn_sooner_or_later_and_never_by_more_than_f() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut missing = all();
        missing.extend(CLAIM_LIES.map(Deed::Claim));
        missing.extend(SOURCE_LIES.map(Deed::Source));
        for round in 0..3000 {
            let f = 1 + round % 3;
            let mut guests = break_in(&mut rng, f);
            deceive(&mut rng, &mut guests);
            assert_eq!(guests.len(), 2 * f + 1);
            assert!(guests.iter().flatten().count() <= f);
            for strategy in guests.into_iter().flatten().flatten() {
                missing.retain(|deed| *deed != strategy.deed);
            }
        }
        assert_eq!(missing, []);
    }
}
