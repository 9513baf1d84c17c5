//! Measures what a fold of many large deltas takes: bytes of index per extent, seconds, memory.
//!
//! It makes deltas that consist of an index alone, whose extents name packs that don't exist, and folds them as a
//! restore does.
//!
//!     cargo run --release -p strata --example fold_memory -- --deltas 64 --extents 500000000 [--folder DIR]
//!
//! `--extents` is the total of all deltas. Their files are in a temporary folder below DIR and are removed at the end.

use std::path::PathBuf;
use std::time::Instant;

use peak_alloc::PeakAlloc;
use strata::delta::{Block, Change, DeltaWriter, Descriptor, Extent, IndexOptions, chain};
use strata::fold::{Folded, KeepAll, Sink, fold, open_chain};
use strata::pack::{Location, Packed};
use strata::store::{ObjectStorage, Store};
use strata::{Repository, Result, Ulid};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const IMAGE: &str = "image";
const PAGE: u64 = 8192;
/// Pages per object: a segment of a relation.
const PAGES: u64 = 131_072;
/// The most unchanged pages between two changed ones.
const GAP: u64 = 100;
/// The memory for the indexes, as in a restore.
const INDEX_MEMORY: u64 = 64 << 20;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (mut deltas, mut extents, mut folder) = (64, 5_000_000, std::env::temp_dir());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} what?"))?;
        match word.as_str() {
            "--deltas" => deltas = value.parse()?,
            "--extents" => extents = value.parse()?,
            "--folder" => folder = PathBuf::from(value),
            _ => return Err(format!("{word} is none of --deltas, --extents, --folder").into()),
        }
    }
    let folder = tempfile::tempdir_in(folder)?;
    let store = Store::new(ObjectStorage::folder(folder.path())?);
    let repository = Repository::new(store, "", None)?;

    let started = Instant::now();
    forget_peaks();
    for number in 0..deltas {
        write(&repository, number, extents / deltas)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let chain = chain(&repository, IMAGE, &(deltas - 1).to_string(), None)?;
    let bytes: u64 = chain.iter().flat_map(Descriptor::files).map(|file| file.size).sum();
    let written: u64 = chain.iter().map(Descriptor::extent_count).sum();
    println!(
        "{deltas} deltas of {written} extents in all: {bytes} bytes of index, {:.2} an extent; written in {seconds:.1} s, \
         {:.2} million extents a second, {}",
        bytes as f64 / written as f64,
        written as f64 / seconds / 1e6,
        peaks(),
    );

    forget_peaks();
    let started = Instant::now();
    let mut count = Count::default();
    let readers = open_chain(&repository, &chain, INDEX_MEMORY)?;
    fold(readers, true, &KeepAll, &mut count)?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "folded in {seconds:.1} s, {:.2} million extents a second, to {} live ones of {} objects, {}",
        written as f64 / seconds / 1e6,
        count.extents,
        count.objects,
        peaks(),
    );
    Ok(())
}

/// Writes a delta that changes scattered pages, in as many objects as that takes.
fn write(repository: &Repository, number: u64, extents: u64) -> Result<()> {
    let base = number.checked_sub(1).map(|base| base.to_string());
    let options = IndexOptions::default();
    let id = number.to_string();
    let mut writer = DeltaWriter::new(repository, IMAGE, &id, base.as_deref(), &options)?;
    let mut random = fastrand::Rng::with_seed(number);
    let (mut object, mut page) = (0, PAGES);
    let mut packs: Vec<Packed> = Vec::new();
    // Frames of 128 pages, about 300 KB each; packs of 24 MiB.
    let (mut frame, mut frame_length) = (0, 0);
    for index in 0..extents {
        if index % 128 == 0 {
            frame += frame_length;
            frame_length = random.u64(200_000..400_000);
            if packs.is_empty() || frame + frame_length > 24 << 20 {
                let pack = Ulid(u128::from(number) << 64 | packs.len() as u128);
                packs.push(Packed { pack, size: 24 << 20, content: 128 << 20 });
                frame = 0;
            }
        }
        page += 1 + random.u64(0..GAP);
        if page >= PAGES {
            (object, page) = (object + 1, random.u64(0..GAP));
            let header = Some(vec![1; 300].into());
            writer.changed(Change { object, header, ..Change::default() })?;
        }
        let location = Location {
            pack: packs.last().map_or(Ulid(0), |packed| packed.pack),
            frame,
            frame_length,
            start: index % 128 * PAGE,
            size: PAGE,
        };
        let block = Block { location, length: PAGE, ..Block::default() };
        writer.extent(Extent { offset: page * PAGE, length: PAGE, block: Some(block) })?;
    }
    writer.finish(packs).map(|_| ())
}

#[derive(Default)]
struct Count {
    objects: u64,
    extents: u64,
}

impl Sink for Count {
    fn object(&mut self, _: &Folded) -> Result<()> {
        self.objects += 1;
        Ok(())
    }

    fn extent(&mut self, _: u64, _: &Extent) -> Result<()> {
        self.extents += 1;
        Ok(())
    }
}

fn forget_peaks() {
    MEMORY.reset_peak_usage();
    // If it can't be written, the reported peak is that since the start.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Returns the most memory that was allocated, and that was resident.
fn peaks() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
    format!("at most {} MiB allocated and {} MiB resident", MEMORY.peak_usage() >> 20, kib >> 10)
}
