//! What a client must be told: the cluster, who it is, its keys, and how long to wait.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::client_session::MAX_IN_FLIGHT;
use protocol::limits::bytes_in_flight;
use protocol::messages::ToClient;
use shared_registers::cluster::{ClientKeys, Cluster, ConfigError, Paths, load_keys};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{ClientId, ServerId};

/// Is shown every message of every server, as it comes and before anything is believed.
pub type Witness = Arc<dyn Fn(ServerId, &ToClient) + Send + Sync>;

/// Everything that [`Client::connect`](crate::Client::connect) needs. The public fields may be
/// changed before that.
#[derive(Clone)]
pub struct ClientConfig {
    /// A request that is not answered for so long fails.
    pub deadline: Duration,
    /// `T_resend`: an order that is unanswered for so long goes to all servers.
    pub resend: Duration,
    /// `T_fetch`: bytes that are missing are asked for so long after `f + 1` servers agreed.
    pub fetch: Duration,
    /// Most requests in flight; more wait for their turn. At least 1, and at most
    /// [`MAX_IN_FLIGHT`]: servers keep so many replies for a client that asks again.
    pub max_in_flight: usize,
    /// Most bytes of their payloads; a larger one goes alone.
    pub(crate) max_bytes_in_flight: usize,
    /// Who is to see what each single server says: for those who keep an account of it.
    pub witness: Option<Witness>,
    pub(crate) client: ClientId,
    pub(crate) cluster: ClusterId,
    pub(crate) f: usize,
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) order_keys: Vec<MacKey>,
    pub(crate) reply_keys: Vec<MacKey>,
    pub(crate) max_payload_bytes: usize,
    pub(crate) key_file: String,
}

impl ClientConfig {
    /// Reads `DIR/cluster.toml` and the client's key file.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, the client does not exist, or its keys are not as many as the
    /// servers.
    pub fn load(dir: &Path, client: u32) -> Result<ClientConfig, ConfigError> {
        let paths = Paths::new(dir);
        let cluster = Cluster::load(&paths)?;
        let client = cluster.client(client)?;
        let keys = load_keys(&paths.client_keys(client))?;
        ClientConfig::new(&cluster, client, &keys)
    }

    /// The configuration of a client whose keys are at hand.
    ///
    /// # Errors
    ///
    /// The keys are not as many as the servers.
    pub fn new(
        cluster: &Cluster,
        client: ClientId,
        keys: &ClientKeys,
    ) -> Result<ClientConfig, ConfigError> {
        let key_file = format!("keys/client-{client}.key");
        let (orders, replies, n) = (keys.orders.len(), keys.replies.len(), cluster.n());
        if orders != n || replies != n {
            return Err(ConfigError(format!(
                "{key_file} holds {orders} order keys and {replies} reply keys, and cluster.toml \
                 has {n} servers: use the key file that was made with this cluster"
            )));
        }
        Ok(ClientConfig {
            deadline: Duration::from_secs(15),
            resend: Duration::from_millis(cluster.timing.resend_ms),
            fetch: Duration::from_millis(20),
            max_in_flight: MAX_IN_FLIGHT,
            max_bytes_in_flight: bytes_in_flight(cluster.clients),
            witness: None,
            client,
            cluster: cluster.id(),
            f: cluster.f,
            servers: cluster.servers.iter().map(|server| server.payload).collect(),
            order_keys: keys.orders.iter().map(|key| key.mac_key()).collect(),
            reply_keys: keys.replies.iter().map(|key| key.mac_key()).collect(),
            max_payload_bytes: cluster.limits.max_payload_bytes,
            key_file,
        })
    }
}
