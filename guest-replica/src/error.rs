//! Why a guest process stops: one sentence each, that says what, where, and what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use shared_registers::cluster::ConfigError;
use shared_registers::ids::ServerId;
use shared_registers::layout::LayoutError;

/// Why a guest process stops.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// `cluster.toml` or the key file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key file is of another cluster.
    #[error(
        "the key file {path} does not fit the cluster: {why}; make both with `difato cluster init`"
    )]
    Keys {
        /// The key file.
        path: PathBuf,
        /// What is missing or too much.
        why: String,
    },
    /// The application's name means nothing.
    #[error(
        "unknown application = {name:?} in {path}: it can be \"log\", \"echo-sized\" or \"kv\""
    )]
    Application {
        /// The name.
        name: String,
        /// `cluster.toml`.
        path: PathBuf,
    },
    /// The payload address cannot be listened on.
    #[error(
        "cannot listen on {address}, server {server}'s payload address in {path}: {source}; free \
         the address or change it there"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Whose.
        server: ServerId,
        /// `cluster.toml`.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A register file cannot be opened or mapped.
    #[error("cannot map the register file {path}: {source}; it must be open to this user")]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A register file is of another server, cluster or version.
    #[error(
        "the register file {path} {source}; start host agent and guest with the same cluster folder"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LayoutError,
    },
    /// The guest's own folder for snapshots cannot be used.
    #[error("cannot keep snapshots in {path}: {source}; it must be a folder of this user's")]
    Store {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What writes the snapshots is gone.
    #[error(
        "the thread that keeps snapshots in {path} has died, and without it this server claims no \
         checkpoint; start this guest again"
    )]
    StoreThread {
        /// The folder.
        path: PathBuf,
    },
    /// The snapshot that `f + 1` servers vouch for is none that this server can start from.
    #[error(
        "the cluster's stable snapshot does not fit {path} or the application; every server must \
         run the same cluster.toml and the same application"
    )]
    Snapshot {
        /// `cluster.toml`.
        path: PathBuf,
    },
    /// The read file holds what no host agent writes.
    #[error(
        "the register file {path} holds a damaged record of stream {writer}; restart the host \
         agent, which checks its file, and then this guest"
    )]
    Damaged {
        /// The read file.
        path: PathBuf,
        /// Which stream.
        writer: ServerId,
    },
    /// The system refuses something that a guest cannot do without.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl GuestError {
    pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> GuestError {
        move |source| GuestError::System { what, source }
    }
}
