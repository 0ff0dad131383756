//! What a guest needs before it can begin: its cluster, its keys, its address.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocol::messages::max_frame_bytes;
use protocol::replica::Config;
use shared_registers::cluster::{Cluster, Durability, GuestKeys, Paths, load_keys};
use shared_registers::crypto::MacKey;
use shared_registers::ids::{Micros, ServerId};

use crate::connections::{Identity, Keys};
use crate::error::GuestError;
use crate::limits::MAX_CONNECTIONS;
use crate::peers::Peers;
use crate::store::Store;

/// A guest's place in its cluster.
pub(crate) struct Setup {
    pub(crate) me: ServerId,
    pub(crate) paths: Paths,
    pub(crate) cluster: Cluster,
    address: SocketAddr,
    keys: GuestKeys,
}

impl Setup {
    /// Loads `DIR/cluster.toml` and this guest's keys.
    pub(crate) fn load(dir: &Path, id: u16) -> Result<Setup, GuestError> {
        let paths = Paths::new(dir);
        let cluster = Cluster::load(&paths)?;
        let (me, addresses) = cluster.server(id)?;
        let path = paths.guest_keys(me);
        let keys: GuestKeys = load_keys(&path)?;
        check_keys(&keys, &cluster, me).map_err(|why| GuestError::Keys { path, why })?;
        Ok(Setup { me, paths, cluster, address: addresses.payload, keys })
    }

    /// Listens on the server's payload address, and on nothing else.
    pub(crate) fn listen(&self) -> Result<TcpListener, GuestError> {
        // The rest is for register files, bell, links to other guests, and what the caller has open.
        let allowed = raise_open_files(MAX_CONNECTIONS as u64 * 2);
        if allowed <= MAX_CONNECTIONS as u64 {
            tracing::warn!("at most {allowed} open files: run with a higher `ulimit -Hn`");
        }
        let bind = || {
            let listener = TcpListener::bind(self.address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        bind().map_err(|source| GuestError::Bind {
            address: self.address,
            server: self.me,
            path: self.paths.cluster_toml(),
            source,
        })
    }

    /// Opens this guest's own store of snapshots.
    pub(crate) fn store(&self) -> Result<Store, GuestError> {
        // Snapshots stand for records that are gone, and outlive what those would have.
        let sync = self.cluster.limits.durability == Durability::Disk;
        Store::open(self.paths.snapshots(self.me), self.cluster.n(), sync)
    }

    /// The core's configuration.
    pub(crate) fn config(&self) -> Config {
        let Cluster { timing, limits, .. } = &self.cluster;
        let registers = self.cluster.geometry(self.me).limits;
        Config {
            me: self.me,
            n: self.cluster.n(),
            clients: self.cluster.clients,
            cluster: self.cluster.id(),
            max_payload_bytes: limits.max_payload_bytes,
            window: limits.window,
            checkpoint_weight: registers.checkpoint_weight(),
            soft_batch_bytes: registers.soft_batch_bytes(),
            change: Micros::from_ms(timing.change_ms),
            change_cap: Micros::from_ms(timing.change_cap_ms),
            host_down: Micros::from_ms(timing.host_down_ms),
            retain_messages: limits.retain_messages,
            retain_bytes: limits.retain_bytes,
        }
    }

    /// What accepted connections need.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            me: self.me,
            cluster: self.cluster.id(),
            n: self.cluster.n(),
            max_frame: max_frame_bytes(self.cluster.limits.max_payload_bytes),
            keys: Keys {
                replies: self.keys.replies.iter().map(|key| key.mac_key()).collect(),
                operator: self.keys.operator.mac_key(),
                forwards: self.forwards(),
            },
        }
    }

    /// The links to other guests, none of them dialed yet.
    pub(crate) fn peers(&self) -> Peers {
        let addresses = self.cluster.servers.iter().map(|server| server.payload);
        let peers = addresses.zip(self.forwards()).map(|(a, key)| Some((a, key?))).collect();
        let max_frame = max_frame_bytes(self.cluster.limits.max_payload_bytes);
        Peers::new((self.me, self.cluster.id(), max_frame), peers)
    }

    fn forwards(&self) -> Vec<Option<MacKey>> {
        let mut keys = vec![None; self.cluster.n()];
        for peer in &self.keys.forwards {
            keys[usize::from(peer.server)] = Some(peer.key.mac_key());
        }
        keys
    }
}

/// Whether the key file has a key for each client and each other server; else what is wrong.
fn check_keys(keys: &GuestKeys, cluster: &Cluster, me: ServerId) -> Result<(), String> {
    if keys.replies.len() != cluster.clients as usize {
        let count = keys.replies.len();
        return Err(format!("it holds {count} reply keys for {} clients", cluster.clients));
    }
    let mut servers: Vec<u16> = keys.forwards.iter().map(|peer| peer.server).collect();
    servers.sort_unstable();
    let others = ServerId::all(cluster.n()).filter(|s| *s != me).map(|s| s.0);
    if !others.eq(servers.iter().copied()) {
        return Err(format!(
            "it holds forwarding keys for servers {servers:?}, not for each other one of {}",
            cluster.n()
        ));
    }
    Ok(())
}

/// Lets this process have so many files and connections open, or as many as the system's hard limit
/// allows. Returns how many it may have now.
pub fn raise_open_files(wanted: u64) -> u64 {
    // Where there are no limits to be read there are none to be raised.
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    let wanted = wanted.min(hard);
    if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() {
        return soft;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_raised_to_the_hard_limit_and_never_lowered() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise_open_files(1), soft);
        let more = (soft + 1).min(hard);
        assert_eq!(raise_open_files(more), more);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (more, hard));
        assert_eq!(raise_open_files(u64::MAX), hard);
    }
}
