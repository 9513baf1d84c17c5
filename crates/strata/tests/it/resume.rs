//! An image whose writing was interrupted is written again: what was stored isn't sent a second time, and what is read
//! back is what was written, whatever the journal says.

use bytes::Bytes;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::*;
use strata::check::{Begun, Run, Terms};
use strata::delta::{Change, ImageOptions, ImageWriter, IndexOptions, chain};
use strata::fold::{KeepAll, fold, open_chain};
use strata::lease::HELD;
use strata::manifest::DeltaId;
use strata::pack::{PackOptions, PackWriter};
use strata::store::testing::{Fault, Faulty};
use strata::store::{Storage, Store};
use strata::{Repository, Result};

const OBJECTS: u64 = 60;
const BLOCK: usize = 4096;

fn options(journal: &Path, threads: usize) -> ImageOptions {
    ImageOptions {
        frame_size: 8192,
        packs: PackOptions { pack_size: 16 << 10, level: 1, threads, uploads: 2 },
        index: IndexOptions::default(),
        resume: Some(journal.to_path_buf()),
    }
}

/// Returns content that doesn't compress, so that packs fill up.
fn content(object: u64, salt: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(object ^ salt);
    (0..BLOCK).map(|_| random.u8(..)).collect()
}

fn write(repository: &Repository, journal: &Path, threads: usize, salt: u64) -> Result<()> {
    let mut writer = ImageWriter::new(repository, IMAGE, "1", None, &options(journal, threads))?;
    for object in 0..OBJECTS {
        let header = Some(vec![1].into());
        writer.changed(Change { object, header, ..Change::default() })?;
        writer.data(0, &content(object, salt))?;
    }
    writer.finish().map(|_| ())
}

fn packs(storage: &Arc<dyn Storage>) -> usize {
    let mut count = 0;
    storage.list("", &mut |listed| count += usize::from(listed.path.contains("packs/"))).unwrap();
    count
}

fn assert_holds(repository: &Repository, salt: u64) {
    struct Check(u64, u64);
    impl strata::fold::DataSink for Check {
        fn object(&mut self, _: &strata::fold::Folded) -> Result<()> {
            self.1 += 1;
            Ok(())
        }
        fn data(&mut self, object: u64, offset: u64, found: &Bytes) -> Result<()> {
            let at = offset as usize;
            assert_eq!(found, &content(object, self.0)[at..at + found.len()], "object {object}");
            Ok(())
        }
    }
    let chain = chain(repository, IMAGE, "1", None).unwrap();
    let readers = open_chain(repository, &chain, 1 << 20).unwrap();
    let mut frames = strata::pack::FrameReader::new(repository, 1 << 20);
    let mut check = Check(salt, 0);
    fold(readers, true, &KeepAll, &mut strata::fold::Reading::new(&mut frames, &mut check))
        .unwrap();
    assert_eq!(check.1, OBJECTS);
}

#[test]
fn packs_that_are_stored_are_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    for threads in [1, 3] {
        let whole = memory_store();
        write(&repository(whole.clone()), &folder.path().join("whole"), threads, 7).unwrap();
        let needed = packs(&whole);
        assert!(needed > 10, "{needed} packs");
        assert!(!folder.path().join("whole").exists(), "the journal goes with the writing");
        for at in 0..needed as u64 + 2 {
            let storage = memory_store();
            let journal = folder.path().join("journal");
            let dying = Faulty::new(storage.clone(), at, Fault::StopAfter);
            let dying = Store::shared(Arc::new(dying), no_retries());
            let dying = Repository::new(dying, "clusters/main", None).unwrap();
            assert!(write(&dying, &journal, threads, 7).is_err(), "{at}");
            write(&repository(storage.clone()), &journal, threads, 7).unwrap();
            assert_holds(&repository(storage.clone()), 7);
            // Packs that were being uploaded when it died are in no journal.
            let sent = packs(&storage);
            assert!(sent <= needed + 3, "died at {at}: {sent} packs, {needed} are needed");
        }
    }
}

/// This holds however often a collection runs in between, and however late.
#[test]
fn what_an_interrupted_writing_goes_on_from_is_not_collected() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let storage = memory_store();
    let repository = repository(storage.clone());
    let dying = Faulty::new(storage.clone(), 8, Fault::StopAfter);
    let dying = Store::shared(Arc::new(dying), no_retries());
    let dying = Repository::new(dying, "clusters/main", None).unwrap();
    assert!(write(&dying, &journal, 1, 7).is_err());
    let stored = PackWriter::stored_before(&journal).unwrap();
    assert!(stored.len() > 3, "{stored:?}");
    // A finished delta of the same backup, and one that doesn't exist.
    let mut image = Image::new();
    let steps = [Step::Create(1, 1, 1, vec![Act::Write(0, 800, 2)])];
    write_delta(&repository, &mut image, &steps, "other", None, &small()).unwrap();
    let delta = |id: &str| DeltaId { image: IMAGE.to_string(), id: id.to_string() };
    let begun = Begun { packs: stored.clone(), deltas: [delta("other"), delta("none")].into() };
    let now = 4_000_000_000;
    for at in [now, now + 100, now + 200] {
        let kept = strata::check::collect(&repository, &begun, Terms::at(100, at), Run::Real, HELD)
            .unwrap();
        // They were being uploaded when it died.
        assert!(kept.deleted.len() + kept.waiting.len() <= 2, "{kept:?}");
    }
    assert_eq!(strata::delta::chain(&repository, IMAGE, "other", None).unwrap().len(), 1);
    // The journal was renamed, as by a writer that died just after it began to continue.
    fs::rename(&journal, journal.with_extension("old")).unwrap();
    fs::write(&journal, "").unwrap();
    assert_eq!(PackWriter::stored_before(&journal).unwrap(), stored);
    let before = packs(&storage);
    write(&repository, &journal, 1, 7).unwrap();
    assert_holds(&repository, 7);
    let whole = memory_store();
    write(&crate::support::repository(whole.clone()), &folder.path().join("whole"), 1, 7).unwrap();
    assert!(packs(&storage) <= packs(&whole) + 3, "{before} packs, then {}", packs(&storage));

    // The next collection is told of no interrupted writer, so what nothing needs is deleted.
    collect(&repository, 100, now, false, HELD).unwrap();
    let late = collect(&repository, 100, now + 100, false, HELD).unwrap();
    assert!(late.deleted.len() > stored.len(), "{late:?}");
    assert_eq!(PackWriter::stored_before(&journal).unwrap(), Default::default());
}

#[test]
fn a_journal_of_other_content_or_of_packs_that_are_gone_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let interrupted = |storage: &Arc<dyn Storage>| {
        let _ = fs::remove_file(&journal);
        let dying = Faulty::new(storage.clone(), 8, Fault::StopAfter);
        let dying = Store::shared(Arc::new(dying), no_retries());
        let dying = Repository::new(dying, "clusters/main", None).unwrap();
        assert!(write(&dying, &journal, 1, 7).is_err());
        assert!(fs::metadata(&journal).unwrap().len() > 500, "it has lines");
    };
    // Other content.
    let storage = memory_store();
    interrupted(&storage);
    write(&repository(storage.clone()), &journal, 1, 8).unwrap();
    assert_holds(&repository(storage), 8);
    // A pack that is missing, and one that is shorter.
    for damage in [None, Some(b"short".as_slice())] {
        let storage = memory_store();
        interrupted(&storage);
        let mut paths = Vec::new();
        storage.list("", &mut |listed| paths.push(listed.path)).unwrap();
        paths.sort();
        match damage {
            None => storage.delete(&paths[1]).unwrap(),
            Some(bytes) => storage.put(&paths[1], &[bytes.into()]).unwrap(),
        }
        write(&repository(storage.clone()), &journal, 1, 7).unwrap();
        assert_holds(&repository(storage), 7);
    }
    // Truncated anywhere.
    let storage = memory_store();
    interrupted(&storage);
    let text = fs::read(&journal).unwrap();
    for length in (0..text.len()).step_by(97) {
        let _ = fs::remove_file(folder.path().join("journal.old"));
        fs::write(&journal, &text[..length]).unwrap();
        write(&repository(storage.clone()), &journal, 1, 7).unwrap();
        assert_holds(&repository(storage.clone()), 7);
    }
}

/// The journal only saves time.
#[test]
fn where_there_is_no_room_for_the_journal_the_writing_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    std::os::unix::fs::symlink("/dev/full", &journal).unwrap();
    let storage = memory_store();
    write(&repository(storage.clone()), &journal, 1, 7).unwrap();
    assert_holds(&repository(storage.clone()), 7);
    let needed = packs(&storage);
    // What an earlier journal names is used.
    let storage = memory_store();
    let dying = Faulty::new(storage.clone(), 8, Fault::StopAfter);
    let dying = Store::shared(Arc::new(dying), no_retries());
    let dying = Repository::new(dying, "clusters/main", None).unwrap();
    assert!(write(&dying, &journal, 1, 7).is_err());
    fs::rename(&journal, journal.with_extension("old")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &journal).unwrap();
    write(&repository(storage.clone()), &journal, 1, 7).unwrap();
    assert_holds(&repository(storage.clone()), 7);
    assert!(packs(&storage) <= needed + 3, "{} packs, {needed} are needed", packs(&storage));
    assert!(!journal.is_symlink() && !journal.with_extension("old").exists());
}

/// Content changed after it was stored, from its beginning or from some point on: what is stored of the new content is
/// reused, however much longer the old content's journal is.
#[test]
fn a_journal_of_older_content_does_not_stand_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    for (n, changes_at) in [0, 21, 22, 40].into_iter().enumerate() {
        let journal = journal.with_extension(n.to_string());
        let storage = memory_store();
        let interrupted = |at: u64, salt: u64| {
            let dying = Faulty::new(storage.clone(), at, Fault::StopAfter);
            let dying = Store::shared(Arc::new(dying), no_retries());
            let dying = Repository::new(dying, "clusters/main", None).unwrap();
            assert!(write_from(&dying, &journal, salt, changes_at).is_err(), "{salt}");
        };
        // Nearly all of the old content, and a little of the new.
        interrupted(14, 7);
        let old = packs(&storage);
        // Looking for a pack in the store is a call too.
        interrupted(changes_at / 4 + 6, 8);
        let stored = packs(&storage) - old;
        assert!(stored >= 3, "{changes_at}: {stored}");
        write_from(&repository(storage.clone()), &journal, 8, changes_at).unwrap();
        let sent = packs(&storage) - old - stored;
        let all = memory_store();
        write_from(&repository(all.clone()), &folder.path().join("all"), 8, changes_at).unwrap();
        // Four objects per pack, and up to three packs that were being uploaded when it died are in no journal.
        let saved = stored + usize::try_from(changes_at / 4).unwrap();
        assert!(sent + saved <= packs(&all) + 3, "{changes_at}: {sent} sent, {saved} were there");
    }
}

/// Like [`write`], except that objects before `from` have the content of salt 7.
fn write_from(repository: &Repository, journal: &Path, salt: u64, from: u64) -> Result<()> {
    let mut writer = ImageWriter::new(repository, IMAGE, "1", None, &options(journal, 1))?;
    for object in 0..OBJECTS {
        let header = Some(vec![1].into());
        writer.changed(Change { object, header, ..Change::default() })?;
        writer.data(0, &content(object, if object < from { 7 } else { salt }))?;
    }
    writer.finish().map(|_| ())
}
