//! The commands on a cluster at rest: what they print, in which form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::clients::Caller;
use crate::support::command::difato;
use crate::support::{Builder, Cluster, path};

fn listen(cluster: &Cluster, client: &str, more: &[&str]) -> String {
    let args = [&["--client", client], more].concat();
    cluster.folder.command("listen", &args).done()
}

#[test]
fn messages_are_sent_by_argument_and_by_line_and_two_listeners_print_the_same() {
    let cluster = Builder::new().start();
    let send = |args: &[&str]| cluster.folder.command("send", args).done();
    assert_eq!(send(&["--client", "0", "one", "two", "and three"]), "1\n2\n3\n");
    let by_line = difato(["send", "--dir", path(&cluster.folder.dir), "--client", "1", "--lines"]);
    let many: String = (0..200).map(|i| format!("line {i}\n")).collect();
    let numbers: String = (4..204).map(|i| format!("{i}\n")).collect();
    assert_eq!(by_line.stdin(many.as_bytes()).run().done(), numbers);
    assert_eq!(send(&["--client", "0", "back\\slash", "tab\there"]), "204\n205\n");

    let everything = ["--from", "1", "--count", "205"];
    let one = listen(&cluster, "2", &everything);
    assert_eq!(one, listen(&cluster, "3", &everything));
    let mut wanted = String::from("1 0 one\n2 0 two\n3 0 and three\n");
    wanted.extend((0..200).map(|i| format!("{} 1 line {i}\n", i + 4)));
    wanted += "204 0 back\\\\slash\n205 0 tab\\x09here\n";
    assert_eq!(one, wanted);
    assert_eq!(listen(&cluster, "3", &["--from", "2", "--count", "2"]), "2 0 two\n3 0 and three\n");
}

#[test]
fn listen_and_status_speak_json() {
    let cluster = Builder::new().start();
    let payload = "not \"plain\" \u{1f980}\n";
    cluster.folder.command("send", &["--client", "1", payload]).done();
    let heard = listen(&cluster, "2", &["--from", "1", "--count", "1", "--json"]);
    assert_eq!(heard.lines().count(), 1, "{heard}");
    let heard: Value = serde_json::from_str(&heard).unwrap();
    assert_eq!((&heard["order"], &heard["client"]), (&1.into(), &1.into()), "{heard}");
    let bytes = STANDARD.decode(heard["payload"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, payload.as_bytes());

    for id in cluster.ids() {
        cluster.await_delivered(id, 1);
    }
    let status = cluster.folder.command("status", &["--json"]).done();
    let status: Vec<Value> = serde_json::from_str(&status).unwrap();
    assert_eq!(status.len(), 3);
    for (id, server) in status.iter().enumerate() {
        let object = server.as_object().unwrap();
        let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let promised = "behind catching_up chain committed counters delivered held id rings \
                        sequencer stable term up window";
        let promised: Vec<&str> = promised.split(' ').collect();
        assert_eq!(keys, promised);
        assert_eq!((&server["id"], &server["up"]), (&id.into(), &true.into()), "{server}");
        assert_eq!(server["delivered"], 1, "{server}");
        assert_eq!(server["sequencer"], server["term"].as_u64().unwrap() % 3, "{server}");
        let chain = server["chain"].as_str().unwrap();
        assert!(chain.len() == 64 && chain.chars().all(|c| c.is_ascii_hexdigit()), "{chain}");
        assert_eq!(chain, status[0]["chain"], "servers that delivered the same");
        for name in ["host_records_accept", "host_dropped_order_mac", "host_orders_mac_failed"] {
            assert!(server["counters"][name].is_u64(), "{name}: {server}");
        }
    }
}

#[test]
fn the_log_application_replies_with_the_order_number_and_takes_no_benchmark() {
    let cluster = Builder::new().application("log").start();
    let caller = Caller::new(&cluster.folder, 0);
    for wanted in 1..=5u64 {
        let reply = caller.invoke("a message");
        assert_eq!((reply.order.0, reply.bytes), (wanted, wanted.to_le_bytes().to_vec()));
    }
    let said = cluster.folder.command("bench", &["--client", "0", "--requests", "10"]);
    assert_eq!(said.code, Some(2), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
    for word in ["application = \"log\"", "echo-sized", "cluster.toml"] {
        assert!(said.stderr.contains(word), "{word}: {said}");
    }
}

#[test]
fn what_is_tested_here_is_no_build_with_a_faulty_sequencer() {
    let version = format!("difato {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(difato(["--version"]).run().done(), version);
}
