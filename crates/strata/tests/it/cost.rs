//! What operations cost in calls to the store, what writers refuse, and how much memory a fold takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::support::*;
use strata::Error;
use strata::delta::{
    Block, Change, DeltaWriter, Extent, ImageOptions, ImageWriter, IndexOptions, chain,
};
use strata::pack::{Location, PackOptions};
use strata::store::testing::Counting;

#[test]
fn an_unchanged_image_stores_no_pack_and_a_restore_reads_each_live_frame_once() {
    let counting = Counting::new(memory_store());
    let repository = repository(Arc::new(counting.clone()));
    let options = ImageOptions {
        frame_size: 4096,
        packs: PackOptions { pack_size: 16 << 10, ..PackOptions::default() },
        index: IndexOptions::default(),
        resume: None,
    };
    let content = |number: u64, byte: u8| vec![Act::Write(0, SPACE, byte), Act::Hole(number, 1)];
    let mut image = Image::new();
    let create =
        (0..40).map(|number| Step::Create(number, 1, 1, content(number, 3))).collect::<Vec<_>>();
    write_delta(&repository, &mut image, &create, "0", None, &options).unwrap();
    write_delta(&repository, &mut image, &[], "1", Some("0"), &options).unwrap();
    let puts = |calls: Vec<strata::store::testing::Call>| {
        calls.iter().filter(|call| call.verb == "put" && call.path.contains("/packs/")).count()
    };
    counting.take();
    write_delta(&repository, &mut image, &[], "2", Some("1"), &options).unwrap();
    assert_eq!(puts(counting.take()), 0, "an unchanged image stores no pack");
    // Half of the objects are rewritten, so half of the first delta's frames are dead.
    let change: Vec<_> =
        (0..20).map(|number| Step::Change(number, vec![Act::Write(0, SPACE, 7)])).collect();
    write_delta(&repository, &mut image, &change, "3", Some("2"), &options).unwrap();
    let all = chain(&repository, IMAGE, "3", None).unwrap();
    for ahead in [false, true] {
        counting.take();
        let restored = restored_by(&repository, &all, &Image::new(), ahead, 1 << 20).unwrap();
        assert_eq!(restored, image);
        let mut reads = counting.take();
        reads.retain(|call| call.path.contains("/packs/"));
        let frame = |call: &strata::store::testing::Call| {
            (call.path.clone(), call.range.clone().unwrap().start)
        };
        let distinct: BTreeSet<_> = reads.iter().map(frame).collect();
        assert_eq!(distinct.len(), reads.len(), "a frame was read twice");
        assert!(reads.len() <= 42, "{} frames read", reads.len());
        if ahead {
            // Each of these packs is small enough to be read in one call.
            let packs: BTreeSet<_> = reads.iter().map(|call| &call.path).collect();
            assert_eq!(packs.len(), reads.len(), "a pack was read twice");
        }
    }
}

/// A fold moves forward in a frame of each delta. If there are more deltas than frames can be kept, frames are dropped
/// and requested again while the queue still needs them. A reader that took them in the order of the requests would
/// wait forever.
#[test]
fn more_deltas_than_frames_are_kept_of() {
    // A frame of each delta contains a part of all objects, and there are more objects than the queue holds.
    const DELTAS: u64 = 150;
    const OBJECTS: u64 = 300;
    let repository = repository(memory_store());
    let options = ImageOptions { frame_size: 4096, ..small() };
    let mut image = Image::new();
    let create = |n| Step::Create(n, 1, 1, vec![Act::Write(0, SPACE, 1)]);
    let create: Vec<_> = (0..OBJECTS).map(create).collect();
    write_delta(&repository, &mut image, &create, "0", None, &options).unwrap();
    for delta in 1..=DELTAS {
        let write = vec![Act::Write(delta * 8, 8, delta as u8)];
        let change: Vec<_> = (0..OBJECTS).map(|n| Step::Change(n, write.clone())).collect();
        let (id, base) = (delta.to_string(), (delta - 1).to_string());
        write_delta(&repository, &mut image, &change, &id, Some(&base), &options).unwrap();
    }
    let all = chain(&repository, IMAGE, &DELTAS.to_string(), None).unwrap();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for frames in [40, 140, 200] {
            let restored =
                restored_by(&repository, &all, &Image::new(), true, frames * 4096).unwrap();
            assert_eq!(restored, image, "{frames} frames kept");
            done.send(frames).unwrap();
        }
    });
    let mut last = None;
    while last != Some(200) {
        let next = finished.recv_timeout(std::time::Duration::from_secs(60));
        last = Some(next.unwrap_or_else(|error| panic!("after {last:?} frames: {error}")));
    }
}

#[test]
fn writers_refuse_what_comes_too_late() {
    let repository = repository(memory_store());
    let mut writer = ImageWriter::new(&repository, IMAGE, "0", None, &small()).unwrap();
    let change = |object| Change { object, ..Change::default() };
    let refused = |result: strata::Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Order { .. }), "{error}");
        assert!(error.hint().is_some());
        error.to_string()
    };
    refused(writer.data(0, b"x"));
    refused(writer.freed(3, 0));
    writer.freed(3, 4).unwrap();
    let text = refused(writer.changed(change(6)));
    assert!(text.contains("object 6") && text.contains("object 7 or later"), "{text}");
    refused(writer.data(0, b"x"));
    writer.changed(change(7)).unwrap();
    writer.data(10, b"abc").unwrap();
    let text = refused(writer.data(12, b"x"));
    assert!(text.contains("object 7 at 12") && text.contains("offset 13 or later"), "{text}");
    refused(writer.hole(12, 1));
    refused(writer.hole(13, 0));
    writer.hole(13, u64::MAX).unwrap();
    refused(writer.data(99, b"x"));
    writer.freed(u64::MAX - 1, 1).unwrap();
    writer.finish().unwrap();
    for bad in ["a/b", "", ".."] {
        assert!(ImageWriter::new(&repository, bad, "0", None, &small()).is_err());
    }
}

#[test]
fn an_extent_in_a_pack_of_unknown_size_is_refused() {
    let repository = repository(memory_store());
    let mut writer = DeltaWriter::new(&repository, IMAGE, "0", None, &small_index()).unwrap();
    writer.changed(Change { object: 1, ..Change::default() }).unwrap();
    let location = Location { size: 5, ..Location::default() };
    let block = Block { location, length: 5, ..Block::default() };
    writer.extent(Extent { offset: 0, length: 5, block: Some(block) }).unwrap();
    assert!(matches!(writer.finish([]), Err(Error::Chain { .. })));
}

#[test]
fn chains_end_and_deltas_follow_each_other() {
    let repository = repository(memory_store());
    let mut image = Image::new();
    for (id, base) in
        [("0", None), ("1", Some("0")), ("2", Some("1")), ("a", Some("b")), ("b", Some("a"))]
    {
        write_delta(&repository, &mut image, &[], id, base, &small()).unwrap();
    }
    assert!(matches!(chain(&repository, IMAGE, "0", Some("2")), Err(Error::Chain { .. })));
    assert!(matches!(chain(&repository, IMAGE, "a", None), Err(Error::Chain { .. })));
    assert!(chain(&repository, IMAGE, "3", None).unwrap_err().is_not_found());
    let mut all = chain(&repository, IMAGE, "2", None).unwrap();
    all.remove(1);
    assert!(matches!(restored(&repository, &all, &image), Err(Error::Chain { .. })));
}
