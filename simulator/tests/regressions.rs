//! Seeds that are red with a defect put back. Each says what was wrong; a seed that fails again is
//! a defect that came back. When what a seed draws changes, it becomes a seed like any other: so
//! the smallest story of each defect stands with the crate that had it. To find new seeds then, put
//! the defect back in a copy and run `--f 1 --seeds 20000`.

use simulator::plan::Wishes;
use simulator::{Options, run};

fn passes(seed: u64, options: &Options) {
    let report = run(seed, options);
    let again = options.command(seed);
    assert!(report.failures.is_empty(), "{}\nagain: {again}", report.failures.join("\n"));
}

/// R1: a host that started again forgot the CHANGEs in its file until something new came. With the
/// sequencer's host down nothing did, and its guest could not leave the term. `bounds`
/// sees any host that starts again with a CHANGE in its file and forgets it, so these four should
/// outlive a change of what is drawn. The story that sees it for certain is `a_host_that_restarts_knows_the_changes_before_anything_new_comes` in
/// `host-agent/tests/stories/admission.rs`.
#[test]
fn a_host_that_starts_again_lets_its_guest_leave_the_term() {
    let wishes = Wishes { f: Some(1), large_rings: true, ..Wishes::default() };
    let options = Options { wishes, ..Options::default() };
    [2828, 6778, 8444, 9865].into_iter().for_each(|seed| passes(seed, &options));
}

/// Section 3: a client whose clock went back twice took the session after the newest both times,
/// and so meant two messages by one name: it took the answer to the first for that to the second.
/// These seeds are three of 3,000. The story that sees it for certain is
/// `a_client_whose_clock_went_back_takes_the_next_session` in
/// `protocol/src/client_session/tests.rs`, and the canary `P1Leap` puts the defect back.
#[test]
fn a_client_whose_clock_went_back_twice_gets_its_own_answers() {
    let wishes = Wishes { f: Some(1), large_rings: true, ..Wishes::default() };
    let options = Options { wishes, ..Options::default() };
    [1411, 1914, 2493].into_iter().for_each(|seed| passes(seed, &options));
}

/// Section 6: a guest that came back looked for claims in one stream after the other. The later
/// claims of a broken-in guest pushed out its earlier one before the equal claim of another came, so
/// nobody found what was stable; when all guests died at once, none came back. The story that sees it
/// for certain is `a_writers_later_claims_do_not_hide_what_is_stable` in `protocol/src/catch_up.rs`.
#[test]
fn guests_that_all_come_back_find_what_is_stable() {
    passes(583, &Options::default());
    // Claims of two broken-in guests that fall and rise, between those that are right.
    passes(2_111_330_402, &Options::default());
}
