//! The algorithms that other crates implement, with ZFS's framing.

/// LZ4 (`module/zfs/lz4_zfs.c`): the compressed length as a big-endian word, then a block without a frame.
#[cfg(feature = "lz4")]
pub(super) fn lz4(input: &[u8], output: &mut [u8]) -> Result<(), String> {
    let (length, rest) = input.split_first_chunk::<4>().ok_or("it is shorter than its header")?;
    let length = u32::from_be_bytes(*length) as usize;
    let compressed = rest.get(..length).ok_or("its length is more than there is")?;
    match lz4_flex::block::decompress_into(compressed, output) {
        Ok(written) if written == output.len() => Ok(()),
        Ok(written) => {
            Err(format!("it holds {written} bytes where {} were expected", output.len()))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// gzip (`module/zfs/gzip.c`): a zlib stream.
#[cfg(feature = "gzip")]
pub(super) fn gzip(input: &[u8], output: &mut [u8]) -> Result<(), String> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::inflate_flags::{
        TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
    };
    let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<miniz_oxide::inflate::core::DecompressorOxide>::default();
    let expected = output.len();
    let (status, _, written) =
        miniz_oxide::inflate::core::decompress(&mut state, input, output, 0, flags);
    match status {
        TINFLStatus::Done if written == expected => Ok(()),
        TINFLStatus::Done => {
            Err(format!("it holds {written} bytes where {expected} were expected"))
        }
        other => Err(format!("{other:?}")),
    }
}

/// Zstandard (`include/sys/zstd/zstd.h`): the compressed length and the version and level, both big-endian words,
/// then a frame without its magic number.
#[cfg(feature = "zstd")]
#[derive(Default)]
pub(super) struct Zstd {
    decoder: Option<zstd::bulk::Decompressor<'static>>,
    frame: Vec<u8>,
}

#[cfg(feature = "zstd")]
impl Zstd {
    pub(super) fn decompress(&mut self, input: &[u8], output: &mut [u8]) -> Result<(), String> {
        const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
        let (length, rest) =
            input.split_first_chunk::<4>().ok_or("it is shorter than its header")?;
        let length = u32::from_be_bytes(*length) as usize;
        let compressed = rest
            .get(4..)
            .and_then(|rest| rest.get(..length))
            .ok_or("its length is more than there is")?;
        self.frame.clear();
        self.frame.extend_from_slice(&MAGIC);
        self.frame.extend_from_slice(compressed);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                none.insert(zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?)
            }
        };
        match decoder.decompress_to_buffer(&self.frame, output) {
            Ok(written) if written == output.len() => Ok(()),
            Ok(written) => {
                Err(format!("it holds {written} bytes where {} were expected", output.len()))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
