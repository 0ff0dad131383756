//! What every process of a cluster must be told: `cluster.toml`, its own key file, and where in the
//! cluster's folder things lie.
//!
//! ```text
//! DIR/cluster.toml            the same for everyone, no secrets
//! DIR/keys/host-0.key ...     link keys and order keys of a host
//! DIR/keys/guest-0.key ...    reply keys and forwarding keys of a guest
//! DIR/keys/client-0.key ...   order keys and reply keys of a client
//! DIR/keys/operator.key       for `difato status`
//! DIR/registers/0/read|write  the two register files of server 0
//! DIR/registers/0/fresh       says that there were none yet
//! DIR/retired.toml            servers that are gone for good, if there are any
//! DIR/snapshots/0/            the snapshots of guest 0
//! DIR/run/bell-0              its doorbell socket
//! DIR/logs/                   one file per process
//! ```

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::crypto::{ClusterId, Secret};
use crate::ids::{ClientId, ServerId};
use crate::layout::{Geometry, is_retired};
use crate::limits::{MAX_CLIENTS, MAX_PAYLOAD_BYTES, MAX_SERVERS, RegisterLimits};

/// A client waits at most 16 times `resend_ms` before it sends an order again, and a server takes
/// one that was not sent again for a minute for abandoned.
const MAX_RESEND_MS: u64 = 3000;
/// Largest `spin_us`: who looks for longer keeps a core for nothing.
pub const MAX_SPIN_US: u64 = 10_000;

/// What is wrong with the cluster's files: a sentence that says what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// `cluster.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// 64 hexadecimal digits that name the cluster in every MAC.
    #[serde(with = "hex::serde")]
    cluster_id: [u8; 32],
    /// How many faulty servers are tolerated; there are `2f + 1`.
    pub f: usize,
    /// How many clients hold keys.
    pub clients: u32,
    /// Which application the guests run: `log` or `echo-sized`.
    pub application: String,
    /// Time-outs.
    #[serde(default)]
    pub timing: Timing,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Where the servers listen, by id.
    #[serde(rename = "server")]
    pub servers: Vec<ServerAddresses>,
}

/// `[timing]` of `cluster.toml`, in milliseconds where a name does not say otherwise.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// `T_resend`: a client sends an order to all servers when it is unanswered for so long.
    pub resend_ms: u64,
    /// `T_change`: a replica suspects a sequencer that leaves an order undelivered for so long.
    pub change_ms: u64,
    /// `T_change` doubles per term up to this.
    pub change_cap_ms: u64,
    /// A sequencer whose host's link is broken for so long is suspected.
    pub host_down_ms: u64,
    /// Hosts exchange their stream lengths so often.
    pub exchange_ms: u64,
    /// For how many microseconds host agents and guests look for work before they sleep: waking
    /// one up costs more than that where there is a core for each.
    pub spin_us: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            resend_ms: 300,
            change_ms: 600,
            change_cap_ms: 20_000,
            host_down_ms: 50,
            exchange_ms: 25,
            spin_us: 0,
        }
    }
}

/// `[limits]` of `cluster.toml`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest payload of one order.
    pub max_payload_bytes: usize,
    /// Ring of each server in a read file: a power of two. It holds the records since the last
    /// stable checkpoint and, as long as there is room, those before.
    pub ring_bytes: u64,
    /// Ring of a write file: a power of two.
    pub write_ring_bytes: u64,
    /// `W`: how many batches may be proposed past the last committed one.
    pub window: u64,
    /// How many delivered messages a guest keeps for listeners.
    pub retain_messages: usize,
    /// How many bytes of payload it keeps for them.
    pub retain_bytes: usize,
    /// What a host's records outlive before others see them (R6).
    pub durability: Durability,
}

/// What a host's records outlive before others see them (R6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Its process. When the machine goes down, all other hosts are asked.
    #[default]
    Process,
    /// Its machine: they are synced first.
    Disk,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_payload_bytes: 1 << 20,
            ring_bytes: 64 << 20,
            write_ring_bytes: 1 << 24,
            window: 64,
            retain_messages: 250_000,
            retain_bytes: 256 << 20,
            durability: Durability::Process,
        }
    }
}

/// `[[server]]` of `cluster.toml`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerAddresses {
    /// `0..n`, in order.
    pub id: u16,
    /// Where its host listens on the trusted network.
    pub trusted: SocketAddr,
    /// Where its guest listens on the payload network.
    pub payload: SocketAddr,
}

/// A key that a server shares with another.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerKey {
    /// The other server.
    pub server: u16,
    /// The key.
    pub key: Secret,
}

/// A host's key file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostKeys {
    /// Order keys, by client.
    pub orders: Vec<Secret>,
    /// Link keys with the other hosts.
    pub links: Vec<PeerKey>,
}

/// A guest's key file. No order key is in it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestKeys {
    /// Reply keys, by client.
    pub replies: Vec<Secret>,
    /// For the operator's questions.
    pub operator: Secret,
    /// For forwarding orders to the other guests.
    pub forwards: Vec<PeerKey>,
}

/// A client's key file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientKeys {
    /// Order keys, by server.
    pub orders: Vec<Secret>,
    /// Reply keys, by server.
    pub replies: Vec<Secret>,
}

/// The operator's key file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorKeys {
    /// Reply keys, by server.
    pub replies: Vec<Secret>,
}

impl Cluster {
    /// A description of a new cluster, with default timing and limits.
    pub fn new(
        id: ClusterId,
        f: usize,
        clients: u32,
        application: &str,
        servers: Vec<ServerAddresses>,
    ) -> Cluster {
        Cluster {
            cluster_id: id.0,
            f,
            clients,
            application: application.to_owned(),
            timing: Timing::default(),
            limits: Limits::default(),
            servers,
        }
    }

    /// Reads and checks `DIR/cluster.toml`.
    pub fn load(paths: &Paths) -> Result<Cluster, ConfigError> {
        let path = paths.cluster_toml();
        let text = fs::read_to_string(&path).map_err(|error| {
            ConfigError(format!(
                "cannot read {}: {error}; make a cluster with `difato cluster init`",
                path.display()
            ))
        })?;
        let cluster = Cluster::parse(&text)
            .map_err(|why| ConfigError(format!("{}: {why}; mend it there", path.display())))?;
        Ok(cluster)
    }

    /// Reads and checks the text of a `cluster.toml`.
    pub fn parse(text: &str) -> Result<Cluster, String> {
        let cluster: Cluster = toml::from_str(text).map_err(|error| name_key(text, &error))?;
        cluster.check()?;
        Ok(cluster)
    }

    fn check(&self) -> Result<(), String> {
        let n = self.n();
        if self.f == 0 || n > MAX_SERVERS {
            return Err(format!("f = {} is not from 1 to {}", self.f, (MAX_SERVERS - 1) / 2));
        }
        if self.servers.len() != n {
            let count = self.servers.len();
            return Err(format!(
                "f = {} needs {n} [[server]] tables, and there are {count}",
                self.f
            ));
        }
        for (i, server) in self.servers.iter().enumerate() {
            if usize::from(server.id) != i {
                return Err(format!(
                    "[[server]] table {i} has id = {}: ids are 0 to {}",
                    server.id,
                    n - 1
                ));
            }
        }
        if self.clients == 0 || self.clients as usize > MAX_CLIENTS {
            return Err(format!("clients = {} is not from 1 to {MAX_CLIENTS}", self.clients));
        }
        if self.limits.max_payload_bytes > MAX_PAYLOAD_BYTES {
            let bytes = self.limits.max_payload_bytes;
            return Err(format!("max_payload_bytes = {bytes} is over {MAX_PAYLOAD_BYTES}"));
        }
        let t = self.timing;
        let positive = [
            ("resend_ms", t.resend_ms),
            ("change_ms", t.change_ms),
            ("change_cap_ms", t.change_cap_ms),
            ("host_down_ms", t.host_down_ms),
            ("exchange_ms", t.exchange_ms),
            ("window", self.limits.window),
        ];
        for (name, value) in positive {
            if !(1..=1_000_000_000).contains(&value) {
                return Err(format!("{name} = {value} is not from 1 to 1000000000"));
            }
        }
        if t.change_ms < 4 * t.exchange_ms {
            let (change, exchange) = (t.change_ms, t.exchange_ms);
            return Err(format!(
                "change_ms = {change} is less than four times exchange_ms = {exchange}: hosts that \
                 are well would look silent"
            ));
        }
        if t.spin_us > MAX_SPIN_US {
            let spin = t.spin_us;
            return Err(format!("spin_us = {spin} is over {MAX_SPIN_US}"));
        }
        if t.resend_ms > MAX_RESEND_MS {
            let resend = t.resend_ms;
            return Err(format!("resend_ms = {resend} is over {MAX_RESEND_MS}"));
        }
        self.geometry(ServerId(0)).check()
    }

    /// The cluster's id.
    pub fn id(&self) -> ClusterId {
        ClusterId(self.cluster_id)
    }

    /// How many servers there are.
    pub fn n(&self) -> usize {
        2 * self.f + 1
    }

    /// The shape of one server's register files.
    pub fn geometry(&self, server: ServerId) -> Geometry {
        let Limits { max_payload_bytes, ring_bytes, write_ring_bytes, .. } = self.limits;
        let limits = RegisterLimits { max_payload_bytes, ring_bytes, write_ring_bytes };
        Geometry { n: self.n(), server, cluster: self.id(), limits }
    }

    /// Where a server listens, if it exists.
    pub fn server(&self, id: u16) -> Result<(ServerId, ServerAddresses), ConfigError> {
        match self.servers.get(usize::from(id)) {
            Some(addresses) => Ok((ServerId(id), *addresses)),
            None => Err(ConfigError(format!(
                "unknown server {id}: cluster.toml names servers 0 to {}",
                self.n() - 1
            ))),
        }
    }

    /// Whether a client exists.
    pub fn client(&self, id: u32) -> Result<ClientId, ConfigError> {
        if id < self.clients {
            return Ok(ClientId(id));
        }
        let last = self.clients - 1;
        Err(ConfigError(format!("unknown client {id}: cluster.toml names clients 0 to {last}")))
    }
}

/// What is wrong with the text, in a sentence that names the line and its key.
fn name_key(text: &str, error: &toml::de::Error) -> String {
    let what = error.message();
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return what.to_owned();
    };
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) => format!("line {number}, {}: {what}", key.trim()),
        // What is missing has no line of its own.
        None if what.starts_with("missing") => what.to_owned(),
        None => format!("line {number}: {what}"),
    }
}

/// `retired.toml`: which servers an operator has retired (R6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// One table for each.
    #[serde(default)]
    pub retired: Vec<RetiredServer>,
}

/// `[[retired]]` of `retired.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredServer {
    /// Which server.
    pub id: u16,
    /// Its incarnations below this are over. Odd: no host ever is the incarnation of this number.
    pub below: u32,
}

impl Retired {
    /// Reads `DIR/retired.toml`; without one nobody is retired.
    pub fn load(paths: &Paths) -> Result<Retired, ConfigError> {
        let path = paths.retired();
        let text = match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.to_string()),
        };
        let parse = |text: String| toml::from_str(&text).map_err(|error| name_key(&text, &error));
        let retired: Result<Retired, String> = text.and_then(parse);
        match retired {
            Ok(list) if list.retired.iter().all(|server| is_retired(server.below)) => Ok(list),
            Ok(_) => Err("a `below` in it is even".to_owned()),
            Err(why) => Err(why),
        }
        .map_err(|why| {
            let at = path.display();
            ConfigError(format!("{at}: {why}; only `difato retire` should write it"))
        })
    }
}

/// Where things lie in a cluster's folder.
#[derive(Clone, Debug)]
pub struct Paths(PathBuf);

impl Paths {
    /// The paths of the cluster in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Paths {
        Paths(dir.into())
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The cluster's description.
    pub fn cluster_toml(&self) -> PathBuf {
        self.0.join("cluster.toml")
    }

    /// The folder of the key files.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// A host's key file.
    pub fn host_keys(&self, id: ServerId) -> PathBuf {
        self.keys().join(format!("host-{id}.key"))
    }

    /// A guest's key file.
    pub fn guest_keys(&self, id: ServerId) -> PathBuf {
        self.keys().join(format!("guest-{id}.key"))
    }

    /// A client's key file.
    pub fn client_keys(&self, id: ClientId) -> PathBuf {
        self.keys().join(format!("client-{id}.key"))
    }

    /// The operator's key file.
    pub fn operator_keys(&self) -> PathBuf {
        self.keys().join("operator.key")
    }

    /// The folder of a server's register files.
    pub fn registers(&self, id: ServerId) -> PathBuf {
        self.0.join("registers").join(id.to_string())
    }

    /// A server's read file.
    pub fn read_file(&self, id: ServerId) -> PathBuf {
        self.registers(id).join("read")
    }

    /// What says that a server has not had register files yet (R6): without it, and without them,
    /// they were lost.
    pub fn fresh(&self, id: ServerId) -> PathBuf {
        self.registers(id).join("fresh")
    }

    /// The list of retired servers.
    pub fn retired(&self) -> PathBuf {
        self.0.join("retired.toml")
    }

    /// A server's write file.
    pub fn write_file(&self, id: ServerId) -> PathBuf {
        self.registers(id).join("write")
    }

    /// The folder where a guest keeps its snapshots: in its own memory, if it is a virtual machine.
    pub fn snapshots(&self, id: ServerId) -> PathBuf {
        self.0.join("snapshots").join(id.to_string())
    }

    /// The folder of the doorbell sockets.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// A server's doorbell socket.
    pub fn bell(&self, id: ServerId) -> PathBuf {
        self.run().join(format!("bell-{id}"))
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
}

/// Reads a key file, which must exist and be readable by its owner alone.
pub fn load_keys<K: DeserializeOwned>(path: &Path) -> Result<K, ConfigError> {
    let at = path.display();
    let meta = fs::metadata(path)
        .map_err(|error| ConfigError(format!("cannot read the key file {at}: {error}")))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigError(format!(
            "the key file {at} can be read by others (mode {mode:o}): run `chmod 600 {at}`, and \
             make new keys if others may have read it"
        )));
    }
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("cannot read the key file {at}: {error}")))?;
    parse_keys(&text).map_err(|why| ConfigError(format!("the key file {at} is damaged: {why}")))
}

/// Reads the text of a key file. What it says of a wrong one quotes nothing of it.
pub fn parse_keys<K: DeserializeOwned>(text: &str) -> Result<K, String> {
    // A parse error would quote the line, and the line holds a key.
    toml::from_str(text).map_err(|error: toml::de::Error| hide_keys(error.message()))
}

/// The message without its long words: what it quotes of a damaged file may be a key.
fn hide_keys(message: &str) -> String {
    let words = message.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    words.map(|word| if word.len() > 15 { "..." } else { word }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> String {
        let servers = (0..3)
            .map(|id| ServerAddresses {
                id,
                trusted: format!("127.0.1.{}:1", id + 1).parse().unwrap(),
                payload: format!("127.0.2.{}:1", id + 1).parse().unwrap(),
            })
            .collect();
        let cluster = Cluster::new(ClusterId([7; 32]), 1, 4, "log", servers);
        toml::to_string(&cluster).unwrap()
    }

    #[test]
    fn a_description_comes_back_as_it_went() {
        let cluster = Cluster::parse(&sample()).unwrap();
        assert_eq!((cluster.f, cluster.n(), cluster.id()), (1, 3, ClusterId([7; 32])));
    }

    #[test]
    fn a_wrong_key_is_named() {
        let cases = [
            ("f = 1", "f = 40", "f = 40"),
            ("f = 1", "f = 2", "[[server]]"),
            ("f = 1", "g = 1", "g"),
            ("clients = 4", "clients = 0", "clients = 0"),
            ("clients = 4", "clients = \"x\"", "clients: "),
            ("clients = 4", "clients = -4", "clients: "),
            ("window = 64", "window = \"many\"", "window: "),
            ("f = 1", "f = ", "f: "),
            ("[timing]", "[timing", "line 6: "),
            ("window = 64", "window = 0", "window = 0"),
            ("window = 64", "windo = 64", ", windo: unknown field `windo`"),
            ("f = 1\n", "", "missing field `f`"),
            ("host_down_ms = 50", "host_down_ms = 0", "host_down_ms = 0"),
            ("ring_bytes = 67108864", "ring_bytes = 1000000", "ring_bytes = 1000000"),
            ("id = 2", "id = 1", "id = 1"),
            ("change_ms = 600", "change_ms = 60", "change_ms = 60"),
            ("resend_ms = 300", "resend_ms = 30000", "resend_ms = 30000"),
            ("spin_us = 0", "spin_us = 20000", "spin_us = 20000"),
        ];
        for (from, to, named) in cases {
            let text = sample().replacen(from, to, 1);
            assert_ne!(text, sample(), "{from} is not in the sample");
            let error = Cluster::parse(&text).unwrap_err();
            assert!(error.contains(named), "{to}: {error}");
        }
    }

    #[test]
    fn key_files_must_be_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let load = || load_keys::<OperatorKeys>(&path).map(|_| ()).unwrap_err().0;
        assert!(load().contains("cannot read"));
        fs::write(&path, "replies = [\"abcd\"]").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load().contains("read by others"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load();
        assert!(error.contains("damaged") && !error.contains("abcd"), "{error}");
        // Damaged so that a key stands where a list or a name should be.
        let key = "ab".repeat(32);
        for text in [format!("replies = \"{key}\""), format!("{key} = 1")] {
            fs::write(&path, text).unwrap();
            let error = load();
            assert!(error.contains("damaged") && !error.contains("abab"), "{error}");
        }
    }
}
