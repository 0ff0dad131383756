//! `difato bench --trace`: where the time of a request goes.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::support::{Builder, path};

const REQUESTS: u64 = 60;

#[test]
fn every_hop_of_a_request_has_a_row_and_the_rows_add_up() {
    let cluster = Builder::new().start();
    let file = cluster.folder.beside().join("trace.json");
    let count = REQUESTS.to_string();
    let args = ["--client", "0", "--requests", &count, "--warmup", "20", "--trace"];
    let more = ["--payloads", "0/0,64/4096", "--json", path(&file)];
    let said = cluster.folder.command("bench", &[&args[..], &more[..]].concat()).done();

    let elements: Vec<Value> = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(elements.len(), 4, "a row and a trace for each payload");
    for (trace, payload) in elements[2..].iter().zip(["0/0", "64/4096"]) {
        assert_eq!(trace["payload"], payload);
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{trace}"));
        let sum = |list: &str, key: &str| -> f64 {
            trace[list].as_array().unwrap().iter().map(|each| number(&each[key])).sum()
        };
        let traced = number(&trace["traced"]);
        let left_out = number(&trace["missing"]) + number(&trace["not_rising"]);
        assert_eq!(traced + left_out, REQUESTS as f64, "{trace}");
        assert!(traced > REQUESTS as f64 / 2.0, "{trace}");

        let hops = trace["hops"].as_array().unwrap();
        let names: BTreeSet<&str> = hops.iter().map(|hop| hop["hop"].as_str().unwrap()).collect();
        assert_eq!((hops.len(), names.len()), (14, 14), "{trace}");
        assert!(names.iter().all(|name| said.contains(name)), "{said}");
        let whole = number(&trace["whole"]["mean_us"]);
        assert!((sum("hops", "mean_us") - whole).abs() < 1e-3 && whole > 10.0, "{trace}");
        assert!((sum("hops", "share") - 1.0).abs() < 1e-6, "{trace}");
        for hop in hops {
            let [mean, p50, p99] = ["mean_us", "p50_us", "p99_us"].map(|key| number(&hop[key]));
            assert!(mean >= 0.0 && 0.0 <= p50 && p50 <= p99, "{hop}");
        }
        // Nobody wakes up in no time.
        let waking = hops.iter().filter(|hop| hop["hop"].as_str().unwrap().contains("wake"));
        let slept: Vec<f64> = waking.map(|hop| number(&hop["mean_us"])).collect();
        assert!(slept.len() == 6 && slept.iter().all(|us| *us > 0.0), "{slept:?}");

        assert_eq!(sum("servers", "decisive_replies"), traced, "{trace}");
        assert_eq!(sum("servers", "decisive_votes"), traced, "{trace}");
        let votes = number(&trace["servers"][0]["decisive_votes"]);
        let always_sequencer = cluster.term() == 0;
        let none = !always_sequencer || votes == 0.0;
        assert!(none, "the sequencer's proposal is its vote: {trace}");
    }
}

#[test]
fn without_the_operators_key_nothing_is_measured_before_that_is_said() {
    let cluster = Builder::new().start();
    let key = cluster.folder.paths().operator_keys();
    fs::remove_file(&key).unwrap();
    let said = cluster.folder.command("bench", &["--client", "0", "--trace"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said}");
    assert!(said.stderr.contains("operator.key") && said.stderr.lines().count() == 1, "{said}");
}
