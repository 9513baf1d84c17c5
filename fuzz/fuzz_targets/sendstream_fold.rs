//! Arbitrary bytes as a chain of streams: the tree, the statistics, and a fold that must itself be a valid stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::zpl::{NoContent, TreeBuilder};
use sendstream::{ReadOptions, Reader};

fn chain<'a>(streams: &[&'a [u8]]) -> Option<Vec<StreamDelta<&'a [u8]>>> {
    let options = ReadOptions::default().without_checksums();
    streams
        .iter()
        .map(|bytes| StreamDelta::new(Reader::with_options(*bytes, options).ok()?).ok())
        .collect()
}

fuzz_target!(|data: &[u8]| {
    // The input is split into streams at the marker.
    let mut streams: Vec<&[u8]> = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(8).position(|window| window == b"NEXTFILE") {
        streams.push(&rest[..at]);
        rest = &rest[at + 8..];
    }
    streams.push(rest);
    streams.truncate(4);
    let Some(deltas) = chain(&streams) else { return };
    let mut builder = TreeBuilder::new(NoContent);
    if fold(deltas, &mut builder).is_ok()
        && let Ok(tree) = builder.finish()
    {
        let _ = tree.walk(|_| Ok(()));
        for (object, _) in tree.nodes() {
            let _ = tree.xattrs(object);
        }
    }
    let Some(deltas) = chain(&streams) else { return };
    let mut sink = StreamSink::new(Vec::new());
    if fold(deltas, &mut sink).is_ok() {
        let written = sink.finish().expect("a fold that went well ends well");
        let mut reader = Reader::new(&written[..]).expect("what was written has a BEGIN");
        while reader.next_record().expect("what was written can be read").is_some() {}
    }
});
