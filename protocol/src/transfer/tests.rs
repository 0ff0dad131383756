use super::*;
use crate::limits::PIECE_BYTES;

const CLUSTER: ClusterId = ClusterId([4; 32]);
const SILENCE: Micros = Micros(1000);
const N: usize = 5;

/// A snapshot whose application has these chunks: each a byte and how often it stands there.
fn snapshot(batch: u64, chunks: &[(u8, usize)]) -> Snapshot {
    Snapshot::of_chunks(N, batch, chunks.iter().map(|(byte, len)| vec![*byte; *len]))
}

fn chunks(count: u8) -> Vec<(u8, usize)> {
    (0..count).map(|byte| (byte, usize::from(byte) * PIECE_BYTES / 3)).collect()
}

/// How a source behaves.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Source {
    Honest,
    /// It answers nothing.
    Dead,
    /// It has nothing.
    Empty,
    /// It sends other bytes.
    Liar,
    /// It says that everything is longer than it is.
    Longer,
    /// It answers one request in a hundred.
    Slow,
    /// It gives out noise for the manifest, as much and as little at a time as it may.
    Dripping,
    /// It sends the first piece of everything, and nothing more.
    Stalling,
}

struct Story {
    fetch: Fetch,
    sources: [Source; N],
    now: Micros,
    asked: [usize; N],
    /// Most bytes in flight and half done at once.
    most: usize,
}

impl Story {
    fn new(wanted: &Snapshot, sources: [Source; N]) -> Story {
        let config = FetchConfig { me: ServerId(0), n: N, cluster: CLUSTER, silence: SILENCE };
        let fetch = Fetch::new(config, wanted.checkpoint().clone());
        Story { fetch, sources, now: Micros(0), asked: [0; N], most: 0 }
    }

    fn answer(&self, of: &Snapshot, source: ServerId, message: &ToGuest) -> Option<ToGuest> {
        let ToGuest::Fetch { digest, from } = message else { panic!("{message:?}") };
        let right = answer(*digest, *from, of.read_at(digest, *from, PIECE_BYTES));
        match self.sources[source.index()] {
            Source::Honest => Some(right),
            Source::Slow if self.asked[source.index()].is_multiple_of(100) => Some(right),
            Source::Dead | Source::Slow => None,
            Source::Dripping if *digest == of.checkpoint().digest => {
                let (digest, from, bytes) = (*digest, *from, vec![0; PIECE_BYTES].into());
                Some(ToGuest::Piece { digest, from, total: MAX_MANIFEST_BYTES, bytes })
            }
            Source::Dripping => Some(right),
            Source::Stalling => (*from == 0).then_some(right),
            Source::Empty => Some(answer(*digest, *from, None)),
            Source::Liar | Source::Longer => match right {
                ToGuest::Piece { digest, from, total, bytes } => {
                    let longer = self.sources[source.index()] == Source::Longer;
                    let total = if longer { u64::MAX } else { total };
                    let bytes = bytes.iter().map(|byte| byte ^ 0x80).collect();
                    Some(ToGuest::Piece { digest, from, total, bytes })
                }
                other => Some(other),
            },
        }
    }

    /// Runs for so many turns, or until everything is there.
    fn run(&mut self, of: &Snapshot, turns: usize) -> bool {
        for _ in 0..turns {
            let mut out = Vec::new();
            self.fetch.poll(self.now, &mut out);
            let idle = out.is_empty();
            for (source, message) in out {
                assert_ne!(source, ServerId(0), "it asks itself");
                self.asked[source.index()] += 1;
                if let Some(answer) = self.answer(of, source, &message) {
                    self.fetch.on_message(self.now, source, answer);
                }
            }
            let half = self.fetch.downloads.values().map(|download| download.got.len());
            self.most = self.most.max(half.sum());
            if self.fetch.is_complete() {
                return true;
            }
            if idle {
                let deadline = self.fetch.next_deadline().expect("it is not done");
                self.now = deadline.max(self.now);
            }
        }
        false
    }
}

fn fetched(story: &Story, of: &Snapshot) {
    let snapshot = story.fetch.snapshot().expect("it is complete");
    assert_eq!(snapshot.checkpoint(), of.checkpoint());
    assert_eq!(snapshot.bytes(), of.bytes());
    let done = story.fetch.progress();
    assert_eq!((done.parts.0, done.bytes.0), (done.parts.1, done.bytes.1));
    assert!(story.fetch.downloads.is_empty());
}

#[test]
fn everything_comes_and_every_source_works() {
    let of = snapshot(7, &chunks(60));
    let mut story = Story::new(&of, [Source::Honest; N]);
    assert!(story.run(&of, 1000));
    fetched(&story, &of);
    assert!(story.asked[1..].iter().all(|asked| *asked > 10), "{:?}", story.asked);
}

#[test]
fn one_honest_source_is_enough() {
    let others = [Source::Dead, Source::Empty, Source::Liar, Source::Longer, Source::Slow];
    for other in others {
        for honest in 1..N {
            let of = snapshot(7, &chunks(40));
            let mut sources = [other; N];
            sources[honest] = Source::Honest;
            let mut story = Story::new(&of, sources);
            assert!(story.run(&of, 10_000), "all but {honest} are {other:?}");
            fetched(&story, &of);
            let lies = story.fetch.progress().lies;
            if other == Source::Liar || other == Source::Longer {
                assert!(lies <= (N - 2) as u64, "a liar is not asked again: {lies}");
            } else {
                assert_eq!(lies, 0, "who sends nothing wrong is no liar");
            }
        }
    }
}

#[test]
fn a_manifest_that_takes_for_ever_holds_nobody_up() {
    let of = snapshot(7, &chunks(5));
    for honest in 1..N {
        let mut sources = [Source::Dripping; N];
        sources[honest] = Source::Honest;
        let mut story = Story::new(&of, sources);
        // Of noise there are a thousand turns.
        assert!(story.run(&of, 50), "all but {honest} drip");
        fetched(&story, &of);
    }
}

#[test]
fn parts_that_never_end_hold_nobody_up() {
    // Each is of some pieces, so that nobody but the honest one sends one whole.
    let of = snapshot(7, &(1..4).map(|byte| (byte, 4 * PIECE_BYTES)).collect::<Vec<_>>());
    for honest in 1..N {
        let mut sources = [Source::Stalling; N];
        sources[honest] = Source::Honest;
        let mut story = Story::new(&of, sources);
        // Nobody falls silent: the others' time does not pass.
        let mut out = Vec::new();
        for _ in 0..50 {
            story.fetch.poll(story.now, &mut out);
            for (source, message) in out.drain(..) {
                if let Some(answer) = story.answer(&of, source, &message) {
                    story.fetch.on_message(story.now, source, answer);
                }
            }
        }
        assert!(story.fetch.is_complete(), "all but {honest} stall");
    }
}

#[test]
fn a_source_that_dies_is_replaced_and_what_came_stays() {
    let of = snapshot(7, &chunks(60));
    let dead = Source::Dead;
    let mut story = Story::new(&of, [dead, Source::Honest, dead, dead, dead]);
    assert!(!story.run(&of, 30));
    let before = story.fetch.progress();
    assert!(before.parts.0 > 5 && before.parts.0 < 60, "{before:?}");
    story.sources = [dead, dead, Source::Honest, dead, dead];
    story.asked = [0; N];
    assert!(story.run(&of, 1000));
    fetched(&story, &of);
    let pieces = of.bytes() as usize / PIECE_BYTES;
    assert!(story.asked[2] < pieces, "it did not begin anew");
}

#[test]
fn when_all_lie_it_keeps_trying_and_holds_no_more() {
    let of = snapshot(7, &chunks(60));
    for lie in [Source::Liar, Source::Longer, Source::Dead, Source::Empty] {
        let mut story = Story::new(&of, [lie; N]);
        assert!(!story.run(&of, 2000));
        assert!(story.fetch.held.is_empty() && story.most <= (N - 1) * of.manifest().len());
        assert!(story.now > Micros(100 * SILENCE.0), "not in a busy loop: {:?}", story.now);
        story.sources = [Source::Honest; N];
        assert!(story.run(&of, 1000), "they were restarted clean");
        fetched(&story, &of);
    }
}

#[test]
fn a_newer_checkpoint_takes_over_the_parts_that_are_the_same() {
    let (old, mut newer) = (chunks(60), chunks(60));
    newer[30] = (200, 5000);
    let (old, newer) = (snapshot(7, &old), snapshot(9, &newer));
    let mut story = Story::new(&old, [Source::Honest; N]);
    story.run(&old, 12);
    let before = story.fetch.progress().parts.0;
    assert!(before > 10);
    story.fetch.restart(newer.checkpoint().clone());
    assert_eq!(story.fetch.progress(), Progress::default(), "the manifest is to come");
    assert!(story.run(&old, 40) || story.fetch.manifest.is_none(), "others have let it go");
    story.now = story.now.plus(SILENCE);
    assert!(story.run(&newer, 3) || story.fetch.progress().parts.0 + 1 >= before);
    assert!(story.run(&newer, 1000));
    fetched(&story, &newer);
}

#[test]
fn what_is_known_is_not_fetched() {
    let of = snapshot(7, &chunks(40));
    let mut story = Story::new(&of, [Source::Honest; N]);
    let others = snapshot(3, &[(200, 5)]);
    let known = of.parts().iter().skip(1).chain(others.parts());
    story.fetch.know(known.cloned());
    assert!(story.run(&of, 1000));
    fetched(&story, &of);
    let asked: usize = story.asked.iter().sum();
    assert!(asked <= 2 * (N - 1), "all race for the manifest, and for one part: {asked}");
}

#[test]
fn a_source_that_is_lost_is_left_alone_and_asked_again_later() {
    let of = snapshot(7, &chunks(40));
    let (now, mut out) = (Micros(0), Vec::new());
    let mut fetch = Story::new(&of, [Source::Honest; N]).fetch;
    fetch.poll(now, &mut out);
    let asked: BTreeSet<_> = out.iter().map(|(source, _)| *source).collect();
    assert_eq!(asked.len(), N - 1, "all race for the manifest");
    let first = out[0].0;
    fetch.on_lost(now, first);
    out.clear();
    fetch.poll(now, &mut out);
    assert!(out.iter().all(|(source, _)| *source != first), "{out:?}");
    // Nobody else is there.
    for server in ServerId::all(N) {
        fetch.on_lost(now, server);
    }
    out.clear();
    fetch.poll(SILENCE, &mut out);
    assert!(!out.is_empty());
    assert_eq!(fetch.lies(), 0);
}

#[test]
fn noise_is_ignored() {
    let of = snapshot(7, &chunks(20));
    let mut story = Story::new(&of, [Source::Honest; N]);
    story.run(&of, 3);
    let before = story.fetch.progress();
    let unasked = Digest([9; 32]);
    for source in ServerId::all(N) {
        let bytes = Bytes::from(vec![1; 10]);
        let piece = ToGuest::Piece { digest: unasked, from: 0, total: 10, bytes };
        story.fetch.on_message(Micros(0), source, piece);
        story.fetch.on_message(Micros(0), source, ToGuest::Gone { digest: unasked });
        story.fetch.on_message(Micros(0), source, ToGuest::Fetch { digest: unasked, from: 0 });
    }
    assert_eq!(story.fetch.progress(), before);
    assert!(story.run(&of, 1000));
    fetched(&story, &of);
}
