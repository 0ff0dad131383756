//! `difato listen`: every message in its order, a line each.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::Message;
use serde::Serialize;
use shared_registers::ids::OrderNumber;

use crate::cli::ListenArgs;
use crate::escape::escape;
use crate::output::{self, Output};
use crate::session::{self, Interrupt};

/// What `--json` prints of a message. The names are those of the JSON object.
#[derive(Serialize)]
struct Line {
    order: u64,
    client: u32,
    session: u64,
    count: u64,
    time_us: u64,
    payload: String,
}

/// Runs `difato listen`.
pub(crate) fn run(args: ListenArgs) -> Result<()> {
    session::runtime()?.block_on(async {
        let mut interrupt = Interrupt::new()?;
        tokio::select! {
            done = listen(&args) => done,
            () = interrupt.came() => Ok(()),
            () = output::reader_gone() => Ok(()),
        }
    })
}

async fn listen(args: &ListenArgs) -> Result<()> {
    let client = session::connect(&args.dir, args.client)?;
    let mut messages = client.subscribe(OrderNumber(args.from));
    let mut output = Output::new();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = messages.next().await?;
        output.line(&if args.json { json(&message)? } else { text(&message) })?;
        output.flush()?;
        left -= 1;
    }
    Ok(())
}

fn text(message: &Message) -> String {
    format!("{} {} {}", message.order, message.client, escape(&message.payload))
}

fn json(message: &Message) -> Result<String> {
    let line = Line {
        order: message.order.0,
        client: message.client.0,
        session: message.session,
        count: message.count,
        time_us: message.time.0,
        payload: STANDARD.encode(&message.payload),
    };
    serde_json::to_string(&line).context("cannot write JSON")
}
