//! How much memory a fold of 64 deltas takes, counted by the allocator.
//!
//! `STRATA_EXTENTS` sets how many extents each delta has.

mod support;

use peak_alloc::PeakAlloc;
use strata::delta::{Block, Change, DeltaWriter, Extent, IndexOptions, chain};
use strata::fold::{Folded, Sink, fold, merge, open_chain};
use strata::lease::HELD;
use strata::pack::{Location, Packed};
use strata::{Result, Ulid};
use support::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const DELTAS: u64 = 64;
const OBJECTS: u64 = 100;
const LIMIT: usize = 64 << 20;

#[derive(Default)]
struct Count {
    extents: u64,
}

impl Sink for Count {
    fn object(&mut self, _: &Folded) -> Result<()> {
        Ok(())
    }

    fn extent(&mut self, _: u64, _: &Extent) -> Result<()> {
        self.extents += 1;
        Ok(())
    }
}

#[test]
fn a_fold_of_64_deltas_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    let wanted = std::env::var("STRATA_EXTENTS").ok().and_then(|text| text.parse().ok());
    let extents: u64 = wanted.unwrap_or(16_000);
    let mut random = fastrand::Rng::with_seed(1);
    let started = std::time::Instant::now();
    for number in 0..DELTAS {
        let base = number.checked_sub(1).map(|base| base.to_string());
        let id = number.to_string();
        let options = IndexOptions::default();
        let mut writer =
            DeltaWriter::new(&repository, IMAGE, &id, base.as_deref(), &options).unwrap();
        let mut packs: Vec<Packed> = (0..8)
            .map(|_| Ulid::new().unwrap())
            .map(|pack| Packed { pack, size: 64 << 20, content: 128 << 20 })
            .collect();
        packs.sort_by_key(|packed| packed.pack);
        for object in 0..OBJECTS {
            let header = Some(vec![1; 300].into());
            writer.changed(Change { object, header, ..Change::default() }).unwrap();
            let mut offset = 0;
            for index in 0..extents / OBJECTS {
                offset += 8192 * random.u64(0..100);
                let location = Location {
                    pack: packs[(object * 8 / OBJECTS) as usize].pack,
                    frame: (object * extents / OBJECTS + index) / 128 * 300_000,
                    frame_length: random.u64(200_000..300_000),
                    start: index % 128 * 8192,
                    size: 8192,
                };
                let block = Block { location, length: 8192, ..Block::default() };
                writer.extent(Extent { offset, length: 8192, block: Some(block) }).unwrap();
                offset += 8192;
            }
        }
        writer.finish(packs).unwrap();
    }
    let written = started.elapsed();
    let all = chain(&repository, IMAGE, &(DELTAS - 1).to_string(), None).unwrap();
    let bytes: u64 = all.iter().flat_map(|delta| delta.files()).map(|file| file.size).sum();

    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let started = std::time::Instant::now();
    let mut count = Count::default();
    let deltas = open_chain(&repository, &all, 32 << 20).unwrap();
    fold(deltas, true, &Model, &mut count).unwrap();
    let (fold_peak, folded) = (MEMORY.peak_usage() - before, started.elapsed());

    MEMORY.reset_peak_usage();
    let started = std::time::Instant::now();
    let merged =
        merge(&repository, &all[1..], &Model, 32 << 20, &IndexOptions::default(), HELD).unwrap();
    let (merge_peak, merging) = (MEMORY.peak_usage() - before, started.elapsed());

    let total = DELTAS * extents;
    eprintln!(
        "{total} extents in {DELTAS} deltas, {} bytes of index ({:.1} each), written in {written:?}; \
         fold: {} live, peak {} KiB, {folded:?}; merge of {}: {} extents, peak {} KiB, {merging:?}",
        bytes,
        bytes as f64 / total as f64,
        count.extents,
        fold_peak >> 10,
        DELTAS - 1,
        merged.extent_count(),
        merge_peak >> 10,
    );
    assert!(fold_peak < LIMIT, "a fold took {fold_peak} bytes");
    assert!(merge_peak < LIMIT, "a merge took {merge_peak} bytes");
}
