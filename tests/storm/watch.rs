//! Asks every server for its status, all the time: each on its own, so that one that stands still
//! keeps nobody waiting.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::messages::Status;
use shared_registers::cluster::{OperatorKeys, load_keys};
use shared_registers::ids::{Micros, ServerId};
use tokio::sync::oneshot;

use crate::log::now;
use crate::support::Cluster;
use crate::support::clients::runtime;

/// Between two questions to a server.
const EVERY: Duration = Duration::from_millis(50);
/// So long a server has to answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// When a server was asked, and what it answered.
pub(crate) type Answer = (Micros, Status);

/// The newest answer of every server.
pub(crate) struct Watch {
    answers: Arc<Mutex<Vec<Option<Answer>>>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(cluster: &Cluster) -> Watch {
        let answers = Arc::new(Mutex::new(vec![None; cluster.n()]));
        let (end, ended) = oneshot::channel();
        let description = Arc::new(cluster.description.clone());
        let keys = cluster.folder.paths().operator_keys();
        let keys: Arc<OperatorKeys> = Arc::new(load_keys(&keys).unwrap());
        let known = answers.clone();
        let thread = thread::spawn(move || {
            runtime().block_on(async move {
                for server in ServerId::all(description.n()) {
                    let (description, keys, known) =
                        (description.clone(), keys.clone(), known.clone());
                    tokio::spawn(async move {
                        loop {
                            let asked = now();
                            let said =
                                client::query_server(&description, &keys, server, PATIENCE).await;
                            if let Ok(status) = said {
                                known.lock().unwrap()[server.index()] = Some((asked, status));
                            }
                            tokio::time::sleep(EVERY).await;
                        }
                    });
                }
                // The tasks end with the runtime.
                let _ = ended.await;
            });
        });
        Watch { answers, end: Some(end), thread: Some(thread) }
    }

    pub(crate) fn answers(&self) -> Vec<Option<Answer>> {
        self.answers.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
