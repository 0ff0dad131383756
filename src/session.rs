//! A cluster as a client's command sees it: its files, a connection, and Ctrl-C.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use client::{Client, ClientConfig, StatusError};
use protocol::messages::Status;
use protocol::trace::Points;
use shared_registers::cluster::{Cluster, OperatorKeys, Paths, load_keys};
use shared_registers::ids::ServerId;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// What the client-side subcommands run on: one thread is all they need.
pub(crate) fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Connects as a client of the cluster in `dir`.
///
/// # Panics
///
/// Outside of a runtime.
pub(crate) fn connect(dir: &Path, client: u32) -> Result<Client> {
    Ok(Client::connect(ClientConfig::load(dir, client)?))
}

/// Ends when SIGINT (Ctrl-C) or SIGTERM comes. From the first call on neither ends the process.
pub(crate) struct Interrupt {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Interrupt {
    /// Begins to take note of the signals. Must be called within a runtime.
    pub(crate) fn new() -> Result<Interrupt> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let (int, term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        Ok(Interrupt { int, term })
    }

    /// Waits for one of them.
    pub(crate) async fn came(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// Who may ask the servers how they are.
pub(crate) struct Operator {
    /// The cluster's description.
    pub(crate) cluster: Cluster,
    keys: OperatorKeys,
}

impl Operator {
    /// Reads the cluster's description and the operator's keys.
    pub(crate) fn load(dir: &Path) -> Result<Operator> {
        let paths = Paths::new(dir);
        let cluster = Cluster::load(&paths)?;
        let keys = load_keys(&paths.operator_keys())?;
        Ok(Operator { cluster, keys })
    }

    /// Asks all servers at once. The answers come by server; each waits at most `patience`.
    pub(crate) async fn ask(&self, patience: Duration) -> Vec<Result<Status, StatusError>> {
        client::query_status(&self.cluster, &self.keys, patience).await
    }

    /// Asks one server what happened when, from its point of this number on.
    pub(crate) async fn ask_trace(
        &self,
        server: ServerId,
        from: u64,
        patience: Duration,
    ) -> Result<Points, StatusError> {
        client::query_trace(&self.cluster, &self.keys, server, from, patience).await
    }
}
