//! Makes seeds for the fuzz targets from a recorded chain: `fuzz_seeds FULL INCREMENTAL FOLDER`.

use std::path::Path;

use sendstream::record::{Header, object_type};
use sendstream::{Reader, Writer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [full, incremental, folder] = &arguments[..] else {
        return Err("usage: fuzz_seeds FULL INCREMENTAL FOLDER".into());
    };
    let put = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let folder = Path::new(folder).join(format!("sendstream_{target}"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    let mut small = Vec::new();
    for (which, path) in [full, incremental].into_iter().enumerate() {
        let bytes = std::fs::read(path)?;
        let mut reader = Reader::new(&bytes[..])?;
        let mut writer = Writer::new(Vec::new(), &reader.begin().clone(), reader.begin_payload())?;
        while let Some(record) = reader.next_record()? {
            let name = format!("{which}-{}", record.index);
            match record.header {
                Header::End(_) => break,
                // Only small blocks, and few, because only the shape of a stream matters.
                Header::Write(write)
                    if record.payload.len() <= 16384 && writer.bytes() < 100_000 =>
                {
                    if write.kind != object_type::PLAIN_FILE {
                        let shift = write.logical_size.trailing_zeros() as u8;
                        put("zap", &name, &[&[shift], record.payload].concat())?;
                        writer.record(record.header, record.payload)?;
                    } else if record.payload.len() <= 512 {
                        writer.record(record.header, record.payload)?;
                    }
                    if write.compression != 0 {
                        let length = ((write.logical_size - 1) as u16).to_le_bytes();
                        put(
                            "decompress",
                            &name,
                            &[&[write.compression], &length[..], record.payload].concat(),
                        )?;
                    }
                }
                Header::Write(_) => {}
                _ if writer.bytes() < 100_000 => {
                    if let Header::Object(object) = record.header
                        && object.bonus_type == object_type::SA
                    {
                        let tables = [
                            8, 8, 8, 8, 8, 8, 8, 16, 8, 0, 0, 16, 0, 1, 2, 3, 4, 5, 6, 11, 7, 8, 9,
                            10,
                        ];
                        put("sa", &name, &[&tables[..], &[0; 4], record.payload].concat())?;
                    }
                    writer.record(record.header, record.payload)?;
                }
                _ => {}
            }
        }
        let stream = writer.finish()?;
        put("reader", &format!("{which}-checked"), &[&[1], &stream[..]].concat())?;
        put("reader", &format!("{which}-unchecked"), &[&[0], &stream[..]].concat())?;
        put("fold", &format!("{which}-alone"), &stream)?;
        small.push(stream);
        if let Some((_, packed)) = reader.package() {
            put("nvlist", &format!("{which}-package"), packed)?;
        }
        if !reader.begin_payload().is_empty() {
            put("nvlist", &format!("{which}-begin"), reader.begin_payload())?;
        }
    }
    put("fold", "chain", &small.join(&b"NEXTFILE"[..]))?;
    Ok(())
}
