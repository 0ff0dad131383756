//! Every target's corpus, changed copies of it, and random bytes: what the fuzzer found once stays
//! found, without a fuzzer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use fuzz_bodies::TARGETS;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Random inputs of each target: half of them changed corpus files.
const RANDOM_INPUTS: usize = 2000;
const MAX_RANDOM_BYTES: u64 = 600;

/// The target's corpus files, by name, in the same order everywhere.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Runs a body; if it panics, says what to do first.
fn run(target: &str, what: &str, body: fn(&[u8]), bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(bytes))) {
        let input: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("target {target} fails on {what}; to go on, store it and run it alone:");
        eprintln!("echo {input} | xxd -r -p > finding");
        eprintln!("RUSTC_BOOTSTRAP=1 cargo fuzz run {target} finding");
        resume_unwind(panic);
    }
}

/// A corpus file with a few bytes changed, cut off, or followed by another's.
fn changed(random: &mut ChaCha8Rng, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut pick = |below: usize| (random.next_u64() % below.max(1) as u64) as usize;
    let mut bytes = files[pick(files.len())].1.clone();
    match pick(4) {
        0 => bytes.truncate(pick(bytes.len())),
        1 => bytes.extend_from_slice(&files[pick(files.len())].1),
        _ => {}
    }
    for _ in 0..pick(4) {
        let at = pick(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = pick(256) as u8;
        }
    }
    bytes
}

#[test]
fn the_corpus_breaks_nothing() {
    for (target, body) in TARGETS {
        let files = corpus(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        for (name, bytes) in files {
            run(target, &format!("fuzz/corpus/{target}/{name}"), *body, &bytes);
        }
    }
}

#[test]
fn random_bytes_break_nothing() {
    for (target, body) in TARGETS {
        let (files, mut random) = (corpus(target), ChaCha8Rng::seed_from_u64(1));
        for i in 0..RANDOM_INPUTS {
            let bytes = if i % 2 == 0 {
                changed(&mut random, &files)
            } else {
                let mut bytes = vec![0; (random.next_u64() % MAX_RANDOM_BYTES) as usize];
                random.fill_bytes(&mut bytes);
                bytes
            };
            run(target, &format!("random input {i}"), *body, &bytes);
        }
    }
}
