//! `host-agent --dir DIR --id I`: the host agent of one server, and nothing else, for machines on
//! which only the trusted part is deployed.

use std::path::PathBuf;
use std::process::ExitCode;

use host_agent::{Options, run};

// What is deployed keeps every rule.
const _: () = assert!(!host_agent::canary::BUILT_IN, "the feature `canaries` is for the simulator");

const USAGE: &str = "usage: host-agent --dir DIR --id I   (DIR holds cluster.toml, I is a server)";

fn parse(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<Options, String> {
    let (mut dir, mut id) = (None, None);
    while let Some(flag) = args.next() {
        let flag = flag.to_string_lossy().into_owned();
        if flag != "--dir" && flag != "--id" {
            return Err(format!("unknown argument {flag}; {USAGE}"));
        }
        let value = args.next().ok_or_else(|| format!("{flag} needs a value; {USAGE}"))?;
        if flag == "--dir" {
            dir = Some(PathBuf::from(value));
        } else {
            let text = value.to_string_lossy();
            let number = text.parse().map_err(|_| format!("--id {text} is no server; {USAGE}"))?;
            id = Some(number);
        }
    }
    match (dir, id) {
        (Some(dir), Some(id)) => Ok(Options { dir, id }),
        (None, _) => Err(format!("--dir is missing; {USAGE}")),
        (_, None) => Err(format!("--id is missing; {USAGE}")),
    }
}

fn main() -> ExitCode {
    let outcome = parse(std::env::args_os().skip(1)).and_then(|options| {
        run(&options, &mut |level, line| eprintln!("{level:?}: {line}")).map_err(|e| e.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(2)
        }
    }
}
