//! `difato send`: messages in, order numbers out.
//!
//! Several messages are under way at a time, and the cluster delivers one client's messages in the
//! order in which it sent them, so the numbers come in the order of the messages.

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::thread;

use anyhow::{Context, Result};
use client::{Client, Pending};
use shared_registers::cluster::{Cluster, Paths};
use tokio::sync::mpsc;

use crate::cli::SendArgs;
use crate::exit::bad_input;
use crate::output::Output;
use crate::session;

/// Messages that are under way at a time.
const OUTSTANDING: usize = 64;
/// Lines of standard input that are read ahead.
const LINES_AHEAD: usize = 64;

/// Runs `difato send`.
pub(crate) fn run(args: SendArgs) -> Result<()> {
    if args.messages.is_empty() && !args.lines {
        return Err(bad_input("nothing to send: give messages, or --lines to send stdin's lines"));
    }
    let cluster = Cluster::load(&Paths::new(&args.dir))?;
    let max_bytes = cluster.limits.max_payload_bytes;
    let (lines, mut messages) = mpsc::channel(LINES_AHEAD);
    if args.lines {
        // A read of stdin cannot be given up: it has a thread of its own that nobody waits for.
        thread::spawn(move || read_lines(std::io::stdin().lock(), max_bytes, &lines));
    } else {
        let given = args.messages;
        thread::spawn(move || {
            for message in given {
                let message = check(message.into_vec(), max_bytes);
                if lines.blocking_send(message).is_err() {
                    return;
                }
            }
        });
    }
    session::runtime()?.block_on(async {
        let client = session::connect(&args.dir, args.client)?;
        send_all(&client, &mut messages).await
    })
}

fn check(message: Vec<u8>, max_bytes: usize) -> Result<Vec<u8>> {
    let bytes = message.len();
    if bytes > max_bytes {
        return Err(bad_input(format!(
            "a message of {bytes} bytes or more is over max_payload_bytes = {max_bytes} of \
             cluster.toml"
        )));
    }
    Ok(message)
}

/// Hands on every line, without its line break, until there are no more or nobody wants them.
fn read_lines(mut input: impl BufRead, max_bytes: usize, to: &mpsc::Sender<Result<Vec<u8>>>) {
    loop {
        let mut line = Vec::new();
        // One byte more than is allowed, and the line break.
        let mut bounded = input.by_ref().take(max_bytes as u64 + 2);
        match bounded.read_until(b'\n', &mut line).context("cannot read stdin") {
            Ok(0) => return,
            Ok(_) => {
                line.pop_if(|last| *last == b'\n');
                let line = check(line, max_bytes);
                let stop = line.is_err();
                if to.blocking_send(line).is_err() || stop {
                    return;
                }
            }
            Err(error) => {
                let _ = to.blocking_send(Err(error));
                return;
            }
        }
    }
}

async fn send_all(client: &Client, messages: &mut mpsc::Receiver<Result<Vec<u8>>>) -> Result<()> {
    let mut output = Output::new();
    let mut under_way: VecDeque<Pending> = VecDeque::new();
    let mut ended = None;
    loop {
        let room = ended.is_none() && under_way.len() < OUTSTANDING;
        tokio::select! {
            biased;
            answer = async { under_way.front_mut().expect("not empty").await },
                if !under_way.is_empty() =>
            {
                under_way.pop_front();
                output.line(&answer?.order.to_string())?;
                output.flush()?;
            }
            message = messages.recv(), if room => match message {
                Some(Ok(message)) => under_way.push_back(client.submit(message).await?),
                // What was sent before is still answered.
                Some(Err(error)) => ended = Some(Err(error)),
                None => ended = Some(Ok(())),
            },
            else => return ended.unwrap_or(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], max_bytes: usize) -> Vec<Result<Vec<u8>, String>> {
        let (to, mut from) = mpsc::channel(LINES_AHEAD);
        read_lines(input, max_bytes, &to);
        drop(to);
        std::iter::from_fn(|| from.blocking_recv()).map(|l| l.map_err(|e| e.to_string())).collect()
    }

    #[test]
    fn a_message_is_a_line_without_its_break() {
        let got = lines(b"one\n\ntwo\r\n three", 100);
        let wanted = [&b"one"[..], b"", b"two\r", b" three"];
        assert_eq!(got, wanted.map(|line| Ok(line.to_vec())));
        assert!(lines(b"", 100).is_empty());
    }

    #[test]
    fn a_line_over_the_limit_ends_the_stream() {
        let got = lines(b"1234\n12345\n1\n", 4);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0], Ok(b"1234".to_vec()));
        assert!(got[1].as_ref().unwrap_err().contains("max_payload_bytes = 4"));
    }
}
