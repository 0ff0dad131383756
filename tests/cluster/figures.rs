//! What `difato bench` measures on clusters of its own: failover, a faulty sequencer, and the figures.

use std::fs;
use std::path::{Path, PathBuf};

use roxmltree::Document;
use serde_json::Value;

use crate::support::command::{DIFATO, Said, difato};
use crate::support::path;
use crate::support::permit::Permit;

/// Names a build with the feature `faulty-sequencer`.
const FAULTY: &str = "DIFATO_FAULTY";
const FEW: [&str; 6] = ["--requests", "60", "--warmup", "10", "--payloads", "0/0,16/64"];

/// Runs `difato bench`, which must leave nothing behind.
fn bench(args: &[&str]) -> Said {
    let _permit = Permit::wait();
    let temp = tempfile::tempdir().unwrap();
    let said = difato(["bench"]).args(args.iter().copied()).env("TMPDIR", temp.path()).measure();
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}: {said}");
    said
}

/// The texts of a picture, which must be an XML document.
fn texts(file: &Path) -> Vec<String> {
    let svg = fs::read_to_string(file).unwrap();
    let document = Document::parse(&svg).unwrap_or_else(|error| panic!("{error}: {svg}"));
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.filter_map(|node| node.text()).map(|text| text.trim().to_owned()).collect()
}

#[test]
fn the_sequencers_guest_and_host_are_killed_and_service_comes_back() {
    let temp = tempfile::tempdir().unwrap();
    let json = temp.path().join("gaps.json");
    let table = bench(&["--failover", "1", "--json", path(&json)]).done();
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let both = ["sequencer's guest replica", "sequencer's host agent"];
    assert_eq!(rows.len(), both.len());
    for (killed, row) in both.into_iter().zip(rows) {
        let line = table.lines().find(|line| line.starts_with(killed));
        let line = line.unwrap_or_else(|| panic!("no `{killed}`: {table}"));
        let numbers: Vec<f64> =
            line[killed.len()..].split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [times, p50, worst, terms, phases @ ..] = &numbers[..] else { panic!("{table}") };
        assert_eq!((*times, p50), (1.0, worst), "{table}");
        assert!(*terms >= 1.0, "{table}");
        // The phases begin at the kill, and the gap at the last answer before or after it.
        assert!((row["p50_us"].as_f64().unwrap() / 1000.0 - p50).abs() < 0.01 * p50, "{row}");
        assert_eq!(row["scenario"], format!("gap after the death of the {killed}"));
        let sum: f64 = phases.iter().sum();
        assert!(phases.len() == 4 && *p50 <= sum + 1000.0 && *p50 > 5.0, "{table}");
    }
    for goal in ["guest replica: goal p50 100 ms", "host agent: goal p50 100 ms"] {
        assert!(table.contains(goal), "no `{goal}`: {table}");
    }
}

#[test]
fn a_steady_load_is_measured_and_sequencer_changes_are_counted() {
    let temp = tempfile::tempdir().unwrap();
    let json = temp.path().join("steady.json");
    let said = bench(&["--steady", "1", "--json", path(&json)]);
    let changes = said.stdout.split("sequencer changes ").nth(1);
    let changes: u64 = changes.unwrap_or_else(|| panic!("{said}")).trim().parse().unwrap();
    // That it is none is for a quiet machine and a release build to show: beside other tests the
    // sequencer may be kept from running for longer than it is waited for.
    if changes > 0 {
        assert_eq!(said.code, Some(1), "{said}");
        assert!(said.stderr.contains(&format!("changed {changes} times")), "{said}");
        return;
    }
    said.done();
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&row["scenario"], &row["clients"]), (&"steady".into(), &4.into()), "{row}");
    assert!(row["requests"].as_u64() > Some(0), "{row}");
    // It lasted a second.
    let per_s = row["requests_per_s"].as_f64().unwrap() / row["requests"].as_f64().unwrap();
    assert!(0.1 < per_s && per_s <= 1.0, "{row}");
}

#[test]
fn the_figures_are_drawn() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("figures.svg");
    // What was there before is replaced, all of it.
    fs::write(&file, "x".repeat(1 << 20)).unwrap();
    bench(&[&FEW[..], &["--plot", path(&file)]].concat()).done();
    let texts = texts(&file);
    let wanted = [
        "Figure 3a: latency without faults",
        "request / reply (bytes)",
        "latency, one request at a time (µs)",
        "median",
        "16/64",
        "throughput (requests/s)",
        "latency, median (µs)",
        "16/64 bytes",
        "256",
    ];
    for text in wanted {
        assert!(texts.iter().any(|found| found == text), "no `{text}`: {texts:?}");
    }
}

#[test]
fn bench_says_what_is_wrong_with_figures_before_it_measures() {
    let said = bench(&["--plot", "/nowhere/figures.svg"]);
    assert_eq!(said.code, Some(2), "{said}");
    assert!(said.stderr.contains("cannot write /nowhere/figures.svg"), "{said}");
    let said = bench(&["--faulty", DIFATO]);
    assert_eq!(said.code, Some(2), "{said}");
    assert!(said.stderr.contains("--features faulty-sequencer"), "{said}");
    let said = bench(&["--faulty", "/nowhere/difato"]);
    assert_eq!(said.code, Some(2), "{said}");
    assert!(said.stderr.contains("/nowhere/difato cannot be run"), "{said}");
}

/// That build takes minutes, so it is used where somebody has made it.
fn faulty() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faulty/release/difato");
    let named = std::env::var_os(FAULTY).map(PathBuf::from);
    named.or(Some(usual).filter(|usual| usual.exists()))
}

#[test]
fn a_faulty_sequencer_costs_terms_and_no_requests() {
    let Some(program) = faulty() else {
        eprintln!(
            "NOT CHECKED: `difato bench --faulty`, for want of a build with a faulty sequencer; \
             make one with `cargo build --release --locked --features faulty-sequencer \
             --target-dir target/faulty`, or name one with {FAULTY}"
        );
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("figures.svg");
    for (servers, count) in [("one", 1), ("all", 3)] {
        let more = ["--faulty", path(&program), "--faulty-servers", servers];
        let said = bench(&[&FEW[..], &more[..], &["--plot", path(&file)]].concat()).done();
        let scenario = format!("faulty sequencer, {count} of 3 servers, 0/0: ");
        let line = said.lines().find_map(|line| line.strip_prefix(&scenario));
        let line = line.unwrap_or_else(|| panic!("no `{scenario}`: {said}"));
        let mut words = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (wrong, terms) = (words.next().unwrap(), words.next().unwrap());
        // One of its tenth batches may have been in flight behind the wrong one.
        assert!(wrong >= 1 && terms >= 1 && terms <= wrong, "{said}");
        assert!(servers == "all" || terms == 1, "a correct sequencer stays: {said}");
        let title = "Figure 3b: one proposal in ten of the sequencer is wrong";
        assert!(texts(&file).iter().any(|text| text == title), "{said}");
    }
}
