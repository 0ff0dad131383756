//! A cluster of one's own for one measurement: real processes in a temporary folder.
//!
//! Whichever way the measurement ends (done, failed, Ctrl-C), the processes die first and then the
//! folder goes: [`Own`] does both as it is dropped, and [`run`] drops it when a signal comes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use shared_registers::cluster::Durability;
use tempfile::TempDir;

use crate::cli::ApplicationName;
use crate::init::{self, Wanted};
use crate::session::{self, Interrupt, Operator};
use crate::supervisor::{Programs, Supervisor};
use crate::up;

/// What the cluster shall be. Its application is `echo-sized`.
pub(crate) struct Spec {
    /// How many faulty servers it tolerates.
    pub(crate) f: usize,
    /// How many clients get keys.
    pub(crate) clients: u32,
    /// What a host's records outlive before others see them.
    pub(crate) durability: Durability,
    /// Guests that run another program than this one.
    pub(crate) programs: Programs,
}

impl Spec {
    /// A cluster of 2`f`+1 servers with keys for `clients`, durability `process`.
    pub(crate) fn new(f: usize, clients: u32) -> Spec {
        Spec { f, clients, durability: Durability::Process, programs: Programs::new() }
    }
}

/// A cluster that runs. Dropped, its processes are killed and its folder is removed.
pub(crate) struct Own {
    /// Its processes. The first field: they must be dead before their folder goes.
    pub(crate) supervisor: Supervisor,
    /// Who may ask the servers how they are; has the cluster's description too.
    pub(crate) operator: Operator,
    dir: PathBuf,
    folder: TempDir,
}

impl Own {
    /// Makes a cluster, starts it, and waits until all its servers serve. To be called on the main
    /// thread (see [`Supervisor::start`]).
    pub(crate) async fn start(spec: &Spec) -> Result<Own> {
        let folder = tempfile::Builder::new()
            .prefix("difato-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let dir = folder.path().join("cluster");
        let wanted = Wanted {
            f: spec.f,
            clients: spec.clients,
            application: ApplicationName::EchoSized.name(),
            trusted: None,
            payload: None,
            durability: spec.durability,
        };
        let cluster = init::create(&dir, &wanted)?;
        let operator = Operator::load(&dir)?;
        let supervisor = Supervisor::start_with(&dir, &cluster, &spec.programs)?;
        let mut own = Own { supervisor, operator, dir, folder };
        up::until_serving(&mut own.supervisor, &own.operator).await?;
        Ok(own)
    }

    /// The cluster's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it. It is an error if a process has died that was not killed on purpose, or if the
    /// folder cannot be removed.
    pub(crate) fn close(mut self) -> Result<()> {
        let deaths: Vec<String> = self.supervisor.deaths().iter().map(|d| d.to_string()).collect();
        ensure!(deaths.is_empty(), "{}", deaths.join("; "));
        // Not told to stop but killed: the files that they would sync first are about to be removed.
        drop(self.supervisor);
        self.folder.close().context("cannot remove the temporary folder")
    }
}

/// Runs work on clusters of its own. SIGINT (Ctrl-C) or SIGTERM ends it, and with it they go.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    session::runtime()?.block_on(async {
        // First of all, so that no child is left behind by a hasty Ctrl-C.
        let mut interrupt = Interrupt::new()?;
        tokio::select! {
            done = work => done,
            () = interrupt.came() => bail!("interrupted; all processes are stopped"),
        }
    })
}
