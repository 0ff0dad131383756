//! `difato bench`: what it measures adds up, and its own clusters leave nothing behind.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::command::{Said, children_of, difato, runs};
use crate::support::permit::Permit;
use crate::support::{Builder, path, until};

fn rows(file: &Path) -> Vec<Value> {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Whether a row has the promised keys, and numbers that can be.
fn check(row: &Value) {
    let mut keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let promised = "clients cpu_s_per_million max_us mean_us outstanding p50_us p99_us payload \
                    payload_mb_per_s requests requests_per_s scenario";
    assert_eq!(keys, promised.split_whitespace().collect::<Vec<_>>());
    let number = |key: &str| row[key].as_f64().unwrap();
    let (p50, p99, max) = (number("p50_us"), number("p99_us"), number("max_us"));
    assert!(5.0 < p50 && p50 <= p99 && p99 <= max && max < 15e6, "{row}");
    assert!(number("mean_us") <= max, "{row}");
    // Little's law: what is under way is at most what may be, and less where the load is short.
    let under_way = number("requests_per_s") * number("mean_us") / 1e6;
    let most = number("clients") * number("outstanding");
    assert!(under_way < 1.1 * most, "{under_way} under way: {row}");
    // One straggler that waits until it is sent again is most of the time of few requests.
    let many = number("requests") >= 10.0 * most;
    assert!(!many || under_way > 0.01 * most, "{under_way} under way: {row}");
    let request: f64 = row["payload"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    let wanted = request * number("requests_per_s") / 1e6;
    assert!((number("payload_mb_per_s") - wanted).abs() < 0.2, "{row}");
}

#[test]
fn a_running_cluster_is_measured() {
    let cluster = Builder::new().start();
    let file = cluster.folder.beside().join("bench.json");
    let args = ["--client", "1", "--requests", "200", "--warmup", "20", "--outstanding", "8"];
    let shapes = ["0/0", "0/4096", "4096/4096"];
    let shapes_flag = shapes.join(",");
    let more = ["--clients", "3", "--payloads", &shapes_flag, "--json", path(&file)];
    let table = cluster.folder.command("bench", &[&args[..], &more[..]].concat()).done();
    assert!(shapes.iter().all(|shape| table.contains(shape)), "{table}");

    let rows = rows(&file);
    assert_eq!(rows.len(), 3);
    for (row, shape) in rows.iter().zip(shapes) {
        check(row);
        assert_eq!((&row["payload"], &row["scenario"]), (&shape.into(), &"cluster".into()));
        assert_eq!((&row["requests"], &row["outstanding"]), (&200.into(), &8.into()));
        assert_eq!(row["clients"], 3);
        let cpu = &row["cpu_s_per_million"];
        assert!(cpu["guests"].is_null() && cpu["host_agents"].is_null(), "{row}");
        assert!(cpu["load"].is_number(), "{row}");
    }
    // All of it was ordered, the warm-ups too.
    for id in cluster.ids() {
        cluster.await_delivered(id, 3 * 220);
    }
}

#[test]
fn a_cluster_of_its_own_is_measured_and_removed() {
    let _permit = Permit::wait();
    let temp = tempfile::tempdir().unwrap();
    let (tmp, file) = (temp.path().join("tmp"), temp.path().join("bench.json"));
    fs::create_dir(&tmp).unwrap();
    let args = ["bench", "--requests", "2000", "--warmup", "20", "--payloads", "1000/64"];
    let more = ["--f", "2", "--durability", "disk", "--clients", "2", "--outstanding", "16"];
    let said = difato(args).args(more).args(["--json", path(&file)]).env("TMPDIR", &tmp).measure();
    let table = said.done();
    for words in ["payload", "1000/64", "guests", "hosts", "load", "MB/s"] {
        assert!(table.contains(words), "no `{words}`: {table}");
    }
    let rows = rows(&file);
    assert_eq!(rows.len(), 1);
    check(&rows[0]);
    for role in ["guests", "host_agents", "load"] {
        let seconds = rows[0]["cpu_s_per_million"][role].as_f64().unwrap();
        // Five of each, at most: 2,000 requests take a hundredth of a second at least.
        assert!((5.0..1e6).contains(&seconds), "{role}: {}", rows[0]);
    }
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_targets_are_all_measured_and_judged() {
    let _permit = Permit::wait_for_all();
    let temp = tempfile::tempdir().unwrap();
    let (tmp, file) = (temp.path().join("tmp"), temp.path().join("targets.json"));
    fs::create_dir(&tmp).unwrap();
    let args = ["bench", "--targets", "--requests", "20", "--json", path(&file)];
    let said = difato(args).env("TMPDIR", &tmp).measure().done();
    let judged = |line: &&str| ["reached", "missed", " -"].iter().any(|word| line.ends_with(word));
    let from = said.lines().skip_while(|line| !line.starts_with("target "));
    assert_eq!(from.filter(judged).count(), 6 + 5 + 2 * 3 + 3, "{said}");
    let promised = ["0/0 p50 by the floor's", "at most 1.5 x", "4096/4096 p50 by 0/0's"];
    let more = ["0/0, 16 x 4 outstanding", "at least 80000 /s", "at least 250 MB/s"];
    let most = ["0/0 p50 by all alive's: f dead ", "at most 1.1 x", "0/0 p50 on disk by process"];
    let last =
        ["by all alive's: f dead, the sequencer among them", "Sequencer changes while it was"];
    for words in promised.iter().chain(&more).chain(&most).chain(&last) {
        assert!(said.contains(words), "no `{words}`: {said}");
    }
    let rows = rows(&file);
    let count = |scenario: &str| rows.iter().filter(|row| row["scenario"] == scenario).count();
    let dead = ["f dead", "f dead, the sequencer among them"];
    assert_eq!(["floor", "cluster", "disk", "process"].map(count), [3, 3 + 5, 3, 3]);
    assert_eq!(dead.map(count), [3, 3]);
    rows.iter().for_each(check);
    // All that was asked for was measured, and the CPU time of all but the floor.
    let one_by_one = |row: &&Value| row["outstanding"] == 1 && row["scenario"] == "cluster";
    assert!(rows.iter().filter(one_by_one).all(|row| row["requests"] == 20), "{rows:?}");
    for row in &rows {
        assert_eq!(row["cpu_s_per_million"].is_null(), row["scenario"] == "floor", "{row}");
    }
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ctrl_c_stops_and_removes_a_cluster_of_its_own() {
    let load = ["--requests", "100000000", "--payloads", "0/0"];
    interrupted(&load, 6);
}

#[test]
fn ctrl_c_stops_and_removes_the_ring_of_the_floor_too() {
    // Ten thousand rounds of eight megabytes: not done before the signal comes.
    let floor = ["--floor", "--payloads", "1000000/1000000"];
    interrupted(&floor, 6 + 8);
}

/// Interrupts a benchmark once it has so many processes.
fn interrupted(args: &[&str], processes: usize) {
    let _permit = Permit::wait();
    let temp = tempfile::tempdir().unwrap();
    let args = [&["bench"], args].concat();
    let running = difato(args).env("TMPDIR", temp.path()).spawn();
    let is_up = || children_of(running.pid()).len() == processes;
    until(&format!("{processes} processes run"), is_up);
    let children: Vec<i32> = children_of(running.pid()).iter().map(|(pid, _)| *pid).collect();
    kill(Pid::from_raw(running.pid()), Signal::SIGINT).unwrap();
    let said = running.wait();
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.stderr.contains("interrupted"), "{said}");
    until("all processes are gone", || children.iter().all(|pid| !runs(*pid)));
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_does_not_fit_together_is_named() {
    let folder = Builder::new().init();
    let dir = path(&folder.dir);
    let nowhere = folder.beside().join("nowhere/bench.json");
    let cases: [(&[&str], &[&str]); 21] = [
        (&["--dir", dir], &["--dir", "--client C"]),
        (&["--client", "0"], &["--dir"]),
        (&["--dir", dir, "--client", "0", "--f", "2"], &["--f", "--dir"]),
        (&["--dir", dir, "--client", "0", "--durability", "disk"], &["--durability", "--dir"]),
        (&["--targets", "--floor"], &["--targets", "--floor"]),
        (&["--targets", "--dir", dir], &["--targets", "--dir"]),
        (&["--dir", dir, "--client", "0", "--spin-us", "5"], &["--spin-us", "--dir"]),
        (&["--targets", "--spin-us", "5"], &["--spin-us", "--targets"]),
        (&["--scale", "--spin-us", "5"], &["--spin-us", "--scale"]),
        (&["--plot", "x.svg", "--spin-us", "5"], &["--spin-us", "--plot"]),
        (&["--failover", "1", "--requests", "5"], &["--failover", "--requests"]),
        (&["--failover", "1", "--plot", "x.svg"], &["--failover", "--plot"]),
        (&["--failover", "1", "--scale"], &["--failover", "--scale"]),
        (&["--steady", "1", "--warmup", "5"], &["--steady", "--warmup"]),
        (&["--steady", "1", "--payloads", "0/0"], &["--steady", "--payloads"]),
        (&["--steady", "1", "--faulty", "x"], &["--steady", "--faulty"]),
        (&["--scale", "--payloads", "0/0"], &["--scale", "--payloads"]),
        (&["--clients", "0"], &["--clients", "0"]),
        (&["--dir", dir, "--client", "2", "--clients", "3"], &["2 to 4", "0 to 3", "--clients"]),
        (&["--payloads", "9000000/0"], &["--payloads 9000000/0", "max_payload_bytes"]),
        (&["--json", path(&nowhere)], &["cannot write", path(&nowhere)]),
    ];
    for (args, words) in cases {
        let said: Said = difato([&["bench"], args].concat()).run();
        assert_eq!((said.code, said.stderr.lines().count()), (Some(2), 1), "{said}");
        let missing: Vec<_> = words.iter().filter(|word| !said.stderr.contains(**word)).collect();
        assert!(missing.is_empty(), "missing {missing:?}: {said}");
    }
}
