//! `difato cluster init`: a new cluster's folder, with its description and everybody's keys.
//!
//! Everything is written into a hidden folder next to the wanted one, which is then renamed, so
//! that a cluster is there whole or not at all, and an existing one is never touched. Who shares
//! which key (section 1 of the protocol):
//!
//! | key | held by | and by |
//! |---|---|---|
//! | order key | client | host |
//! | reply key | client | guest |
//! | link key | host | host |
//! | forwarding key | guest | guest |
//! | operator's reply key | operator | guest |

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use shared_registers::cluster::{
    ClientKeys, Cluster, Durability, GuestKeys, HostKeys, OperatorKeys, Paths, PeerKey,
    ServerAddresses,
};
use shared_registers::crypto::{ClusterId, Secret};
use shared_registers::ids::{ClientId, ServerId};
use zeroize::Zeroizing;

use crate::cli::InitArgs;
use crate::exit::bad_input;
use crate::output;

/// What stands above the keys of a new `cluster.toml`.
const EXPLANATION: &str = "\
# A DifATo cluster. Every process reads this file when it starts; it holds no secrets.
# After a change restart all processes. `cluster_id`, `f`, `clients` and the number of [[server]]
# tables belong to the key files: for others make a new cluster with `difato cluster init`.
#
# application         `echo-sized` (a reply of the size that the request asks for; benchmarks),
#                     `log` (the reply is the order number) or `kv` (a table of keys and values);
#                     the same at all servers
#
# [timing], in milliseconds but for spin_us
# resend_ms           a client sends an unanswered order to all servers after so long
# change_ms           a server suspects a sequencer that leaves an order undelivered for so long
# change_cap_ms       change_ms doubles with every sequencer change, up to this
# host_down_ms        a sequencer whose host cannot be reached for so long is suspected
# exchange_ms         hosts tell each other so often which records they have
# spin_us             microseconds for which host agents and guests look for work before they sleep:
#                     for machines with a core for each of them, and 0 (not at all) for others
#
# [limits]
# max_payload_bytes   largest payload of one order
# ring_bytes          room for each server's records in each read file: a power of two. Four
#                     checkpoints fill it, so records of some seconds lie there; it is all that
#                     records ever take
# write_ring_bytes    room in each write file: a power of two
# window              batches that may be proposed past the last committed one
# retain_messages     delivered messages that a guest keeps for listeners
# retain_bytes        bytes of payload that it keeps for them
# durability          what a host's records outlive before others see them: `process` (kill -9; if a
#                     machine goes down its host asks all others when it is back) or `disk` (power
#                     failures too: each record is synced first, which costs what the disk takes)
#
# [[server]], by id
# trusted             where its host agent listens, on the network that only hosts are on
# payload             where its guest replica listens, on the network of guests and clients

";

/// What a new cluster shall be.
pub(crate) struct Wanted {
    /// How many faulty servers it tolerates.
    pub(crate) f: usize,
    /// How many clients get keys.
    pub(crate) clients: u32,
    /// The application's name in `cluster.toml`.
    pub(crate) application: &'static str,
    /// Where the hosts listen; free ports on loopback if not given.
    pub(crate) trusted: Option<Vec<SocketAddr>>,
    /// Where the guests listen; likewise.
    pub(crate) payload: Option<Vec<SocketAddr>>,
    /// What a host's records outlive before others see them.
    pub(crate) durability: Durability,
    /// For how many microseconds processes look for work before they sleep.
    pub(crate) spin_us: u64,
}

/// Runs `difato cluster init`.
pub(crate) fn run(args: InitArgs) -> Result<()> {
    let wanted = Wanted {
        f: usize::from(args.f),
        clients: args.clients,
        application: args.application.name(),
        trusted: args.trusted,
        payload: args.payload,
        durability: args.durability.into(),
        spin_us: args.spin_us,
    };
    let cluster = create(&args.dir, &wanted)?;
    output::print(&summary(&args.dir, &cluster))
}

fn summary(dir: &Path, cluster: &Cluster) -> String {
    let (at, n, clients) = (dir.display(), cluster.n(), cluster.clients);
    let mut text = format!(
        "Made a cluster of {n} servers (f = {}) for {clients} clients, application {}:\n\
         \x20 {at}/cluster.toml  addresses, time-outs and limits, explained there\n\
         \x20 {at}/keys/         a file for each host, guest and client, and the operator's\n",
        cluster.f, cluster.application
    );
    for server in &cluster.servers {
        text += &format!(
            "  server {}: host agent on {} (trusted), guest replica on {} (payload)\n",
            server.id, server.trusted, server.payload
        );
    }
    text += &format!(
        "Next:\n\
         \x20 difato cluster up {at}\n\
         and, in other terminals,\n\
         \x20 difato listen --dir {at} --client {}\n\
         \x20 difato send --dir {at} --client 0 hello world",
        clients - 1
    );
    text
}

/// Makes the folder `dir` with a new cluster in it, whole or not at all.
pub(crate) fn create(dir: &Path, wanted: &Wanted) -> Result<Cluster> {
    refuse_to_overwrite(dir)?;
    let parent = match (dir.file_name(), dir.parent()) {
        (Some(_), Some(parent)) if parent.as_os_str().is_empty() => Path::new("."),
        (Some(_), Some(parent)) => parent,
        _ => {
            return Err(bad_input(format!("{} does not name a new folder", dir.display())));
        }
    };
    if !parent.is_dir() {
        let at = parent.display();
        return Err(bad_input(format!("there is no folder {at}: make it first")));
    }
    let cluster = describe(wanted)?;
    // It goes away by itself if we fail on the way.
    let half_made = tempfile::Builder::new()
        .prefix(".difato-init-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|error| {
            bad_input(format!("cannot make a folder in {}: {error}", parent.display()))
        })?;
    write_all(&Paths::new(half_made.path()), &cluster)?;
    // This replaces an empty folder at most.
    match fs::rename(half_made.path(), dir) {
        Ok(()) => {
            let _ = half_made.keep();
            Ok(cluster)
        }
        Err(error) => match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => Err(exists(dir)),
            _ => Err(bad_input(format!("cannot make {}: {error}", dir.display()))),
        },
    }
}

fn refuse_to_overwrite(dir: &Path) -> Result<()> {
    let empty = |dir| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() && empty(dir) => Ok(()),
        Ok(_) => Err(exists(dir)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(bad_input(format!("cannot make {}: {error}", dir.display()))),
    }
}

fn exists(dir: &Path) -> anyhow::Error {
    bad_input(format!(
        "{} exists already and is left as it is: name another folder or remove it first",
        dir.display()
    ))
}

fn describe(wanted: &Wanted) -> Result<Cluster> {
    let n = 2 * wanted.f + 1;
    let trusted = addresses("trusted", wanted.trusted.as_deref(), n, 1)?;
    let payload = addresses("payload", wanted.payload.as_deref(), n, 2)?;
    let mut taken = BTreeSet::new();
    if let Some(twice) = trusted.iter().chain(&payload).find(|address| !taken.insert(**address)) {
        return Err(bad_input(format!("{twice} is given twice: each process needs its own")));
    }
    let servers = trusted.into_iter().zip(payload).zip(0..);
    let servers =
        servers.map(|((trusted, payload), id)| ServerAddresses { id, trusted, payload }).collect();
    let mut id = [0; 32];
    random(&mut id)?;
    let id = ClusterId(id);
    let mut cluster = Cluster::new(id, wanted.f, wanted.clients, wanted.application, servers);
    cluster.limits.durability = wanted.durability;
    cluster.timing.spin_us = wanted.spin_us;
    Ok(cluster)
}

/// The given addresses, or free ports of 127.0.`network`.1 and on.
fn addresses(
    flag: &str,
    given: Option<&[SocketAddr]>,
    n: usize,
    network: u8,
) -> Result<Vec<SocketAddr>> {
    if let Some(given) = given {
        let (f, count) = (n / 2, given.len());
        if count != n {
            return Err(bad_input(format!("--{flag} needs {n} addresses (f = {f}), not {count}")));
        }
        if let Some(address) = given.iter().find(|address| address.port() == 0) {
            return Err(bad_input(format!("--{flag} {address} has no port: give one above 0")));
        }
        return Ok(given.to_vec());
    }
    let listen = |i: usize| {
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, network, i as u8 + 1));
        TcpListener::bind((ip, 0)).with_context(|| {
            format!("cannot find a free port on {ip}; give addresses with --{flag}")
        })
    };
    // All stay open until all are found, so that none is found twice.
    let listeners = (0..n).map(listen).collect::<Result<Vec<_>>>()?;
    listeners.iter().map(|l| l.local_addr().context("cannot tell a socket's address")).collect()
}

fn write_all(paths: &Paths, cluster: &Cluster) -> Result<()> {
    let description = toml::to_string(cluster).context("cannot write cluster.toml")?;
    let path = paths.cluster_toml();
    fs::write(&path, format!("{EXPLANATION}{description}"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    DirBuilder::new().mode(0o700).create(paths.keys()).context("cannot make the folder keys")?;
    let (n, clients) = (cluster.n(), cluster.clients as usize);
    let orders = table(n, clients)?;
    let replies = table(n, clients)?;
    let links = pairwise(n)?;
    let forwards = pairwise(n)?;
    let operator = table(1, n)?.remove(0);
    for (server, (links, forwards)) in ServerId::all(n).zip(links.into_iter().zip(forwards)) {
        let i = server.index();
        let host = HostKeys { orders: orders[i].clone(), links };
        write_keys(&paths.host_keys(server), &host)?;
        let guest =
            GuestKeys { replies: replies[i].clone(), operator: operator[i].clone(), forwards };
        write_keys(&paths.guest_keys(server), &guest)?;
        mark_fresh(paths, server)?;
    }
    for client in (0..cluster.clients).map(ClientId) {
        let of_all_servers =
            |keys: &[Vec<Secret>]| keys.iter().map(|keys| keys[client.index()].clone()).collect();
        let keys =
            ClientKeys { orders: of_all_servers(&orders), replies: of_all_servers(&replies) };
        write_keys(&paths.client_keys(client), &keys)?;
    }
    write_keys(&paths.operator_keys(), &OperatorKeys { replies: operator })
}

/// R6: register files that are missing where this mark is were never made. Its first start takes the
/// mark away; from then on files that are missing are files that were lost.
fn mark_fresh(paths: &Paths, server: ServerId) -> Result<()> {
    let (folder, mark) = (paths.registers(server), paths.fresh(server));
    let made = DirBuilder::new().mode(0o700).recursive(true).create(&folder);
    made.and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&mark))
        .map(|_| ())
        .with_context(|| format!("cannot write {}", mark.display()))
}

/// Fresh secrets, by server and then by client.
fn table(servers: usize, clients: usize) -> Result<Vec<Vec<Secret>>> {
    (0..servers).map(|_| (0..clients).map(|_| secret()).collect()).collect()
}

/// Fresh secrets for every pair of servers, by server: the same one at both.
fn pairwise(n: usize) -> Result<Vec<Vec<PeerKey>>> {
    let mut keys: Vec<Vec<PeerKey>> = (0..n).map(|_| Vec::new()).collect();
    for one in 0..n {
        for other in one + 1..n {
            let key = secret()?;
            keys[one].push(PeerKey { server: other as u16, key: key.clone() });
            keys[other].push(PeerKey { server: one as u16, key });
        }
    }
    Ok(keys)
}

fn secret() -> Result<Secret> {
    let mut bytes = Zeroizing::new([0; 32]);
    random(&mut *bytes)?;
    Ok(Secret::new(*bytes))
}

fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| anyhow!("the system gives no random bytes: {error}"))
}

fn write_keys(path: &Path, keys: &impl Serialize) -> Result<()> {
    let text = Zeroizing::new(toml::to_string(keys).context("cannot write a key file")?);
    // Nobody else may read it at any moment, so the mode is given as the file is made.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use shared_registers::cluster::load_keys;

    use super::*;

    fn wanted(f: usize) -> Wanted {
        let durability = Durability::Process;
        Wanted {
            f,
            clients: 3,
            application: "log",
            trusted: None,
            payload: None,
            durability,
            spin_us: 0,
        }
    }

    fn same(a: &Secret, b: &Secret) -> bool {
        a.mac_key().verify(&[b"x"], &b.mac_key().mac(&[b"x"]).0)
    }

    #[test]
    fn a_new_cluster_can_be_read_back_and_is_private() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("c");
        create(&dir, &wanted(2)).unwrap();
        let paths = Paths::new(&dir);
        let cluster = Cluster::load(&paths).unwrap();
        assert_eq!((cluster.n(), cluster.clients, cluster.application.as_str()), (5, 3, "log"));
        assert_eq!(cluster.servers[1].trusted.ip().to_string(), "127.0.1.2");
        assert_eq!(cluster.servers[4].payload.ip().to_string(), "127.0.2.5");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&paths.keys())), (0o700, 0o700));
        let keys: Vec<_> = fs::read_dir(paths.keys()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(keys.len(), 5 + 5 + 3 + 1);
        assert!(keys.iter().all(|path| mode(path) == 0o600));
        let left: Vec<_> = fs::read_dir(temp.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "something half-made is left");
    }

    #[test]
    fn every_key_is_the_same_at_both_ends_and_no_other() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("c");
        create(&dir, &wanted(1)).unwrap();
        let paths = Paths::new(&dir);
        let hosts: Vec<HostKeys> =
            ServerId::all(3).map(|i| load_keys(&paths.host_keys(i)).unwrap()).collect();
        let guests: Vec<GuestKeys> =
            ServerId::all(3).map(|i| load_keys(&paths.guest_keys(i)).unwrap()).collect();
        let operator: OperatorKeys = load_keys(&paths.operator_keys()).unwrap();
        let peer = |keys: &[PeerKey], id: usize| {
            keys.iter().find(|k| usize::from(k.server) == id).unwrap().key.clone()
        };
        let mut all = Vec::new();
        for i in 0..3 {
            assert!(same(&operator.replies[i], &guests[i].operator));
            all.push(operator.replies[i].clone());
            for j in i + 1..3 {
                assert!(same(&peer(&hosts[i].links, j), &peer(&hosts[j].links, i)));
                assert!(same(&peer(&guests[i].forwards, j), &peer(&guests[j].forwards, i)));
                all.extend([peer(&hosts[i].links, j), peer(&guests[i].forwards, j)]);
            }
        }
        for c in 0..3 {
            let client: ClientKeys = load_keys(&paths.client_keys(ClientId(c as u32))).unwrap();
            for i in 0..3 {
                assert!(same(&client.orders[i], &hosts[i].orders[c]));
                assert!(same(&client.replies[i], &guests[i].replies[c]));
            }
            all.extend(client.orders.iter().chain(&client.replies).cloned());
        }
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| !same(a, b)), "a key serves two purposes");
        }
    }

    #[test]
    fn an_existing_cluster_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("c");
        fs::create_dir(&dir).unwrap();
        create(&dir, &wanted(1)).expect("an empty folder is as good as none");
        let before = fs::read(dir.join("cluster.toml")).unwrap();
        let error = create(&dir, &wanted(1)).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(fs::read(dir.join("cluster.toml")).unwrap(), before);
        fs::write(temp.path().join("file"), "mine").unwrap();
        assert!(create(&temp.path().join("file"), &wanted(1)).is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2, "something half-made is left");
    }

    #[test]
    fn wrong_addresses_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("c");
        let parse = |list: &[&str]| Some(list.iter().map(|a| a.parse().unwrap()).collect());
        let error_of = |trusted, payload| {
            let wanted = Wanted { trusted, payload, ..wanted(1) };
            create(&dir, &wanted).map(|_| ()).unwrap_err().to_string()
        };
        let two = parse(&["127.0.0.1:1", "127.0.0.1:2"]);
        assert!(error_of(two, None).contains("needs 3 addresses"));
        let three = parse(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        assert!(error_of(three.clone(), three).contains("given twice"));
        let zero = parse(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:0"]);
        assert!(error_of(None, zero).contains("no port"));
        assert!(!dir.exists());
    }
}
