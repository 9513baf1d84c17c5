//! Feature flags of a stream, by name (OpenZFS `include/sys/zfs_ioctl.h`).

use std::fmt;

/// The feature bits in a BEGIN record's version word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

const NAMES: [(Features, &str); 16] = [
    (Features::DEDUP, "dedup"),
    (Features::DEDUPPROPS, "dedup-props"),
    (Features::SA_SPILL, "sa-spill"),
    (Features::EMBED_DATA, "embedded-data"),
    (Features::LZ4, "lz4"),
    (Features::LARGE_BLOCKS, "large-blocks"),
    (Features::RESUMING, "resuming"),
    (Features::REDACTED, "redacted"),
    (Features::COMPRESSED, "compressed"),
    (Features::LARGE_DNODE, "large-dnode"),
    (Features::RAW, "raw"),
    (Features::ZSTD, "zstd"),
    (Features::HOLDS, "holds"),
    (Features::SWITCH_TO_LARGE_BLOCKS, "switch-to-large-blocks"),
    (Features::LONGNAME, "longname"),
    (Features::LARGE_MICROZAP, "large-microzap"),
];

impl Features {
    /// Blocks referred to instead of repeated (`-D`, gone since OpenZFS 2.0). Refused.
    pub const DEDUP: Features = Features(1 << 0);
    /// Like [`Features::DEDUP`]. Refused.
    pub const DEDUPPROPS: Features = Features(1 << 1);
    /// Objects may have spill blocks.
    pub const SA_SPILL: Features = Features(1 << 2);
    /// WRITE_EMBEDDED records (`-e`).
    pub const EMBED_DATA: Features = Features(1 << 16);
    /// LZ4 blocks.
    pub const LZ4: Features = Features(1 << 17);
    /// Blocks over 128 KiB (`-L`).
    pub const LARGE_BLOCKS: Features = Features(1 << 19);
    /// The rest of a send that was interrupted (`-t`).
    pub const RESUMING: Features = Features(1 << 20);
    /// Parts left out on purpose. Refused.
    pub const REDACTED: Features = Features(1 << 21);
    /// Blocks compressed as they are on disk (`-c`).
    pub const COMPRESSED: Features = Features(1 << 22);
    /// Dnodes over 512 bytes.
    pub const LARGE_DNODE: Features = Features(1 << 23);
    /// Encrypted as it is on disk (`-w`).
    pub const RAW: Features = Features(1 << 24);
    /// Zstandard blocks.
    pub const ZSTD: Features = Features(1 << 25);
    /// The package's properties hold user holds (`-h`).
    pub const HOLDS: Features = Features(1 << 26);
    /// The receiver must cope with a change to [`Features::LARGE_BLOCKS`].
    pub const SWITCH_TO_LARGE_BLOCKS: Features = Features(1 << 27);
    /// Names over 255 bytes.
    pub const LONGNAME: Features = Features(1 << 28);
    /// Micro ZAPs over 128 KiB.
    pub const LARGE_MICROZAP: Features = Features(1 << 29);

    /// The features that this crate reads.
    pub const SUPPORTED: Features = Features(
        Self::SA_SPILL.0
            | Self::EMBED_DATA.0
            | Self::LZ4.0
            | Self::LARGE_BLOCKS.0
            | Self::RESUMING.0
            | Self::COMPRESSED.0
            | Self::LARGE_DNODE.0
            | Self::RAW.0
            | Self::ZSTD.0
            | Self::HOLDS.0
            | Self::SWITCH_TO_LARGE_BLOCKS.0
            | Self::LONGNAME.0
            | Self::LARGE_MICROZAP.0,
    );

    /// Whether every bit of `other` is set.
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the bits of both.
    pub fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Returns the bits of `self` that aren't in `other`.
    pub fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let mut separator = "";
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 == 1) {
            let one = Features(1 << bit);
            f.write_str(separator)?;
            separator = ", ";
            match NAMES.iter().find(|(feature, _)| *feature == one) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "unknown (bit {bit})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_and_unknown_bits() {
        let features = Features::LZ4.union(Features(1 << 18)).union(Features::LARGE_MICROZAP);
        assert_eq!(features.to_string(), "lz4, unknown (bit 18), large-microzap");
        assert_eq!(Features::default().to_string(), "none");
        assert_eq!(features.without(Features::SUPPORTED), Features(1 << 18));
    }
}
