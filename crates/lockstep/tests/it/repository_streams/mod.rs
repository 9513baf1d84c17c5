//! Recorded send streams through a repository: every snapshot's tree comes back as it was recorded, from the chain
//! and after merges. Whatever call to the store the program dies at, no existing set is lost, and the next run
//! continues.

#[path = "../../../../sendstream/tests/support/histories.rs"]
mod histories;
#[allow(dead_code, reason = "other tests copy it")]
#[path = "../../../src/prune/memory_store.rs"]
mod memory_store;
#[path = "../../../../sendstream/tests/support/one_file.rs"]
mod one_file;
mod random;
#[path = "../../../../sendstream/tests/support/whole_seconds.rs"]
mod whole_seconds;

use crate::support::recordings::Recordings;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use lockstep::config::RepositoryConfig;
use lockstep::error::Result;
use lockstep::repository::header::StreamRules;
use lockstep::repository::image::{ImageState, StreamBegin};
use lockstep::repository::ingest::{Announced, Content, Visitor, ingest};
use lockstep::repository::peek::Peek;
use lockstep::repository::unfold::unfold;
use lockstep::repository::{Repository, files};
use lockstep::set::manifest::hash_file;
use lockstep::ship::page_delta::Pages;
use lockstep::ship::tags::{Of, Passed, Tags};
use one_file::stream_of;
use sendstream::Reader;
use sendstream::fold::{Delta, Piece, Sink, SpillBlock, StreamDelta, StreamSink};
use sendstream::listing::{hashing_builder, write_listing};
use sendstream::record::{Begin, Object};
use sendstream::zpl::{ContentVisitor, Entry, FileType, TreeBuilder};
use strata::delta::{ImageOptions, ImageWriter, IndexOptions, chain, descriptor_path};
use strata::fold::merge;
use strata::lease::HELD;
use strata::manifest::{DeltaId, Manifest};
use strata::pack::PackOptions;
use strata::store::testing::{Fault, Faulty};
use strata::store::{ObjectStorage, Retries, Storage, Store};
use whole_seconds::whole_seconds;

const IMAGE: &str = "tank=pg";
const NOW: u64 = 4_000_000_000;

fn tree(recordings: &Recordings, dataset: &str, snapshot: usize) -> String {
    String::from_utf8(recordings.read(&format!("{dataset}.s{snapshot}.tree"))).unwrap()
}

/// A store in its own folder.
fn store_in(recordings: &Recordings, name: &str) -> Arc<dyn Storage> {
    Arc::new(ObjectStorage::folder(&recordings.0.join(name)).unwrap())
}

fn repository(storage: Arc<dyn Storage>) -> Repository {
    let retries = Retries { tries: 1, ..Retries::default() };
    let store = Store::shared(storage, retries);
    let config: RepositoryConfig = toml::from_str("url = 'file:///unused'").unwrap();
    Repository {
        name: "test".into(),
        config,
        id: "test".into(),
        strata: strata::Repository::new(store, "clusters/main", None).unwrap(),
    }
}

/// Small sizes for everything, for several frames, packs, row groups and files.
fn small() -> ImageOptions {
    ImageOptions {
        frame_size: 64 << 10,
        packs: PackOptions { pack_size: 1 << 20, level: 1, threads: 1, uploads: 1 },
        index: IndexOptions { group_rows: 200, group_bytes: 20_000, file_groups: 4, spool: None },
        resume: None,
    }
}

struct StoreAll;

impl Visitor for StoreAll {
    fn object(&mut self, _: &Announced<'_>) -> Result<Content> {
        Ok(Content::Stored)
    }
    fn changed(&mut self, _: u64, _: &[u8]) -> Result<Option<Vec<Range<usize>>>> {
        Ok(None)
    }
    fn hole(&mut self, _: u64, _: u64) {}
    fn freed(&mut self, _: u64, _: u64) {}
    fn content(&mut self, _: u64, _: u64, _: &[u8]) {}
    fn progress(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Stores only pages that the tags don't know.
struct StoreUnknown<'a> {
    pages: Pages<'a>,
    seen: u64,
    left: u64,
}

impl Visitor for StoreUnknown<'_> {
    fn object(&mut self, announced: &Announced<'_>) -> Result<Content> {
        Ok(if self.pages.begin(announced)? { Content::Changed } else { Content::Stored })
    }
    fn changed(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<Range<usize>>>> {
        let changed = self.pages.changed(offset, bytes)?;
        self.seen += bytes.len() as u64;
        if let Some(ranges) = &changed {
            self.left +=
                (bytes.len() - ranges.iter().map(ExactSizeIterator::len).sum::<usize>()) as u64;
        }
        Ok(changed)
    }
    fn hole(&mut self, offset: u64, length: u64) {
        self.pages.hole(offset, length);
    }
    fn freed(&mut self, first: u64, count: u64) {
        self.pages.freed(first, count);
    }
    fn content(&mut self, _: u64, _: u64, _: &[u8]) {}
    fn progress(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Stores a stream; returns the delta's id.
fn store(repository: &Repository, stream: &[u8]) -> Result<String> {
    store_by(repository, stream, &mut StoreAll)
}

fn store_by(repository: &Repository, stream: &[u8], by: &mut impl Visitor) -> Result<String> {
    let mut delta = StreamDelta::new(Reader::new(stream).unwrap()).unwrap();
    let begin = delta.begin().clone();
    let id = begin.to_guid.to_string();
    let base = (!begin.is_full()).then(|| begin.from_guid.to_string());
    let strata = &repository.strata;
    let failed = |error: strata::Error| lockstep::repository::of_strata(error);
    let mut writer =
        ImageWriter::new(strata, IMAGE, &id, base.as_deref(), &small()).map_err(failed)?;
    ingest(&mut delta, &mut writer, by)?;
    let before = match &base {
        Some(base) => {
            let base = strata::delta::read_descriptor(strata, IMAGE, base).map_err(failed)?;
            Some(ImageState::of(&base)?.begin)
        }
        None => None,
    };
    let begin = StreamBegin::after(&begin, before.as_ref());
    writer.about(ImageState::new(begin, BTreeMap::new()).to_about()?);
    writer.finish().map_err(failed)?;
    Ok(id)
}

fn listing(repository: &Repository, id: &str) -> String {
    let mut builder = hashing_builder();
    unfold(repository, IMAGE, id, None, &mut builder).unwrap_or_else(|e| panic!("{}", e.chain()));
    let mut text = Vec::new();
    write_listing(&builder.finish().unwrap(), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// Collects the contents of every file.
#[derive(Default)]
struct Contents(Vec<u8>);

impl ContentVisitor for Contents {
    type Output = Vec<u8>;

    fn begin(&mut self, _: u64, size: Option<u64>) -> bool {
        self.0 = vec![0; usize::try_from(size.unwrap()).unwrap()];
        true
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> sendstream::Result<()> {
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        let length = bytes.len().min(self.0.len() - from);
        self.0[from..from + length].copy_from_slice(&bytes[..length]);
        Ok(())
    }

    fn end(&mut self, _: u64) -> sendstream::Result<Option<Vec<u8>>> {
        Ok(Some(std::mem::take(&mut self.0)))
    }
}

/// Looking up names and reading single files gives the same as one pass over everything.
fn assert_same_by_single_files(repository: &Repository, id: &str) {
    let mut builder = TreeBuilder::new(Contents::default());
    unfold(repository, IMAGE, id, None, &mut builder).unwrap();
    let tree = builder.finish().unwrap();
    let mut peek = Peek::open(repository, IMAGE, id).unwrap();
    let mut paths = Vec::new();
    let collect = |entry: Entry<'_, Vec<u8>>| {
        paths.push((entry.path.to_vec(), entry.object));
        Ok(())
    };
    tree.walk(collect).unwrap();
    // The last first, so that nothing is found only because it was passed on the way to another.
    for (path, object) in paths.iter().rev() {
        let names = path.split(|byte| *byte == b'/').filter(|name| *name != b".");
        assert_eq!(peek.find(names).unwrap(), Some(*object), "{}", path.escape_ascii());
        let expected = tree.node(*object).unwrap();
        let found = peek.node(*object).unwrap();
        assert_eq!(found.attributes, expected.attributes, "{}", path.escape_ascii());
        assert_eq!(found.children, expected.children, "{}", path.escape_ascii());
        if expected.attributes.file_type() == FileType::Regular {
            let content = peek.small_file(*object, u64::MAX).unwrap();
            assert!(Some(&content) == expected.content.as_ref(), "{}", path.escape_ascii());
        }
    }
    assert!(paths.len() > 10);
    assert_eq!(peek.find([&b"nothing"[..]]).unwrap(), None);
}

/// Wants the content of all objects except one; counts what it gets of the others.
struct Without {
    object: Option<u64>,
    bytes: u64,
}

impl Sink for Without {
    fn begin(&mut self, _: &Begin) -> sendstream::Result<()> {
        Ok(())
    }

    fn object(&mut self, _: &Object, _: &[u8]) -> sendstream::Result<()> {
        Ok(())
    }

    fn wants_content_of(&mut self, object: u64) -> bool {
        self.object != Some(object)
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> sendstream::Result<()> {
        assert_ne!(self.object, Some(object));
        self.bytes += piece.length;
        Ok(())
    }

    fn spill(&mut self, _: SpillBlock<'_>) -> sendstream::Result<()> {
        Ok(())
    }
}

#[test]
fn frames_of_what_is_not_wanted_are_not_read() {
    let recordings = Recordings::unpack("std128k-plain");
    let repository = repository(store_in(&recordings, "repository"));
    let id = store(&repository, &recordings.chain("std128k", "plain")[0]).unwrap();
    let mut builder = TreeBuilder::new(Contents::default());
    unfold(&repository, IMAGE, &id, None, &mut builder).unwrap();
    let tree = builder.finish().unwrap();
    let mut largest = (0, 0);
    let by_size = |entry: Entry<'_, Vec<u8>>| {
        let size = tree.node(entry.object).map_or(0, |node| node.attributes.size);
        largest = largest.max((size, entry.object));
        Ok(())
    };
    tree.walk(by_size).unwrap();
    let with = |object: Option<u64>| {
        let mut sink = Without { object, bytes: 0 };
        let unfolded = unfold(&repository, IMAGE, &id, None, &mut sink).unwrap();
        (unfolded.frames, sink.bytes)
    };
    let (all, rest) = (with(None), with(Some(largest.1)));
    assert!(rest.0 < all.0, "{} of {} frames read", rest.0, all.0);
    assert!(rest.1 > 0 && rest.1 < all.1, "{} of {} bytes", rest.1, all.1);
}

fn check_chain(dataset: &str, flags: &str) {
    let recordings = Recordings::unpack(&format!("{dataset}-{flags}"));
    let repository = repository(store_in(&recordings, "repository"));
    let streams = recordings.chain(dataset, flags);
    let ids: Vec<String> =
        streams.iter().map(|stream| store(&repository, stream).unwrap()).collect();
    let assert_tree = |snapshot: usize, what: &str| {
        let found = listing(&repository, &ids[snapshot]);
        let found = if dataset == "fuse" { whole_seconds(&found) } else { found };
        assert!(
            found == tree(&recordings, dataset, snapshot),
            "{dataset}.{flags} s{snapshot} {what}"
        );
    };
    (0..5).for_each(|snapshot| assert_tree(snapshot, "as it was stored"));
    assert_same_by_single_files(&repository, &ids[4]);
    // What is written for `zfs receive` has the snapshot's GUID; so has an increment.
    let mut sink = StreamSink::new(Vec::new());
    unfold(&repository, IMAGE, &ids[4], Some(&ids[1]), &mut sink).unwrap();
    let increment = sink.finish().unwrap();
    let mut full = StreamSink::new(Vec::new());
    unfold(&repository, IMAGE, &ids[1], None, &mut full).unwrap();
    let full = full.finish().unwrap();
    let mut builder = hashing_builder();
    let both = [&full[..], &increment[..]];
    let deltas = both.map(|bytes| StreamDelta::new(Reader::new(bytes).unwrap()).unwrap());
    assert_eq!(deltas[1].begin().to_guid.to_string(), ids[4]);
    sendstream::fold::fold(deltas.into(), &mut builder).unwrap();
    let mut text = Vec::new();
    write_listing(&builder.finish().unwrap(), &mut text).unwrap();
    assert!(String::from_utf8(text).unwrap() == listing(&repository, &ids[4]), "the increment");

    // The third is merged into the fourth, then the first and the second into that.
    let strata = &repository.strata;
    for (newest, gone) in [(3, vec![2]), (3, vec![0, 1])] {
        let all = chain(strata, IMAGE, &ids[newest], None).unwrap();
        let from = all.iter().position(|delta| delta.id == ids[gone[0]]).unwrap();
        merge(strata, &all[from..], &StreamRules, 1 << 20, &small().index, HELD).unwrap();
        for gone in gone {
            let path = descriptor_path(strata, IMAGE, &ids[gone]).unwrap();
            strata.store().delete(&path).unwrap();
        }
        (3..5).for_each(|snapshot| assert_tree(snapshot, "after a merge"));
    }
    assert_eq!(chain(strata, IMAGE, &ids[4], None).unwrap().len(), 2);
}

#[test]
fn no_increment_is_made_of_both_sides_of_openzfs_0_8() {
    let recordings = Recordings::unpack("std128k-plain");
    for flags in [[false, true], [true, false]] {
        let repository = repository(store_in(&recordings, &format!("repository-{}", flags[0])));
        let streams = [
            stream_of(flags[0], 0, 1, 5),
            stream_of(flags[0], 1, 2, 5),
            stream_of(flags[1], 2, 3, 9),
        ];
        let ids = streams.map(|stream| store(&repository, &stream).unwrap());
        let since = |base: Option<&str>| {
            unfold(&repository, IMAGE, &ids[2], base, &mut StreamSink::new(Vec::new()))
        };
        let error = since(Some(&ids[0])).unwrap_err();
        assert!(error.to_string().contains("before 0.8"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("without --delta")));
        since(Some(&ids[1])).unwrap();
        since(None).unwrap();
    }
}

#[test]
fn pg8k() {
    check_chain("pg8k", "plain");
}

#[test]
fn std128k() {
    check_chain("std128k", "plain");
}

#[test]
fn std128k_compressed_and_embedded() {
    check_chain("std128k", "ce");
}

#[test]
fn big1m_large_blocks() {
    check_chain("big1m", "L");
}

#[test]
fn fuse() {
    check_chain("fuse", "plain");
}

/// Stores what the tags in `folder` don't know, and gives them to the new delta. Besides its id, returns how many
/// bytes of pages were seen, and how many of them weren't stored.
fn store_tagged(
    repository: &Repository,
    folder: &Path,
    stream: &[u8],
    base: Option<&str>,
) -> Result<(String, u64, u64)> {
    let tags = Tags::open(folder, Of { repository: "test", image: IMAGE }, base)?;
    assert!(tags.are_whole(), "since {base:?}");
    let transaction = tags.begin()?;
    let (id, seen, left) = {
        let passed = Passed::open(&tags, &transaction)?;
        let mut by = StoreUnknown { pages: Pages::new(Some(passed), None), seen: 0, left: 0 };
        let id = store_by(repository, stream, &mut by)?;
        assert!(by.pages.finish());
        (id, by.seen, by.left)
    };
    tags.commit(transaction, &id)?;
    Ok((id, seen, left))
}

/// Only pages whose tags aren't known are stored; still every tree is the recorded one. Returns how many bytes of
/// pages were seen in increments, and how many of them weren't stored.
fn check_tagged_chain(dataset: &str, flags: &str) -> (u64, u64) {
    let recordings = Recordings::unpack(&format!("{dataset}-{flags}-tags"));
    let repository = repository(store_in(&recordings, "repository"));
    let folder = recordings.0.join("tags");
    let (mut seen, mut left) = (0, 0);
    let mut base: Option<String> = None;
    for (snapshot, stream) in recordings.chain(dataset, flags).iter().enumerate() {
        let (id, pages_seen, pages_left) =
            store_tagged(&repository, &folder, stream, base.as_deref()).unwrap();
        if base.is_some() {
            seen += pages_seen;
            left += pages_left;
        } else {
            assert_eq!(pages_left, 0, "a full stream is stored whole");
        }
        let found = listing(&repository, &id);
        let found = if dataset == "fuse" { whole_seconds(&found) } else { found };
        assert!(found == tree(&recordings, dataset, snapshot), "{dataset}.{flags} s{snapshot}");
        base = Some(id);
    }
    (seen, left)
}

#[test]
fn pages_that_are_known_by_their_tags() {
    for (dataset, flags) in
        [("std128k", "plain"), ("std128k", "ce"), ("big1m", "L"), ("fuse", "plain")]
    {
        let (seen, left) = check_tagged_chain(dataset, flags);
        eprintln!("{dataset}.{flags}: {left} of {seen} bytes of pages were known");
        assert!(dataset == "fuse" || left > seen / 4, "{dataset}.{flags}: {left} of {seen}");
    }
    assert_eq!(check_tagged_chain("pg8k", "plain").1, 0, "records of a page aren't looked at");
}

/// Two sets, as shipping writes them; each run continues where the one before it stopped.
fn ship(repository: &Repository, streams: &[Vec<u8>], beside: &Path) -> Result<()> {
    let names = BTreeMap::from([("backup_label".to_owned(), beside.to_path_buf())]);
    let expected = BTreeMap::from([("backup_label".to_owned(), hash_file(beside)?)]);
    let failed = |error: strata::Error| lockstep::repository::of_strata(error);
    for (n, stream) in streams.iter().enumerate() {
        let set = format!("set-{n}");
        if Manifest::list(&repository.strata).map_err(failed)?.contains(&set) {
            continue;
        }
        let id = Reader::new(&stream[..]).unwrap().begin().to_guid.to_string();
        match strata::delta::read_descriptor(&repository.strata, IMAGE, &id) {
            Ok(_) => {}
            Err(error) if error.is_not_found() => drop(store(repository, stream)?),
            Err(error) => return Err(failed(error)),
        }
        files::store(repository, &set, &expected, &names, &small(), &|| Ok(()))?;
        let deltas = vec![
            DeltaId { image: IMAGE.into(), id },
            DeltaId { image: "@files".into(), id: set.clone() },
        ];
        Manifest::new(&set, NOW, deltas, serde_json::Value::Null)
            .write(&repository.strata)
            .map_err(failed)?;
    }
    Ok(())
}

#[test]
fn dead_at_any_call_of_a_shipment() {
    let recordings = Recordings::unpack("dead");
    let beside = recordings.0.join("label");
    fs::write(&beside, "START WAL LOCATION: 0/2000028\n").unwrap();
    let streams = &recordings.chain("fuse", "plain")[..2];
    let trees = [tree(&recordings, "fuse", 0), tree(&recordings, "fuse", 1)];
    let count = {
        let counted = Faulty::new(store_in(&recordings, "count"), u64::MAX, Fault::StopBefore);
        ship(&repository(Arc::new(counted.clone())), streams, &beside).unwrap();
        counted.calls()
    };
    assert!(count > 20, "{count} calls");
    for at in 0..count {
        for fault in [Fault::StopBefore, Fault::StopAfter] {
            let storage = store_in(&recordings, "store");
            let dying = Faulty::new(storage.clone(), at, fault);
            let died = ship(&repository(Arc::new(dying)), streams, &beside);
            assert!(died.is_err(), "call {at} of {count}");
            let alive = repository(storage);
            for set in Manifest::list(&alive.strata).unwrap() {
                assert_set(&alive, &set, &trees);
            }
            ship(&alive, streams, &beside).unwrap();
            assert_eq!(Manifest::list(&alive.strata).unwrap(), ["set-0", "set-1"]);
            for set in ["set-0", "set-1"] {
                assert_set(&alive, set, &trees);
            }
            fs::remove_dir_all(recordings.0.join("store")).unwrap();
        }
    }
}

fn assert_set(repository: &Repository, set: &str, trees: &[String; 2]) {
    let manifest = Manifest::read(&repository.strata, set).unwrap();
    let image = manifest.deltas.iter().find(|delta| delta.image == IMAGE).unwrap();
    let expected = &trees[usize::from(set == "set-1")];
    assert!(whole_seconds(&listing(repository, &image.id)) == *expected, "{set}");
}
