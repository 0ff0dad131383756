use super::*;

const N: usize = 3;

/// A snapshot at a batch, with an application that has these chunks.
fn snapshot(batch: u64, chunks: &[u8]) -> Snapshot {
    Snapshot::of_chunks(N, batch, chunks.iter().map(|byte| vec![*byte; 1000]))
}

fn names(path: &Path, kind: &str) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(kind)).collect();
    names.sort();
    names
}

fn counts(path: &Path) -> (usize, usize) {
    (names(path, MANIFEST).len(), names(path, PART).len())
}

fn put(folder: &mut Folder, sure: &Sure, snapshot: &Snapshot) -> u64 {
    folder.put(snapshot, sure, || false).unwrap().unwrap()
}

#[test]
fn what_two_snapshots_share_is_written_once_and_goes_with_the_last_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a").join("b");
    let (mut folder, sure) = (Folder::open(&path, N, true).unwrap(), Sure::default());
    let (one, two) = (snapshot(1, &[1, 2, 3]), snapshot(2, &[2, 3, 4]));
    let manifest = one.manifest().len() as u64;
    assert_eq!(put(&mut folder, &sure, &one), 3000 + manifest);
    assert_eq!(put(&mut folder, &sure, &two), 1000 + manifest);
    assert_eq!(counts(&path), (2, 4));
    folder.settle((Term(0), Batch(1)), &sure).unwrap();
    assert_eq!(counts(&path), (2, 4));
    folder.settle((Term(0), Batch(2)), &sure).unwrap();
    assert_eq!(counts(&path), (1, 3));
    for part in two.parts() {
        let entry = part.entry();
        let bytes = read_part(&path, &entry.digest, entry.size).unwrap();
        assert_eq!(&bytes[..], &part.head()[..]);
    }
    let found = read_manifest(&path, &two.checkpoint().digest).unwrap();
    let (checkpoint, _) = Manifest::decode_kept(&found, N).unwrap();
    assert_eq!(&checkpoint, two.checkpoint());
    let gone = &one.parts()[0].entry();
    assert!(read_part(&path, &gone.digest, gone.size).is_none());
    // It comes back: what was deleted is written again.
    let three = snapshot(3, &[1, 2]);
    assert_eq!(put(&mut folder, &sure, &three), 1000 + three.manifest().len() as u64);
}

#[test]
fn others_are_given_whatever_is_there_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, sure) = (Folder::open(dir.path(), N, false).unwrap(), Sure::default());
    let kept = snapshot(1, &[1, 2]);
    put(&mut folder, &sure, &kept);
    put(&mut folder, &sure, &snapshot(2, &[3]));
    let whole = |digest: &Digest| {
        let mut bytes = Vec::new();
        while let (total, piece) = read_piece(dir.path(), digest, bytes.len() as u64, 300).unwrap()
            && !piece.is_empty()
        {
            assert_eq!(piece.len() as u64, 300.min(total - bytes.len() as u64));
            bytes.extend(piece);
        }
        bytes
    };
    assert_eq!(whole(&kept.checkpoint().digest), &kept.manifest()[..]);
    for part in kept.parts() {
        let digest = part.entry().digest;
        assert_eq!(whole(&digest), &part.head()[..]);
        assert_eq!(read_piece(dir.path(), &digest, 1001, 300), None);
    }
    assert_eq!(read_piece(dir.path(), &Digest([7; 32]), 0, 300), None);
}

#[test]
fn a_start_deletes_leftovers_but_for_the_parts_of_a_damaged_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, sure) = (Folder::open(dir.path(), N, false).unwrap(), Sure::default());
    let (one, two) = (snapshot(1, &[1, 2]), snapshot(2, &[3]));
    put(&mut folder, &sure, &one);
    put(&mut folder, &sure, &two);
    let leftover = snapshot(3, &[4]).parts()[0].entry();
    fs::write(dir.path().join(part_name(&leftover.digest)), [4; 1000]).unwrap();
    fs::write(dir.path().join(UNFINISHED), "half").unwrap();
    let _ = Folder::open(dir.path(), N, false).unwrap();
    assert_eq!((counts(dir.path()), names(dir.path(), UNFINISHED).len()), ((2, 3), 0));

    let damaged = dir.path().join(manifest_name(&one.checkpoint().digest));
    let mut bytes = fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let _ = Folder::open(dir.path(), N, false).unwrap();
    assert_eq!(counts(dir.path()), (1, 3), "its parts may be of use still");
    let mut folder = Folder::open(dir.path(), N, false).unwrap();
    assert_eq!(counts(dir.path()), (1, 1));
    // Another process has written this, so it is written again.
    let bytes = put(&mut folder, &Sure::default(), &two);
    assert_eq!(bytes, 1000 + two.manifest().len() as u64);
}

#[test]
fn what_could_not_be_stored_leaves_no_more_than_the_next_try_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, sure) = (Folder::open(dir.path(), N, false).unwrap(), Sure::default());
    put(&mut folder, &sure, &snapshot(1, &[1]));
    // Its manifest cannot be written.
    let (two, three) = (snapshot(2, &[2, 3, 4]), snapshot(3, &[4, 5]));
    let manifest = dir.path().join(manifest_name(&two.checkpoint().digest));
    fs::create_dir(&manifest).unwrap();
    for _ in 0..2 {
        folder.put(&two, &sure, || false).unwrap_err();
        assert_eq!(counts(dir.path()).1, 4, "what it has come to is not written again");
        assert_eq!(names(dir.path(), UNFINISHED), [""; 0]);
    }
    fs::remove_dir(&manifest).unwrap();
    put(&mut folder, &sure, &three);
    assert_eq!(counts(dir.path()), (2, 3));
    // And what it then is thought to have is there.
    put(&mut folder, &sure, &two);
    for part in two.parts().iter().chain(three.parts()) {
        let entry = part.entry();
        assert!(read_part(dir.path(), &entry.digest, entry.size).is_some());
    }
}

#[test]
fn as_many_snapshots_are_kept_as_may_be_claimed_and_the_first_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut folder, sure) = (Folder::open(dir.path(), N, false).unwrap(), Sure::default());
    for batch in 1..=SNAPSHOTS_STORED as u64 + 3 {
        put(&mut folder, &sure, &snapshot(batch, &[0, batch as u8]));
    }
    assert_eq!(counts(dir.path()), (SNAPSHOTS_STORED, SNAPSHOTS_STORED + 1));
    let kept: Vec<_> = folder.kept.iter().map(|kept| kept.at.1.0).collect();
    assert_eq!(kept[..2], [1, 5]);
    let again = Folder::open(dir.path(), N, false).unwrap();
    assert!(again.kept.iter().map(|kept| kept.at.1.0).eq(kept));
    // One that comes late stays: it is about to be claimed.
    put(&mut folder, &sure, &snapshot(2, &[0]));
    assert_eq!(folder.kept[1].at.1, Batch(2));
}

#[test]
fn files_that_are_longer_than_they_can_be_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let entry = snapshot(1, &[1]).parts()[0].entry();
    fs::write(dir.path().join(part_name(&entry.digest)), [1; 1001]).unwrap();
    assert_eq!(read_part(dir.path(), &entry.digest, entry.size), Some(Vec::new()));
}

#[test]
fn what_somebody_deletes_meanwhile_is_stored_again() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("1");
    let (mut folder, sure) = (Folder::open(&path, 3, false).unwrap(), Sure::default());
    put(&mut folder, &sure, &snapshot(1, &[1, 2, 3]));
    let before = names(&path, PART);
    fs::remove_file(path.join(&before[0])).unwrap();
    put(&mut folder, &sure, &snapshot(2, &[1, 2, 3]));
    assert_eq!(names(&path, PART), before);
    fs::remove_dir_all(&path).unwrap();
    put(&mut folder, &sure, &snapshot(3, &[1, 2, 3]));
    assert_eq!(names(&path, PART), before);
}
