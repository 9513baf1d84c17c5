//! The listing of a tree: one line per entry, with the SHA-256 of its content.

use std::io::Write;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::zpl::{ContentVisitor, Entry, FileType, Tree, TreeBuilder};

/// Computes the SHA-256 of each file as its blocks are read; the gaps between them count as zeros.
#[derive(Clone, Debug, Default)]
pub struct HashVisitor {
    hash: Sha256,
    position: u64,
    size: Option<u64>,
}

const ZEROS: &[u8] = &[0; 64 << 10];

impl HashVisitor {
    fn zeros_until(&mut self, offset: u64) {
        while self.position < offset {
            let count = (offset - self.position).min(ZEROS.len() as u64);
            self.hash.update(&ZEROS[..count as usize]);
            self.position += count;
        }
    }
}

impl ContentVisitor for HashVisitor {
    type Output = [u8; 32];

    fn begin(&mut self, _object: u64, size: Option<u64>) -> bool {
        *self = HashVisitor { size, ..HashVisitor::default() };
        true
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let size = self.size.unwrap_or(u64::MAX);
        self.zeros_until(offset.min(size));
        let count = (bytes.len() as u64).min(size.saturating_sub(offset));
        self.hash.update(&bytes[..count as usize]);
        self.position += count;
        Ok(())
    }

    fn end(&mut self, _object: u64) -> Result<Option<[u8; 32]>> {
        self.zeros_until(self.size.unwrap_or(0));
        Ok(Some(std::mem::take(&mut self.hash).finalize().into()))
    }
}

/// Returns a builder of trees for [`write_listing`].
pub fn hashing_builder() -> TreeBuilder<HashVisitor> {
    TreeBuilder::new(HashVisitor::default())
}

/// The first line of a listing.
pub const HEADING: &str =
    "# path\ttype\tmode\tuid\tgid\tsize\tmtime_ns\tsha256[:32] of the content or link target";

/// Writes a line for each name: path, type, mode, uid, gid, size, mtime in nanoseconds, the first 32 digits of the
/// SHA-256 of the content or the link's target; separated by tabs, sorted by path. In paths, a backslash, a tab and
/// a line feed are written `\\`, `\t` and `\n`.
pub fn write_listing(tree: &Tree<[u8; 32]>, output: &mut impl Write) -> Result<()> {
    writeln!(output, "{HEADING}")?;
    if let Some(size) = tree.volume_size() {
        let hash = tree.node(tree.root()).and_then(|node| node.content).map(|hash| hex(&hash));
        writeln!(output, ".\tv\t-\t-\t-\t{size}\t-\t{}", hash.as_deref().unwrap_or("-"))?;
        return Ok(());
    }
    tree.walk(|entry| write_line(&entry, output))
}

fn write_line(entry: &Entry<'_, [u8; 32]>, output: &mut impl Write) -> Result<()> {
    let attributes = &entry.node.attributes;
    let kind = attributes.file_type();
    let (size, hash) = match kind {
        FileType::Regular => (Some(attributes.size), entry.node.content),
        FileType::Symlink => {
            let target = attributes.symlink.as_deref().unwrap_or_default();
            (Some(attributes.size), Some(Sha256::digest(target).into()))
        }
        _ => (None, None),
    };
    for byte in entry.path {
        match byte {
            b'\\' => output.write_all(b"\\\\")?,
            b'\t' => output.write_all(b"\\t")?,
            b'\n' => output.write_all(b"\\n")?,
            other => output.write_all(&[*other])?,
        }
    }
    writeln!(
        output,
        "\t{kind}\t{:04o}\t{}\t{}\t{}\t{}\t{}",
        attributes.permissions(),
        attributes.uid,
        attributes.gid,
        size.map_or("-".to_string(), |size| size.to_string()),
        attributes.mtime.as_nanoseconds(),
        hash.map_or("-".to_string(), |hash| hex(&hash)),
    )?;
    Ok(())
}

fn hex(hash: &[u8; 32]) -> String {
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
