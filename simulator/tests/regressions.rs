//! Seeds that once failed. Each says what was wrong then; a seed that fails again is a defect that
//! came back. (When what a seed draws changes, it becomes a seed like any other; so the smallest
//! story of each defect stands with the crate that had it.)

use simulator::{Options, run};

fn passes(seed: u64) {
    let options = Options::default();
    let report = run(seed, &options);
    let again = options.command(seed);
    assert!(report.failures.is_empty(), "{}\nagain: {again}", report.failures.join("\n"));
}

/// R1: a host that started again forgot the CHANGEs in its file until something new came. With the
/// sequencer's host down nothing did, and its guest could not leave the term. See
/// `a_host_that_restarts_knows_the_changes_before_anything_new_comes` of the host agent.
#[test]
fn a_host_that_starts_again_lets_its_guest_leave_the_term() {
    passes(1394);
}
