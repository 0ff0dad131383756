//! `difato status`: how every server is, as it says itself. A compromised guest can say anything;
//! this is for the operator's eyes, and nothing is decided by it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use client::StatusError;
use protocol::messages::Status;
use serde::Serialize;
use shared_registers::ids::ServerId;

use crate::bench::table::columns;
use crate::cli::StatusArgs;
use crate::output;
use crate::session::{self, Operator};

/// A server has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `--json` prints of a server. The names are those of the JSON objects.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Up {
        id: u16,
        up: bool,
        term: u64,
        sequencer: u16,
        committed: u64,
        delivered: u64,
        chain: String,
        counters: BTreeMap<String, u64>,
    },
    Down {
        id: u16,
        up: bool,
        why: String,
    },
}

impl Answer {
    fn new(id: ServerId, n: usize, said: Result<Status, StatusError>) -> Answer {
        match said {
            Ok(status) if !status.host_up => {
                let why = "its host agent is not running".to_owned();
                Answer::Down { id: id.0, up: false, why }
            }
            Ok(status) => Answer::Up {
                id: id.0,
                up: true,
                term: status.term.0,
                sequencer: status.term.sequencer(n).0,
                committed: status.committed,
                delivered: status.delivered.0,
                chain: status.chain.to_string(),
                counters: status.counters.into_iter().collect(),
            },
            Err(error) => Answer::Down { id: id.0, up: false, why: error.to_string() },
        }
    }
}

/// Runs `difato status`.
pub(crate) fn run(args: StatusArgs) -> Result<()> {
    let operator = Operator::load(&args.dir)?;
    let said = session::runtime()?.block_on(operator.ask(PATIENCE));
    let n = operator.cluster.n();
    let servers = ServerId::all(n).zip(said);
    let answers: Vec<Answer> = servers.map(|(id, said)| Answer::new(id, n, said)).collect();
    if args.json {
        let json = serde_json::to_string_pretty(&answers).context("cannot write JSON")?;
        return output::print(&json);
    }
    output::print(&render(&answers))
}

fn render(answers: &[Answer]) -> String {
    let head = ["server", "up", "term", "sequencer", "committed", "delivered", "chain"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let mut down = String::new();
    for answer in answers {
        lines.push(match answer {
            Answer::Up { id, term, sequencer, committed, delivered, chain, .. } => vec![
                id.to_string(),
                "yes".to_owned(),
                term.to_string(),
                sequencer.to_string(),
                committed.to_string(),
                delivered.to_string(),
                chain.clone(),
            ],
            Answer::Down { id, why, .. } => {
                down += &format!("\nserver {id}: {why}");
                vec![id.to_string(), "no".to_owned()]
            }
        });
    }
    let mut text = columns(&lines) + &down + &waiting(answers);
    let counters = render_counters(answers);
    if !counters.is_empty() {
        text += "\n\n";
        text += &counters;
    }
    text
}

/// R6: whose host recovers, and for whom it waits.
fn waiting(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        let Answer::Up { id, counters, .. } = answer else { continue };
        let hosts = counters.get("host_waits_for").copied().unwrap_or(0);
        let hosts = (0..u64::BITS).filter(|host| hosts >> host & 1 == 1);
        let hosts: Vec<String> = hosts.map(|host| host.to_string()).collect();
        if !hosts.is_empty() {
            let s = if hosts.len() == 1 { "" } else { "s" };
            text += &format!(
                "\nserver {id}: its host recovers and waits for host{s} {}; it serves what there is",
                hosts.join(", ")
            );
        }
    }
    text
}

/// A line for each counter, a column for each server that answered.
fn render_counters(answers: &[Answer]) -> String {
    let up: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            Answer::Up { id, counters, .. } => Some((id, counters)),
            Answer::Down { .. } => None,
        })
        .collect();
    let names: BTreeSet<&String> = up.iter().flat_map(|(_, counters)| counters.keys()).collect();
    if names.is_empty() {
        return String::new();
    }
    let head = up.iter().map(|(id, _)| format!("server {id}"));
    let mut lines: Vec<Vec<String>> =
        vec![std::iter::once("counter".to_owned()).chain(head).collect()];
    for name in names {
        let value = |counters: &BTreeMap<String, u64>| {
            counters.get(name).map_or_else(|| "-".to_owned(), u64::to_string)
        };
        let values = up.iter().map(|(_, counters)| value(counters));
        lines.push(std::iter::once(name.clone()).chain(values).collect());
    }
    columns(&lines)
}

#[cfg(test)]
mod tests {
    use shared_registers::ids::{OrderNumber, Term};

    use super::*;

    fn sample() -> Vec<Answer> {
        let status = Status {
            id: ServerId(1),
            host_up: true,
            term: Term(4),
            committed: 9,
            delivered: OrderNumber(12),
            counters: vec![("z".into(), 1), ("host_waits_for".into(), 5), ("a".into(), 2)],
            ..Status::default()
        };
        let down = Answer::Down { id: 0, up: false, why: "no answer".into() };
        vec![down, Answer::new(ServerId(1), 3, Ok(status))]
    }

    #[test]
    fn a_server_without_its_host_is_not_up() {
        let without = Answer::new(ServerId(2), 3, Ok(Status::default()));
        let json = serde_json::to_value(without).unwrap();
        assert_eq!((&json["id"], &json["up"]), (&2.into(), &false.into()));
        assert!(json["why"].as_str().unwrap().contains("host agent"));
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json = serde_json::to_value(sample()).unwrap();
        let down = serde_json::json!({"id": 0, "up": false, "why": "no answer"});
        let up = serde_json::json!({
            "id": 1, "up": true, "term": 4, "sequencer": 1, "committed": 9, "delivered": 12,
            "chain": "00".repeat(32), "counters": {"a": 2, "host_waits_for": 5, "z": 1},
        });
        assert_eq!(json, serde_json::json!([down, up]));
    }

    #[test]
    fn the_table_names_everyone() {
        let text = render(&sample());
        assert!(text.contains("\n0        no\n"), "{text}");
        assert!(text.contains("\nserver 0: no answer\n"), "{text}");
        let is_a = |line: &str| line.starts_with("a ") && line.ends_with(" 2");
        assert!(text.lines().any(is_a), "{text}");
        assert!(text.contains("\nserver 1: its host recovers and waits for hosts 0, 2;"), "{text}");
    }
}
