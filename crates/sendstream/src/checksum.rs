//! Fletcher-4 over 32-bit words, as OpenZFS computes it over send streams (`module/zcommon/zfs_fletcher.c`).
//!
//! There are four sums, each the running sum of the one before. Computed word by word they form one long chain of
//! additions. Here four lanes each take every fourth word, which compilers turn into vector additions, and the lanes'
//! sums are combined at the end.
//!
//! Word `i` of `n` counts `C(n-i+k-1, k)` times in sum number `k`. In lane `j` of `m = n/4` steps it was counted with
//! `t = m - i/4` in place of `n - i = 4t - j`; the factors in [`join`] convert one into the other.

use pulp::Arch;

use crate::bytes::ByteOrder;

/// A running Fletcher-4 checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fletcher4 {
    sums: [u64; 4],
}

const LANES: usize = 4;
/// Bytes that the lanes sum at a time; this limit keeps the factors below 2^64.
const CHUNK_BYTES: usize = 1 << 20;

impl Fletcher4 {
    /// Returns the checksum of no bytes.
    pub fn new() -> Fletcher4 {
        Fletcher4::default()
    }

    /// Adds bytes to the checksum; a remainder of fewer than four bytes is left out, as ZFS does.
    pub fn update(&mut self, bytes: &[u8], order: ByteOrder) {
        let arch = Arch::new();
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let (blocks, rest) = chunk.as_chunks::<{ 4 * LANES }>();
            if !blocks.is_empty() {
                let lanes = arch.dispatch(|| match order {
                    ByteOrder::Little => lanes::<false>(blocks),
                    ByteOrder::Big => lanes::<true>(blocks),
                });
                self.append((blocks.len() * LANES) as u64, join(&lanes));
            }
            for word in rest.as_chunks::<4>().0 {
                self.word(match order {
                    ByteOrder::Little => u32::from_le_bytes(*word),
                    ByteOrder::Big => u32::from_be_bytes(*word),
                });
            }
        }
    }

    /// Returns the four sums.
    pub fn sums(&self) -> [u64; 4] {
        self.sums
    }

    fn word(&mut self, word: u32) {
        let [a, b, c, d] = &mut self.sums;
        *a = a.wrapping_add(u64::from(word));
        *b = b.wrapping_add(*a);
        *c = c.wrapping_add(*b);
        *d = d.wrapping_add(*c);
    }

    /// Appends `n` words whose own sums are `sums`.
    fn append(&mut self, n: u64, sums: [u64; 4]) {
        let [a, b, c, d] = self.sums;
        // n(n+1)/2 and n(n+1)(n+2)/6 fit: n is at most CHUNK_BYTES / 4 = 2^18.
        let n2 = n * (n + 1) / 2;
        let n3 = n * (n + 1) * (n + 2) / 6;
        let grown = [
            a,
            b.wrapping_add(n.wrapping_mul(a)),
            c.wrapping_add(n.wrapping_mul(b)).wrapping_add(n2.wrapping_mul(a)),
            d.wrapping_add(n.wrapping_mul(c))
                .wrapping_add(n2.wrapping_mul(b))
                .wrapping_add(n3.wrapping_mul(a)),
        ];
        for (sum, (old, new)) in self.sums.iter_mut().zip(grown.into_iter().zip(sums)) {
            *sum = old.wrapping_add(new);
        }
    }
}

/// `sums[k][j]`: sum number `k` of lane `j`.
type Lanes = [[u64; LANES]; 4];

/// Inlined into each of the dispatched functions; otherwise it would be compiled for the oldest processor.
#[inline(always)]
fn lanes<const BIG: bool>(blocks: &[[u8; 4 * LANES]]) -> Lanes {
    let [mut a, mut b, mut c, mut d] = [[0u64; LANES]; 4];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for j in 0..LANES {
            let word =
                if BIG { u32::from_be_bytes(words[j]) } else { u32::from_le_bytes(words[j]) };
            a[j] = a[j].wrapping_add(u64::from(word));
        }
        for j in 0..LANES {
            b[j] = b[j].wrapping_add(a[j]);
        }
        for j in 0..LANES {
            c[j] = c[j].wrapping_add(b[j]);
        }
        for j in 0..LANES {
            d[j] = d[j].wrapping_add(c[j]);
        }
    }
    [a, b, c, d]
}

fn join([a, b, c, d]: &Lanes) -> [u64; 4] {
    let mut sums = [0u64; 4];
    for j in 0..LANES {
        let lane = j as u64;
        let (a, b, c, d) = (a[j], b[j], c[j], d[j]);
        let add = |sum: &mut u64, factor: u64, value: u64| {
            *sum = sum.wrapping_add(factor.wrapping_mul(value))
        };
        let subtract = |sum: &mut u64, factor: u64, value: u64| {
            *sum = sum.wrapping_sub(factor.wrapping_mul(value))
        };
        add(&mut sums[0], 1, a);
        // 4t - j
        add(&mut sums[1], 4, b);
        subtract(&mut sums[1], lane, a);
        // C(4t-j+1, 2) = 16 C(t+1, 2) - (4j+6) t + j(j-1)/2
        add(&mut sums[2], 16, c);
        subtract(&mut sums[2], 4 * lane + 6, b);
        add(&mut sums[2], lane * lane.saturating_sub(1) / 2, a);
        // C(4t-j+2, 3) = 64 C(t+2, 3) - (48+16j) C(t+1, 2) + (2j²+4j+4) t - j(j-1)(j-2)/6
        add(&mut sums[3], 64, d);
        subtract(&mut sums[3], 48 + 16 * lane, c);
        add(&mut sums[3], 2 * lane * lane + 4 * lane + 4, b);
        subtract(&mut sums[3], lane * lane.saturating_sub(1) * lane.saturating_sub(2) / 6, a);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word_by_word(bytes: &[u8], order: ByteOrder) -> Fletcher4 {
        let mut plain = Fletcher4::new();
        for word in bytes.as_chunks::<4>().0 {
            plain.word(match order {
                ByteOrder::Little => u32::from_le_bytes(*word),
                ByteOrder::Big => u32::from_be_bytes(*word),
            });
        }
        plain
    }

    #[test]
    fn equals_the_definition_at_every_length_and_split() {
        let bytes: Vec<u8> =
            (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            for length in (0..200).chain([1023, 1024, 4000]) {
                let mut fast = Fletcher4::new();
                fast.update(&bytes[..length], order);
                assert_eq!(fast, word_by_word(&bytes[..length], order), "length {length}");
            }
            for split in (0..1000).step_by(4) {
                let mut fast = Fletcher4::new();
                fast.update(&bytes[..split], order);
                fast.update(&bytes[split..], order);
                assert_eq!(fast, word_by_word(&bytes, order), "split at {split}");
            }
        }
    }

    #[test]
    fn wraps_around_on_long_input() {
        let bytes = vec![0xffu8; 3 * CHUNK_BYTES + 20];
        let mut fast = Fletcher4::new();
        fast.update(&bytes, ByteOrder::Little);
        assert_eq!(fast, word_by_word(&bytes, ByteOrder::Little));
    }
}
