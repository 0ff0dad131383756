//! A few dozen seeds, and that a seed is a run.

use simulator::plan::Wishes;
use simulator::{Options, Report, Section6, run};

/// Runs a seed; whatever a checker objects to is told with the command that shows it again.
fn checked(seed: u64, options: &Options) -> Report {
    let report = run(seed, options);
    let again = options.command(seed);
    assert!(report.failures.is_empty(), "{}\nagain: {again}", report.failures.join("\n"));
    report
}

#[test]
fn seeds_pass_and_something_happened_in_them() {
    let reports: Vec<_> = (1..=40).map(|seed| checked(seed, &Options::default())).collect();
    for report in &reports {
        assert!(report.delivered > 0, "seed {} delivered nothing", report.seed);
        assert!(report.recovered.is_some(), "seed {} says not when it was done", report.seed);
    }
    assert!(reports.iter().any(|report| report.sequencer_changes > 0));
    assert!(reports.iter().any(|report| !report.faults.is_empty()));
    let all = reports.iter().fold(Section6::default(), |all, report| all.plus(report.section6));
    assert!(all.stable > 100 && all.reclaimed > 500 && all.restored > 0, "{all:?}");
    assert!(all.behind >= all.restored, "{all:?}");
}

#[test]
fn clusters_of_every_size_pass() {
    for f in 1..=3 {
        let wishes = Wishes { f: Some(f), ..Wishes::default() };
        let options = Options { wishes, ..Options::default() };
        (1000..1004).for_each(|seed| drop(checked(seed, &options)));
    }
}

#[test]
fn without_faults_nobody_is_suspected() {
    let wishes = Wishes { calm: true, ..Wishes::default() };
    let options = Options { wishes, ..Options::default() };
    for seed in 1..=5 {
        let report = checked(seed, &options);
        assert!(report.faults.is_empty() && report.sequencer_changes == 0, "seed {seed}");
    }
}

#[test]
fn a_seed_is_a_run_bit_for_bit() {
    for seed in 50..55 {
        let (one, two) = (checked(seed, &Options::default()), checked(seed, &Options::default()));
        assert_eq!((one.hash, one.steps, one.time), (two.hash, two.steps, two.time));
    }
    assert_ne!(checked(50, &Options::default()).hash, checked(51, &Options::default()).hash);
}
