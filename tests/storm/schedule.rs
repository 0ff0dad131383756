//! What a seed draws: which processes are killed or stopped, when, and for how long. The draw knows
//! nothing of the run, so a seed's schedule is always the same, whatever the machine makes of it.

use std::time::Duration;

use rand::{Rng, RngExt};

/// What is done to its victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    KillGuest,
    KillHost,
    KillBoth,
    StopGuest,
    StopHost,
    StopBoth,
    KillClient,
    StopClient,
    /// All guests and hosts.
    KillAll,
}

/// One fault, and its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    /// How long after the one before it.
    pub(crate) wait: Duration,
    pub(crate) deed: Deed,
    /// A server: so many after the sequencer. A client: its number. Both modulo how many there are.
    pub(crate) victim: u16,
    /// How long its victim stays down or stopped.
    pub(crate) lasts: Duration,
    /// Of two processes of one server, the guest comes back so much later than its host, or as much
    /// earlier.
    pub(crate) apart: Duration,
    pub(crate) guest_first: bool,
}

/// So that a number says nothing of a client that it does of a server.
const VICTIMS_PER_SERVER: u16 = 60;

fn deed(rng: &mut impl Rng) -> Deed {
    match rng.random_range(0..100) {
        0..20 => Deed::KillGuest,
        20..38 => Deed::KillHost,
        38..50 => Deed::KillBoth,
        50..62 => Deed::StopGuest,
        62..74 => Deed::StopHost,
        74..82 => Deed::StopBoth,
        82..91 => Deed::KillClient,
        91..98 => Deed::StopClient,
        _ => Deed::KillAll,
    }
}

fn act(rng: &mut impl Rng, n: u16) -> Act {
    let ms = Duration::from_millis;
    let deed = deed(rng);
    // The sequencer more often than another.
    let victim = match rng.random_bool(0.3) {
        true => 0,
        false => rng.random_range(0..n * VICTIMS_PER_SERVER),
    };
    let lasts = match rng.random_range(0..10) {
        0..3 => ms(rng.random_range(1..50)),
        3..9 => ms(rng.random_range(50..900)),
        // Past a link's patience (3 s) now and then.
        _ => ms(rng.random_range(900..5000)),
    };
    let wait = match rng.random_bool(0.2) {
        true => ms(rng.random_range(0..10)),
        false => ms(rng.random_range(10..700)),
    };
    let (apart, guest_first) = (ms(rng.random_range(0..300)), rng.random_bool(0.5));
    Act { wait, deed, victim, lasts, apart, guest_first }
}

/// Faults for so long, or longer where one has to wait for the end of another.
pub(crate) fn draw(rng: &mut impl Rng, n: u16, time: Duration) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut sum = Duration::ZERO;
    while sum < time {
        let act = act(rng, n);
        sum += act.wait;
        acts.push(act);
    }
    acts
}

/// The end of everything.
pub(crate) fn everything(rng: &mut impl Rng, n: u16) -> Act {
    Act { deed: Deed::KillAll, ..act(rng, n) }
}

#[test]
fn a_seed_always_draws_the_same_and_all_deeds_come() {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    let draw = |seed| draw(&mut ChaCha8Rng::seed_from_u64(seed), 3, Duration::from_secs(600));
    assert_eq!(format!("{:?}", draw(1)), format!("{:?}", draw(1)));
    assert_ne!(format!("{:?}", draw(1)), format!("{:?}", draw(2)));
    let deeds: std::collections::BTreeSet<Deed> = draw(1).iter().map(|act| act.deed).collect();
    assert_eq!(deeds.len(), 9, "{deeds:?}");
}
