//! A cluster whose sequencer proposes wrongly on purpose, for the paper's Figure 3b.
//!
//! The guest that does it is another program: this one, built with the feature `faulty-sequencer`,
//! in a target folder of its own. One batch in ten that it proposes is wrong, and ends its term.
//! With one such server of three the next sequencer is a correct one and stays; with all of them
//! each has its turns for ever, which is no case that the protocol promises anything for, but this
//! fault costs no more than the term.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use shared_registers::ids::ServerId;

use super::cpu::Meter;
use super::own::{Own, Spec};
use super::payload::Shape;
use super::run::{Group, Load};
use super::table::Row;
use super::tally::Tally;
use crate::cli::{FAULTY_VERSION, FaultyServers};
use crate::exit::bad_input;
use crate::output;

/// Requests that are not measured: hosts that have just started connect meanwhile. Fewer than make
/// the first wrong proposal.
const WARMUP: u64 = 5;

/// Makes sure that a program is such a build.
pub(crate) fn check(program: &Path) -> Result<()> {
    let at = program.display();
    let said = Command::new(program).arg("--version").output();
    let said = said.map_err(|error| bad_input(format!("--faulty {at} cannot be run: {error}")))?;
    if String::from_utf8_lossy(&said.stdout).contains(FAULTY_VERSION) {
        return Ok(());
    }
    Err(bad_input(format!(
        "--faulty {at} is no build with a faulty sequencer; make one with `cargo build --release \
         --locked --features faulty-sequencer --target-dir target/faulty`"
    )))
}

/// Measures each payload on a cluster of its own, from its first requests on: so the turn of a
/// single faulty server is among what is measured.
pub(crate) async fn measure(
    program: &Path,
    servers: FaultyServers,
    shapes: &[Shape],
    load: Load,
) -> Result<Vec<Row>> {
    let mut spec = Spec::new(1, 1);
    let n = 2 * spec.f + 1;
    let faulty = match servers {
        FaultyServers::One => 1,
        FaultyServers::All => n,
    };
    spec.programs = ServerId::all(n).take(faulty).map(|id| (id, program.to_owned())).collect();
    let scenario = format!("faulty sequencer, {faulty} of {n} servers");
    let mut rows = Vec::new();
    for shape in shapes {
        let own = Own::start(&spec).await?;
        shape.check(&own.operator.cluster)?;
        let group = Group::connect(own.dir(), &own.operator.cluster, (0, 1), Meter::of(&own))?;
        let mut tally = Tally::new(*shape, 1, load.outstanding);
        group.measure(*shape, Load { warmup: WARMUP, ..load }, &mut tally).await?;
        let said = own.ask().await;
        let (terms, wrong) = (said.newest_term()?, said.sum("wrong_proposals"));
        output::print(&format!(
            "{scenario}, {shape}: {wrong} wrong proposals, {terms} terms left"
        ))?;
        rows.push(tally.row(&scenario));
        own.close()?;
    }
    Ok(rows)
}
