//! Bad input: exit code 2, and one line on stderr that names what is wrong.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared_registers::ids::{ClientId, ServerId};

use crate::support::command::{Said, difato};
use crate::support::{Builder, Folder, path, until};

/// Collects what is wrong with the answers to bad input, so that a failure shows all of it.
#[derive(Default)]
struct Verdict(Vec<String>);

impl Verdict {
    fn expect(&mut self, said: &Said, words: &[&str]) {
        let lines = said.stderr.lines().count();
        let missing: Vec<_> = words.iter().filter(|word| !said.stderr.contains(**word)).collect();
        if said.code != Some(2) || lines != 1 || !missing.is_empty() {
            self.0.push(format!("{lines} lines on stderr, missing {missing:?}: {said}"));
        }
    }

    #[track_caller]
    fn give(self) {
        assert!(self.0.is_empty(), "{} bad answers:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// A process of a server, without its own log lines.
fn role(folder: &Folder, role: &str, id: &str) -> Said {
    let args = [role, "--dir", path(&folder.dir), "--id", id];
    difato(args).env("DIFATO_LOG", "off").run()
}

#[test]
fn unknown_names_and_missing_things_are_named() {
    let folder = Builder::new().set("max_payload_bytes", 100).init();
    let mut verdict = Verdict::default();
    let commands: [(&str, &[&str]); 3] =
        [("send", &["hello"]), ("listen", &[]), ("bench", &["--payloads", "0/0"])];
    for (subcommand, more) in commands {
        let said = folder.command(subcommand, &[&["--client", "17"], more].concat());
        verdict.expect(&said, &["unknown client 17", "0 to 3"]);
    }
    for subcommand in ["host-agent", "guest-replica"] {
        verdict.expect(&role(&folder, subcommand, "3"), &["unknown server 3", "0 to 2"]);
    }
    verdict.expect(&folder.command("send", &["--client", "0"]), &["nothing to send", "--lines"]);

    let long = "x".repeat(101);
    let over = folder.command("send", &["--client", "0", &long]);
    verdict.expect(&over, &["101 bytes", "max_payload_bytes = 100"]);
    let over = folder.command("bench", &["--client", "0", "--payloads", "0/0,100/0"]);
    verdict.expect(&over, &["--payloads 100/0", "max_payload_bytes = 100"]);
    let lines = ["send", "--dir", path(&folder.dir), "--client", "0", "--lines"];
    let over = difato(lines).stdin(format!("{long}\n").as_bytes()).run();
    verdict.expect(&over, &["max_payload_bytes = 100"]);

    let nowhere = folder.beside().join("nowhere");
    let nowhere = path(&nowhere);
    let commands: [&[&str]; 7] = [
        &["cluster", "up", nowhere],
        &["host-agent", "--id", "0", "--dir", nowhere],
        &["guest-replica", "--id", "0", "--dir", nowhere],
        &["send", "--client", "0", "hello", "--dir", nowhere],
        &["listen", "--client", "0", "--dir", nowhere],
        &["bench", "--client", "0", "--dir", nowhere],
        &["status", "--dir", nowhere],
    ];
    for command in commands {
        let said = difato(command.iter().copied()).env("DIFATO_LOG", "off").run();
        verdict.expect(&said, &["nowhere/cluster.toml", "difato cluster init"]);
    }
    verdict.give();
}

#[test]
fn flags_that_cannot_be_are_named() {
    let folder = Builder::new().init();
    let mut verdict = Verdict::default();
    for shape in ["4k/4k", "1", "1/2/3", "0/-1"] {
        let said = folder.command("bench", &["--client", "0", "--payloads", shape]);
        verdict.expect(&said, &["--payloads", shape]);
    }
    let said = folder.command("listen", &["--client", "0", "--from", "0"]);
    verdict.expect(&said, &["--from", "0"]);
    let said = folder.command("bench", &["--client", "0", "--requests", "0"]);
    verdict.expect(&said, &["--requests", "0"]);
    let said = folder.command("send", &["--client", "minus", "hello"]);
    verdict.expect(&said, &["--client", "minus"]);
    verdict.give();
}

#[test]
fn key_files_that_are_missing_open_to_others_or_damaged_are_named() {
    let folder = Builder::new().init();
    let paths = folder.paths();
    let send = || folder.command("send", &["--client", "1", "hello"]);
    let status = || folder.command("status", &[]);
    let host = || role(&folder, "host-agent", "1");
    let guest = || role(&folder, "guest-replica", "1");
    let cases: [(PathBuf, &dyn Fn() -> Said); 4] = [
        (paths.client_keys(ClientId(1)), &send),
        (paths.operator_keys(), &status),
        (paths.host_keys(ServerId(1)), &host),
        (paths.guest_keys(ServerId(1)), &guest),
    ];
    let mut verdict = Verdict::default();
    for (file, command) in cases {
        let name = file.file_name().unwrap().to_str().unwrap();
        let whole = fs::read_to_string(&file).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        verdict.expect(&command(), &[name, "read by others", "644", "chmod 600"]);
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let secret = whole.split('"').find(|part| part.len() == 64).unwrap();
        fs::write(&file, whole.replace(secret, &secret[1..])).unwrap();
        let said = command();
        verdict.expect(&said, &[name, "damaged"]);
        assert!(!said.stderr.contains(&secret[1..]), "a key is printed: {said}");
        fs::remove_file(&file).unwrap();
        verdict.expect(&command(), &[name, "cannot read"]);
    }
    verdict.give();
}

#[test]
fn keys_of_another_cluster_are_said_to_be_so() {
    let cluster = Builder::new().start();
    let other = Builder::new().init();
    let file = cluster.folder.paths().client_keys(ClientId(1));
    let own = fs::read_to_string(&file).unwrap();
    let theirs = fs::read_to_string(other.paths().client_keys(ClientId(1))).unwrap();
    let mut verdict = Verdict::default();
    fs::write(&file, &theirs).unwrap();
    let said = cluster.folder.command("send", &["--client", "1", "hello"]);
    verdict.expect(&said, &["MAC", "verify", "client-1.key"]);

    // The order keys alone: the guests take the client for who it is, and the hosts refuse.
    let tables: [toml::Table; 2] = [&theirs, &own].map(|text| text.parse().unwrap());
    let mut mixed = toml::Table::new();
    mixed.insert("orders".into(), tables[0]["orders"].clone());
    mixed.insert("replies".into(), tables[1]["replies"].clone());
    fs::write(&file, mixed.to_string()).unwrap();
    let said = cluster.folder.command("send", &["--client", "1", "hello"]);
    verdict.expect(&said, &["order", "MAC does not verify", "client-1.key"]);

    fs::write(&file, own).unwrap();
    assert_eq!(cluster.folder.command("send", &["--client", "1", "hello"]).done(), "1\n");
    let operator = cluster.folder.paths().operator_keys();
    fs::copy(other.paths().operator_keys(), operator).unwrap();
    let said = cluster.folder.command("status", &[]);
    assert!(said.stdout.contains("MAC does not verify"), "{said}");
    verdict.give();
}

#[test]
fn what_is_wrong_in_cluster_toml_is_named() {
    let folder = Builder::new().init();
    let file = folder.paths().cluster_toml();
    let whole = fs::read_to_string(&file).unwrap();
    let cases = [
        ("window = 64", "windo = 64", "windo"),
        ("window = 64", "window = \"many\"", "window"),
        ("window = 64", "window = 0", "window = 0"),
        ("\nf = 1", "\nf = 2", "f = 2"),
        ("\napplication = \"echo-sized\"", "\napplication = 7", "application"),
        ("\nclients = 4", "\nclients = -4", "clients"),
        ("\nclients = 4", "", "clients"),
        ("change_ms = 600", "change_ms = 0", "change_ms = 0"),
        ("\nring_bytes = 16777216", "\nring_bytes = 1000", "ring_bytes = 1000"),
        ("\n[timing]", "\n[timeing]", "timeing"),
        (".2:", ".2", "trusted"),
        ("\nf = 1", "\nf = = 1", "line"),
    ];
    let mut verdict = Verdict::default();
    for (from, to, named) in cases {
        let text = whole.replacen(from, to, 1);
        assert_ne!(text, whole, "{from} is not in {whole}");
        fs::write(&file, text).unwrap();
        for command in ["status", "host-agent"] {
            let said = match command {
                "status" => folder.command("status", &[]),
                _ => role(&folder, command, "0"),
            };
            verdict.expect(&said, &["cluster.toml", named]);
        }
    }
    fs::write(&file, whole.replace("\"echo-sized\"", "\"chess\"")).unwrap();
    verdict.expect(&role(&folder, "guest-replica", "0"), &["application", "chess"]);
    verdict.give();
}

#[test]
fn a_port_in_use_is_named() {
    let folder = Builder::new().init();
    let text = fs::read_to_string(folder.paths().cluster_toml()).unwrap();
    let server = shared_registers::cluster::Cluster::parse(&text).unwrap().servers[1];
    let mut verdict = Verdict::default();
    let cases = [(server.trusted, "host-agent"), (server.payload, "guest-replica")];
    for (address, command) in cases {
        let _taken = TcpListener::bind(address).unwrap();
        let words = [&address.to_string(), "in use", "server 1"];
        verdict.expect(&role(&folder, command, "1"), &words);
        let up = difato(["cluster", "up", path(&folder.dir)]).run();
        verdict.expect(&up, &words);
    }
    verdict.give();
}

/// Every file and folder below, with its mode and contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::metadata(&path).unwrap();
        let mut bytes = Vec::new();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            bytes = fs::read(&path).unwrap();
        }
        all.insert(path, (meta.permissions().mode() & 0o777, bytes));
    }
    all
}

#[test]
fn init_keeps_secrets_private_and_overwrites_nothing() {
    let folder = Builder::new().init();
    let before = contents(&folder.dir);
    let modes: Vec<_> = before.iter().map(|(path, (mode, _))| (path, *mode)).collect();
    let keys = modes.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "key"));
    let keys: Vec<_> = keys.collect();
    assert_eq!(keys.len(), 3 + 3 + 4 + 1);
    assert!(keys.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    for dir in [&folder.dir, &folder.paths().keys()] {
        assert_eq!(before[dir].0, 0o700, "{}", dir.display());
    }
    let mut verdict = Verdict::default();
    let again = difato(["cluster", "init", path(&folder.dir), "--f", "2"]).run();
    verdict.expect(&again, &["exists already", path(&folder.dir)]);
    assert!(contents(&folder.dir) == before, "init changed a cluster that was there");
    let file = folder.beside().join("file");
    fs::write(&file, "mine").unwrap();
    let over_file = difato(["cluster", "init", path(&file)]).run();
    verdict.expect(&over_file, &["exists already"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let deep = folder.beside().join("no/such");
    verdict.expect(&difato(["cluster", "init", path(&deep)]).run(), &["there is no folder"]);
    let left = || fs::read_dir(folder.beside()).unwrap().count();
    until("nothing half-made is left", || left() == 2);
    verdict.give();
}
