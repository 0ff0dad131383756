//! `difato status`: how every server is, as it says itself. A compromised guest can say anything;
//! this is for the operator's eyes, and nothing is decided by it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use client::StatusError;
use protocol::messages::{CatchingUp, Held, StableAt, Stage, Status};
use serde::Serialize;
use shared_registers::ids::ServerId;
use shared_registers::layout::waits_in_words;

use crate::bench::table::columns;
use crate::cli::StatusArgs;
use crate::output;
use crate::session::{self, Operator};

/// A server has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Counters that are shown of one server, and letters of their names: no guest of ours has more.
const COUNTERS: usize = 256;
const NAME_LETTERS: usize = 64;

/// What `--json` prints of a server. The names are those of the JSON objects, and `difato status
/// --help` explains them.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Up(Box<Up>),
    Down { id: u16, up: bool, why: String },
}

#[derive(Serialize)]
struct Up {
    id: u16,
    up: bool,
    term: u64,
    sequencer: u16,
    committed: u64,
    delivered: u64,
    behind: u64,
    chain: String,
    stable: Option<Stable>,
    window: Window,
    rings: Vec<Ring>,
    held: HeldBytes,
    catching_up: Option<Progress>,
    counters: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Stable {
    term: u64,
    batch: u64,
    order: Option<u64>,
}

#[derive(Serialize)]
struct Window {
    used: u64,
    limit: u64,
}

#[derive(Serialize)]
struct Ring {
    used: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct HeldBytes {
    history: u64,
    snapshot: u64,
    orders: u64,
}

#[derive(Serialize)]
struct Progress {
    stage: &'static str,
    parts: u64,
    all_parts: u64,
    bytes: u64,
    all_bytes: u64,
    from: Option<u16>,
}

impl Progress {
    fn new(said: CatchingUp) -> Progress {
        let stage = match said.stage {
            Stage::Reading => "reading",
            Stage::Looking => "looking",
            Stage::Fetching => "fetching",
        };
        let ((parts, all_parts), (bytes, all_bytes)) = (said.parts, said.bytes);
        Progress { stage, parts, all_parts, bytes, all_bytes, from: said.from.map(|s| s.0) }
    }
}

impl Answer {
    /// `highest`: what the server that is furthest has delivered.
    fn new(id: ServerId, n: usize, highest: u64, said: Result<Status, StatusError>) -> Answer {
        match said {
            Ok(status) if !status.host_up => {
                let why = "its host agent is not running".to_owned();
                Answer::Down { id: id.0, up: false, why }
            }
            Ok(status) => Answer::Up(Box::new(Up::new(id, n, highest, status))),
            Err(error) => Answer::Down { id: id.0, up: false, why: error.to_string() },
        }
    }

    /// All servers' answers.
    fn all(said: Vec<Result<Status, StatusError>>) -> Vec<Answer> {
        let n = said.len();
        let up = said.iter().flatten().filter(|status| status.host_up);
        let highest = up.map(|status| status.delivered.0).max().unwrap_or(0);
        let servers = ServerId::all(n).zip(said);
        servers.map(|(id, said)| Answer::new(id, n, highest, said)).collect()
    }
}

impl Up {
    fn new(id: ServerId, n: usize, highest: u64, said: Status) -> Up {
        let stable = |at: StableAt| Stable {
            term: at.term.0,
            batch: at.batch,
            order: at.order.map(|order| order.0),
        };
        let Held { history, snapshot, orders } = said.held;
        let (used, limit) = said.window;
        Up {
            id: id.0,
            up: true,
            term: said.term.0,
            sequencer: said.term.sequencer(n).0,
            committed: said.committed,
            delivered: said.delivered.0,
            behind: highest.saturating_sub(said.delivered.0),
            chain: said.chain.to_string(),
            stable: said.stable.map(stable),
            window: Window { used, limit },
            rings: said
                .rings
                .into_iter()
                .take(n)
                .map(|(used, bytes)| Ring { used, bytes })
                .collect(),
            held: HeldBytes { history, snapshot, orders },
            catching_up: said.catching_up.map(Progress::new),
            counters: said.counters.into_iter().filter(is_shown).take(COUNTERS).collect(),
        }
    }
}

/// Names may be anything, and what is printed shall be neither lines about others nor commands to a
/// terminal.
fn is_shown((name, _): &(String, u64)) -> bool {
    let plain =
        |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_';
    name.len() <= NAME_LETTERS && name.bytes().all(plain)
}

/// Runs `difato status`.
pub(crate) fn run(args: StatusArgs) -> Result<()> {
    let operator = Operator::load(&args.dir)?;
    let answers = Answer::all(session::runtime()?.block_on(operator.ask(PATIENCE)));
    if args.json {
        let json = serde_json::to_string_pretty(&answers).context("cannot write JSON")?;
        return output::print(&json);
    }
    output::print(&render(&answers))
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn percent(used: u64, of: u64) -> String {
    let percent = used.saturating_mul(100).checked_div(of);
    percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"))
}

fn or_dash(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn render(answers: &[Answer]) -> String {
    let head = ["server", "up", "term", "sequencer", "committed", "delivered", "behind", "chain"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for answer in answers {
        match answer {
            Answer::Up(up) => {
                let numbers =
                    [up.term, u64::from(up.sequencer), up.committed, up.delivered, up.behind];
                let mut line = vec![up.id.to_string(), "yes".to_owned()];
                line.extend(numbers.map(|number| number.to_string()));
                line.push(up.chain.clone());
                lines.push(line);
                notes += &up.catching_up.as_ref().map_or_else(String::new, |at| at.note(up.id));
            }
            Answer::Down { id, why, .. } => {
                notes += &format!("\nserver {id}: {why}");
                lines.push(vec![id.to_string(), "no".to_owned()]);
            }
        }
    }
    let up = || {
        answers.iter().filter_map(|answer| match answer {
            Answer::Up(up) => Some(&**up),
            Answer::Down { .. } => None,
        })
    };
    let mut text = columns(&lines) + &notes + &waiting(up());
    for table in [render_memory(up()), render_counters(up())] {
        if !table.is_empty() {
            text += "\n\n";
            text += &table;
        }
    }
    text
}

impl Progress {
    fn note(&self, id: u16) -> String {
        match self.stage {
            "reading" => format!("\nserver {id}: reads its registers, and is not at work yet"),
            "looking" => format!("\nserver {id}: its records are reclaimed; looks for a snapshot"),
            _ => {
                let from = self.from.map_or_else(String::new, |s| format!(" from server {s}"));
                let Progress { parts, all_parts, .. } = self;
                let (here, all) = (mib(self.bytes), mib(self.all_bytes));
                format!(
                    "\nserver {id}: fetches a snapshot{from}: {here} of {all} MiB, {parts} of \
                     {all_parts} parts"
                )
            }
        }
    }
}

/// What is bounded, and how full it is: a line for each server that answered.
fn render_memory<'a>(up: impl Iterator<Item = &'a Up>) -> String {
    let head = [
        "server",
        "stable term",
        "batch",
        "order",
        "window",
        "rings",
        "history MiB",
        "snapshot MiB",
        "orders MiB",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for up in up {
        let stable = up.stable.as_ref();
        let rings = up.rings.iter().map(|ring| percent(ring.used, ring.bytes));
        lines.push(vec![
            up.id.to_string(),
            or_dash(stable.map(|at| at.term)),
            or_dash(stable.map(|at| at.batch)),
            or_dash(stable.and_then(|at| at.order)),
            percent(up.window.used, up.window.limit),
            rings.collect::<Vec<_>>().join(" "),
            mib(up.held.history),
            mib(up.held.snapshot),
            mib(up.held.orders),
        ]);
    }
    if lines.len() == 1 { String::new() } else { columns(&lines) }
}

/// R6: whose host recovers, and for whom it waits.
fn waiting<'a>(up: impl Iterator<Item = &'a Up>) -> String {
    let mut text = String::new();
    for Up { id, counters, .. } in up {
        if counters.get("host_recovers") != Some(&1) {
            continue;
        }
        let whom = waits_in_words(counters.get("host_waits_for").copied().unwrap_or(0));
        text += &format!(
            "\nserver {id}: its host recovers and waits for {whom}; it serves what there is"
        );
    }
    text
}

/// A line for each counter, a column for each server that answered.
fn render_counters<'a>(up: impl Iterator<Item = &'a Up>) -> String {
    let up: Vec<_> = up.map(|up| (up.id, &up.counters)).collect();
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
            counters: [("z", 1), ("host_waits_for", 5), ("host_recovers", 1), ("a", 2)]
                .map(|(name, value)| (name.to_owned(), value))
                .to_vec(),
            ..Status::default()
        };
        let stable = Some(StableAt { term: Term(3), batch: 7, order: Some(OrderNumber(10)) });
        let fetching = CatchingUp {
            stage: Stage::Fetching,
            parts: (1, 4),
            bytes: (1 << 20, 3 << 20),
            from: Some(ServerId(1)),
        };
        let at_work = Status { stable, window: (1, 4), rings: vec![(64, 128)], ..status };
        let behind = Status {
            host_up: true,
            catching_up: Some(fetching),
            counters: vec![("host_recovers".to_owned(), 1)],
            ..Status::default()
        };
        Answer::all(vec![Err(StatusError::TimedOut), Ok(at_work), Ok(behind)])
    }

    #[test]
    fn a_server_without_its_host_is_not_up() {
        let without = Answer::new(ServerId(2), 3, 0, Ok(Status::default()));
        let json = serde_json::to_value(without).unwrap();
        assert_eq!((&json["id"], &json["up"]), (&2.into(), &false.into()));
        assert!(json["why"].as_str().unwrap().contains("host agent"));
    }

    #[test]
    fn a_broken_in_guest_prints_nothing_of_its_own() {
        let named = |name: &str| (name.to_owned(), 1);
        let long = "a".repeat(NAME_LETTERS + 1);
        let mut counters: Vec<_> =
            ["\x1b[2J", "z\nserver 0: all is well", "Z", &long, "good_1"].map(named).to_vec();
        counters.extend((0..1000).map(|i| named(&format!("more_{i}"))));
        let rings = vec![(1, 2); 1000];
        let status = Status { host_up: true, counters, rings, ..Status::default() };
        let answer = Answer::new(ServerId(1), 3, 0, Ok(status));
        let Answer::Up(up) = &answer else { panic!("it is up") };
        assert_eq!((up.counters.len(), up.rings.len()), (COUNTERS, 3));
        let text = render(&[answer]);
        assert!(text.contains("\ngood_1 ") && !text.contains("all is well"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.lines().all(|line| line.len() < 200), "{text}");
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json = serde_json::to_value(sample()).unwrap();
        let down = serde_json::json!({"id": 0, "up": false, "why": json[0]["why"]});
        let up = serde_json::json!({
            "id": 1, "up": true, "term": 4, "sequencer": 1, "committed": 9, "delivered": 12,
            "behind": 0, "chain": "00".repeat(32), "counters": {"a": 2, "host_recovers": 1, "host_waits_for": 5, "z": 1},
            "stable": {"term": 3, "batch": 7, "order": 10}, "window": {"used": 1, "limit": 4},
            "rings": [{"used": 64, "bytes": 128}],
            "held": {"history": 0, "snapshot": 0, "orders": 0}, "catching_up": null,
        });
        assert_eq!((&json[0], &json[1]), (&down, &up));
        let catching_up = serde_json::json!({
            "stage": "fetching", "parts": 1, "all_parts": 4, "bytes": 1 << 20,
            "all_bytes": 3 << 20, "from": 1,
        });
        assert_eq!((&json[2]["behind"], &json[2]["catching_up"]), (&12.into(), &catching_up));
    }

    #[test]
    fn the_table_names_everyone() {
        let text = render(&sample());
        assert!(text.contains("\n0        no\n"), "{text}");
        assert!(text.contains("\nserver 0: "), "{text}");
        assert!(
            text.contains("server 2: fetches a snapshot from server 1: 1.0 of 3.0 MiB"),
            "{text}"
        );
        assert!(text.contains("\n1                 3      7     10     25%    50%"), "{text}");
        let is_a = |line: &str| line.starts_with("a ") && line.ends_with(" -");
        assert!(text.lines().any(is_a), "{text}");
        assert!(text.contains("\nserver 1: its host recovers and waits for hosts 0, 2;"), "{text}");
        assert!(text.contains("\nserver 2: its host recovers and waits for records"), "{text}");
    }
}
