//! How much memory the waiting events of a read-ahead take, counted by the allocator.

mod support;

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use strata::Result;
use strata::fold::{DataSink, Folded, ReadingAhead, Sink};
use strata::pack::FrameReader;
use support::{memory_store, repository};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const OBJECTS: u64 = 10_240;
const SPILL: usize = 60 << 10;
const LIMIT: usize = 16 << 20;

/// Checks that everything arrives unchanged and in order.
#[derive(Default)]
struct Told {
    objects: u64,
    holes: u64,
    ends: u64,
}

impl DataSink for Told {
    fn object(&mut self, object: &Folded) -> Result<()> {
        assert_eq!(object, &folded(self.objects));
        self.objects += 1;
        Ok(())
    }

    fn hole(&mut self, object: u64, _: u64, _: u64) -> Result<()> {
        assert_eq!(object + 1, self.objects);
        self.holes += 1;
        Ok(())
    }

    fn data(&mut self, object: u64, _: u64, _: &Bytes) -> Result<()> {
        panic!("object {object} has no data")
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        assert_eq!(object + 1, self.objects);
        self.ends += 1;
        Ok(())
    }
}

fn folded(object: u64) -> Folded {
    let bytes = |length| Some(vec![object as u8; length].into());
    Folded { object, fresh: true, header: bytes(300), spill: bytes(SPILL) }
}

/// Files with an ACL or attributes of their own have a spill, and empty ones have no frame that would fill the queue.
#[test]
fn objects_with_spills_and_no_data_do_not_pile_up() {
    let repository = repository(memory_store());
    let mut frames = FrameReader::new(&repository, 1 << 20);
    let mut told = Told::default();
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let mut ahead = ReadingAhead::new(&mut frames, &mut told).unwrap();
    for object in 0..OBJECTS {
        Sink::object(&mut ahead, &folded(object)).unwrap();
        let hole = strata::delta::Extent { offset: 0, length: 8192, block: None };
        Sink::extent(&mut ahead, object, &hole).unwrap();
        Sink::object_end(&mut ahead, object).unwrap();
    }
    ahead.finish().unwrap();
    let peak = MEMORY.peak_usage() - before;
    assert_eq!((told.objects, told.holes, told.ends), (OBJECTS, OBJECTS, OBJECTS));
    assert!(peak < LIMIT, "what waits took {peak} bytes");
}
