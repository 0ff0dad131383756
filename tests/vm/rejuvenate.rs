//! Machines that are replaced by clean ones, in turns, while clients go on.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, run};

/// Under TCG a machine is at work some seconds after its start; this gives each twenty.
const PERIOD: &str = "60s";
/// Twice round, one turn missed, and the start.
const LONGEST: Duration = Duration::from_secs(240);

#[test]
#[ignore = "takes minutes: see tests/vm/main.rs"]
fn every_machine_is_replaced_twice_under_load_and_no_request_is_lost() {
    let cluster = Cluster::up(&["--rejuvenate", PERIOD]);
    let (started, mut last, mut longest) = (Instant::now(), 0, Duration::ZERO);
    let replaced = |server: u16| {
        let said = cluster.log(&format!("run-guest-{server}.log"));
        let count = |what: &str| said.matches(what).count();
        count("is replaced by a clean one: it is its turn").min(count("is back at work"))
    };
    while (0..3).any(|server| replaced(server) < 2) {
        assert!(started.elapsed() < LONGEST, "not all were replaced twice in {LONGEST:?}");
        let began = Instant::now();
        let orders = cluster.send("0", &["one", "two", "three", "four", "five"]);
        assert_eq!(orders, (last + 1..=last + 5).collect::<Vec<_>>());
        (last, longest) = (last + 5, longest.max(began.elapsed()));
    }
    let took = longest.as_secs_f64();
    println!("{last} requests while six machines were replaced; the longest five took {took:.1} s");
    (0..3).for_each(|server| cluster.until_at_work(server, last));
    // The one order holds them all.
    let program = cluster.dir().join("bin/difato");
    let space = format!("{}-client", cluster.name);
    let (dir, count) = (cluster.dir(), last.to_string());
    let listen = ["listen", "--dir", dir.to_str().unwrap(), "--client", "1", "--count", &count];
    let listen =
        [&["ip", "netns", "exec", &space, program.to_str().unwrap()], &listen[..]].concat();
    let heard = run(&listen);
    let words = ["one", "two", "three", "four", "five"].into_iter().cycle();
    let wanted = (1..=last).zip(words).map(|(order, word)| format!("{order} 0 {word}"));
    assert!(heard.lines().eq(wanted), "{heard}");
}
