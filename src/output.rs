//! Lines on stdout. A reader that goes away ends the command quietly instead of with a panic.

use std::io::{self, ErrorKind, StdoutLock, Write};

use anyhow::{Context, Result};

use crate::exit::OutputClosed;

/// Stdout, written in lines and flushed when its user says so.
pub(crate) struct Output(io::BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes stdout for this user alone.
    pub(crate) fn new() -> Output {
        Output(io::BufWriter::new(io::stdout().lock()))
    }

    /// Writes one line, which reaches the reader at the next [`flush`](Self::flush).
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        closed(self.0.write_all(text.as_bytes()).and_then(|()| self.0.write_all(b"\n")))
    }

    /// Hands over what was written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        closed(self.0.flush())
    }
}

/// Prints some text and a line break at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut output = Output::new();
    output.line(text)?;
    output.flush()
}

fn closed(done: io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(OutputClosed))
        }
        done => done.context("cannot write to stdout"),
    }
}
