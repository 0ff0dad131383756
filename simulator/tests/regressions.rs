//! Seeds that once failed. Each says what was wrong then; a seed that fails again is a defect that
//! came back. (When what a seed draws changes, these become seeds like any others.)

use simulator::{Options, run};

fn passes(seed: u64, options: &Options) {
    let report = run(seed, options);
    assert!(report.failures.is_empty(), "seed {seed}: {}", report.failures.join("\n"));
}

/// The simulator told a host of an old link's end after it had told of the new link.
#[test]
fn the_end_of_an_old_link_is_no_news() {
    [1462, 3332, 4146, 4984].into_iter().for_each(|seed| passes(seed, &Options::default()));
}
