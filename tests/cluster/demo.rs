//! `difato demo`, with few requests.

use std::fs;

use crate::support::command::{difato, runs};
use crate::support::permit::Permit;

#[test]
fn the_demo_shows_it_all_and_leaves_nothing_behind() {
    let _permit = Permit::wait();
    let temp = tempfile::tempdir().unwrap();
    let shapes = "0/0,16/64";
    let said = difato(["demo", "--requests", "100", "--payloads", shapes])
        .env("TMPDIR", temp.path())
        .run();
    assert_eq!(said.code, Some(0), "{said}");
    let shown = [
        "p50 us",
        "\n0/0 ",
        "\n16/64 ",
        "In term 0 server 0 puts the messages in order",
        "Killed its guest (pid ",
        "Service paused for ",
        "In term 1 server 1 goes on",
        "Two listeners heard the same messages",
        "everything is stopped and removed",
    ];
    for words in shown {
        assert!(said.stdout.contains(words), "no `{words}`: {said}");
    }
    let pid_of = |line: &&str| {
        let (_, rest) = line.split_once("  pid ")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let lines = said.lines();
    let pids: Vec<i32> = lines.iter().filter_map(pid_of).collect();
    assert_eq!(pids.len(), 6, "{said}");
    assert!(pids.iter().all(|pid| !runs(*pid)), "{said}");
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
