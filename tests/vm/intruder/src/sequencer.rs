//! The sequencer of term 0, which proposes what it must not.

use std::io::Write;
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result};
use guest_replica::Options;
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::ids::{Batch, Seq, Term};
use shared_registers::record::{Body, Propose};

use crate::registers::{Devices, devices, wait_for};

/// As soon as anybody connects to its payload address: a batch without orders, which no term but its
/// opening may have (V2), and term 0 has none. Its host lets it pass: hosts know nothing of terms.
pub(crate) fn attack(options: &Options) -> Result<()> {
    let Devices { geometry, read, write, mut bell } = devices(options)?;
    let mut registers = GuestRegisters::attach(geometry, read, write)?;
    let cluster = Cluster::load(&Paths::new(&options.dir))?;
    let listener = TcpListener::bind(cluster.server(options.id)?.1.payload)?;
    println!("intruder: waits to be told");
    listener.accept()?;
    let mut body = Vec::new();
    let (term, batch) = (Term(0), Batch(0));
    Body::Propose(Propose { term, batch, evidence: vec![], orders: vec![] }).encode(&mut body);
    registers.write(Seq(1), &body).context("the write file is full")?;
    let _ = bell.write(&[1]);
    wait_for("the own record", || match registers.next(geometry.server) {
        Next::Record(_) => Some(()),
        _ => None,
    })?;
    println!("intruder: proposed what it must not");
    loop {
        thread::park();
    }
}
