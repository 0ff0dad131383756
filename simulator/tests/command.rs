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
    let bad: [&[&str]; 6] = [
        &["--f", "4"],
        &["--seeds", "many"],
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
