//! The command line: bad input is one sentence and exit code 2.

use std::process::{Command, Output};

fn simulator(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulator")).args(args).output().expect("it can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn bad_input_is_one_sentence() {
    let bad: [&[&str]; 8] = [
        &["--f", "4"],
        &["--seeds", "many"],
        &["--seeds", "0"],
        &["--seed", "18446744073709551616"],
        &["--seed", "1", "--seeds", "2"],
        &["--verbose"],
        &["--first-seed", "18446744073709551615", "--seeds", "2"],
        &["--no-such-flag"],
    ];
    for args in bad {
        let output = simulator(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    }
}

#[test]
fn a_summary_tells_what_was_run() {
    let output = simulator(&["--seeds", "2", "--first-seed", "100"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    for part in ["2 seeds, 0 failed", "simulated hours", "worst time to recover", "run twice"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
}

/// What a few events of some seeds come to.
fn ran(args: &[&str]) -> String {
    let output = simulator(args);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{args:?}: {said}{}", text(&output.stderr));
    said
}

#[test]
fn the_last_seeds_there_are_can_be_run() {
    let last = u64::MAX.to_string();
    let short = ["--calm", "--steps", "300"];
    let said = ran(&[&["--seed", &last][..], &short].concat());
    assert!(said.contains("1 seeds, 0 failed") && said.contains(&last), "{said}");
    let first = (u64::MAX - 1).to_string();
    let said = ran(&[&["--first-seed", &first, "--seeds", "2"][..], &short].concat());
    assert!(said.contains("2 seeds, 0 failed"), "{said}");
}

#[test]
fn the_faults_last_for_as_many_events_as_was_said() {
    let events = |steps: &str| {
        let said = ran(&["--seed", "3", "--f", "1", "--steps", steps]);
        let parts: Vec<_> = said.split_whitespace().collect();
        let at = parts.iter().position(|part| *part == "events,").expect("it tells of them");
        parts[at - 1].parse::<u64>().expect("a number")
    };
    // The calm after the faults has events of its own, so there are more than was said.
    let (few, many) = (events("200"), events("2000"));
    assert!((200..2000).contains(&few) && many >= 2000, "{few} and {many}");
}

#[test]
fn f_is_as_large_as_was_said() {
    for f in ["1", "2", "3"] {
        let said = ran(&["--seed", "9", "--f", f, "--steps", "100", "--calm", "--verbose"]);
        assert!(said.lines().any(|line| line.trim() == format!("f: {f},")), "--f {f}: {said}");
    }
}

#[test]
fn verbose_tells_the_plan_and_every_event_once() {
    // A hundredth seed is run twice, to compare; the second time it says nothing.
    let args = ["--seed", "100", "--f", "1", "--steps", "300", "--calm"];
    let (quiet, said) = (ran(&args), ran(&[&args[..], &["--verbose"]].concat()));
    assert!(said.contains("run twice and compared: 1 seeds"), "{said}");
    // Parts of the plan have longer names that end like its own.
    let tells = |line: &str, what| line.starts_with(what) || line.contains(&format!(" {what}"));
    let told = |said: &str, what| said.lines().filter(|line| tells(line, what)).count();
    for (what, times) in [("Plan {", 1), ("HostStarted {", 3), ("Healed {", 1), ("Over {", 1)] {
        assert_eq!((told(&quiet, what), told(&said, what)), (0, times), "{what}");
    }
}
