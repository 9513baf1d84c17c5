//! Fixed-width integers in either byte order, read without ever reaching past the end.

/// The byte order of the machine that wrote a stream.
///
/// ZFS writes everything in the sender's own order; the magic number tells the reader which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// x86-64, aarch64: nearly every stream.
    Little,
    /// SPARC, s390x, big-endian POWER.
    Big,
}

macro_rules! integer {
    ($get:ident, $put:ident, $type:ty, $width:expr) => {
        #[doc = concat!("The `", stringify!($type), "` at `at`, or `None` where the bytes end before it.")]
        #[inline]
        pub fn $get(self, bytes: &[u8], at: usize) -> Option<$type> {
            let raw: [u8; $width] = bytes.get(at..at.checked_add($width)?)?.try_into().ok()?;
            Some(match self {
                ByteOrder::Little => <$type>::from_le_bytes(raw),
                ByteOrder::Big => <$type>::from_be_bytes(raw),
            })
        }

        #[doc = concat!("Stores a `", stringify!($type), "` at `at`; does nothing where it doesn't fit.")]
        #[inline]
        pub fn $put(self, bytes: &mut [u8], at: usize, value: $type) {
            let raw = match self {
                ByteOrder::Little => value.to_le_bytes(),
                ByteOrder::Big => value.to_be_bytes(),
            };
            if let Some(place) = at.checked_add($width).and_then(|end| bytes.get_mut(at..end)) {
                place.copy_from_slice(&raw);
            }
        }
    };
}

impl ByteOrder {
    integer!(u16, put_u16, u16, 2);
    integer!(u32, put_u32, u32, 4);
    integer!(u64, put_u64, u64, 8);

    /// Returns the other order.
    pub fn swapped(self) -> ByteOrder {
        match self {
            ByteOrder::Little => ByteOrder::Big,
            ByteOrder::Big => ByteOrder::Little,
        }
    }

    /// Returns the order in which the `u32` at `at` reads as `magic`, if there is one.
    pub(crate) fn of_magic_u32(bytes: &[u8], at: usize, magic: u32) -> Option<ByteOrder> {
        [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| order.u32(bytes, at) == Some(magic))
    }

    /// Returns the order in which the `u64` at `at` reads as `magic`, if there is one.
    pub(crate) fn of_magic_u64(bytes: &[u8], at: usize, magic: u64) -> Option<ByteOrder> {
        [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| order.u64(bytes, at) == Some(magic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_and_the_end() {
        let bytes = [1u8, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(ByteOrder::Little.u16(&bytes, 0), Some(0x0201));
        assert_eq!(ByteOrder::Big.u32(&bytes, 4), Some(0x0506_0708));
        assert_eq!(ByteOrder::Big.u64(&bytes, 0), Some(0x0102_0304_0506_0708));
        assert_eq!(ByteOrder::Big.u64(&bytes, 1), None);
        assert_eq!(ByteOrder::Big.u16(&bytes, usize::MAX), None);
    }
}
