//! A bound that nobody reads bounds nothing. In a module of a crate's own the compiler says so; the
//! bounds of `protocol` and `shared-registers` are read by other crates too, so here it is looked for.

use std::fs;
use std::path::{Path, PathBuf};

const PUBLIC: [&str; 2] = ["protocol", "shared-registers"];
const READERS: [&str; 6] =
    ["client", "guest-replica", "host-agent", "protocol", "shared-registers", "."];

/// The source files under a folder, without those that hold nothing but tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let code = |file: &PathBuf| {
        file.extension().is_some_and(|end| end == "rs") && !file.ends_with("tests.rs")
    };
    let below = folders.iter().flat_map(|folder| sources(folder));
    files.iter().filter(|file| code(file)).cloned().chain(below).collect()
}

/// The words of a file's code, up to its tests, without comments.
fn words(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    let lines = lines.filter(|line| !line.trim_start().starts_with("use "));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn every_named_bound_is_read_by_somebody() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = READERS.iter().flat_map(|reader| sources(&root.join(reader).join("src")));
    let all: Vec<String> = files.flat_map(|file| words(&file)).collect();
    let (mut bounds, mut unread) = (0, Vec::new());
    for owner in PUBLIC {
        let named = words(&root.join(owner).join("src/limits.rs"));
        for name in named.windows(3).filter(|three| three[..2] == ["pub", "const"]) {
            bounds += 1;
            // Once where it is named.
            if all.iter().filter(|word| **word == name[2]).count() < 2 {
                unread.push(format!("{owner}: {}", name[2]));
            }
        }
    }
    assert!(bounds > 40, "only {bounds} were found");
    assert!(unread.is_empty(), "nobody reads {unread:?}");
}
