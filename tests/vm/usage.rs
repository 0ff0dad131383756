//! What the scripts and the command say to whoever asks, or asks for what cannot be. Needs nothing.

use std::process::{Command, Output};

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

/// Exit code 2 and one sentence, which says so much.
#[track_caller]
fn refused(output: &Output, says: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(says), "{said}");
}

#[test]
fn every_script_says_what_it_does() {
    let scripts = ["vm/build-image", "vm/cluster", "vm/demo", "vm/network", "vm/run-guest"];
    for script in scripts.iter().chain(&["tests/vm/build-intruder"]) {
        let help = run(script, &["--help"]);
        assert!(help.status.success(), "{script}");
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(text.starts_with("usage: ") && text.lines().count() > 3, "{script}: {text}");
        let wrong = run(script, &["--nonsense"]);
        refused(&wrong, "--help tells");
        assert_eq!(wrong.stderr.iter().filter(|byte| **byte == b'\n').count(), 1, "{script}");
    }
}

#[test]
fn what_cannot_be_is_refused_in_a_sentence() {
    refused(&run("vm/run-guest", &["--accel", "magic"]), "--accel magic can be kvm, tcg or auto");
    refused(&run("vm/run-guest", &["--id"]), "--id needs a value");
    refused(&run("vm/network", &["up", "--name", "Much-Too-Long"]), "--name Much-Too-Long");
    refused(&run("vm/cluster", &["up"]), "needs the cluster's folder");
    refused(&run("vm/demo", &["--requests", "many"]), "--requests many is not a number");
    refused(&run("vm/build-image", &["--kernel-deb", "/no/such"]), "there is no file /no/such");
}

#[test]
fn nobody_makes_a_machine_of_a_process_that_is_none() {
    let difato = env!("CARGO_BIN_EXE_difato");
    refused(&run(difato, &["guest-replica", "--vm"]), "init of a guest's image");
    refused(&run(difato, &["guest-replica"]), "--dir");
    refused(&run(difato, &["guest-replica", "--vm", "--id", "1"]), "--id");
}
