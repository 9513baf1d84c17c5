//! The two algorithms that are small enough to need no crate.

/// LZJB (`module/zfs/lzjb.c`): a byte of eight flags, then eight items, each a byte or a copy of 3 to 66 bytes from
/// up to 1023 bytes back.
pub(super) fn lzjb(input: &[u8], output: &mut [u8]) -> Result<(), String> {
    let short = || "it ends too early".to_string();
    let mut input = input.iter().copied();
    let mut at = 0;
    while at < output.len() {
        let flags = input.next().ok_or_else(short)?;
        for bit in 0..8 {
            if at == output.len() {
                break;
            }
            let first = input.next().ok_or_else(short)?;
            if flags >> bit & 1 == 0 {
                output[at] = first;
                at += 1;
                continue;
            }
            let second = input.next().ok_or_else(short)?;
            let length = usize::from(first >> 2) + 3;
            let back = usize::from(first & 3) << 8 | usize::from(second);
            if back == 0 || back > at {
                return Err(format!("it copies from {back} bytes before byte {at}"));
            }
            let end = output.len().min(at + length);
            // Byte by byte, because a copy may overlap what it writes.
            while at < end {
                output[at] = output[at - back];
                at += 1;
            }
        }
    }
    Ok(())
}

/// ZLE (`module/zfs/zle.c`), always with level 64: a count below 64 is followed by that many bytes plus one; a count of
/// 64 or more is a run of zeros.
pub(super) fn zle(input: &[u8], output: &mut [u8]) -> Result<(), String> {
    const LITERALS: usize = 64;
    let mut input = input;
    let mut at = 0;
    while at < output.len() {
        let Some((&count, rest)) = input.split_first() else {
            return Err("it ends too early".to_string());
        };
        input = rest;
        let mut length = usize::from(count) + 1;
        if length <= LITERALS {
            let (Some(literals), Some(place)) =
                (input.get(..length), output.get_mut(at..at + length))
            else {
                return Err("a run is longer than what is left".to_string());
            };
            place.copy_from_slice(literals);
            input = &input[length..];
        } else {
            length -= LITERALS;
            match output.get_mut(at..at + length) {
                Some(place) => place.fill(0),
                None => return Err("a run is longer than what is left".to_string()),
            }
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zle_literals_and_zeros() {
        let mut output = [9u8; 14];
        // 3 literals, 10 zeros, 1 literal; then padding.
        zle(&[2, b'a', b'b', b'c', 73, 0, b'z', 0, 0], &mut output).unwrap();
        assert_eq!(&output, b"abc\0\0\0\0\0\0\0\0\0\0z");
        assert!(zle(&[2, b'a'], &mut [0; 3]).is_err());
        assert!(zle(&[200], &mut [0; 3]).is_err());
        assert!(zle(&[], &mut [0; 3]).is_err());
    }

    #[test]
    fn lzjb_literals_and_overlapping_copies() {
        let mut output = [0u8; 12];
        // 'a', 'b', then copy 10 bytes from 2 back.
        lzjb(&[0b100, b'a', b'b', 7 << 2, 2], &mut output).unwrap();
        assert_eq!(&output, b"abababababab");
        assert!(lzjb(&[1, 0, 5], &mut [0; 8]).is_err(), "copies from before the start");
        assert!(lzjb(&[1, 0, 0], &mut [0; 8]).is_err(), "copies from itself");
        for length in 0..5 {
            assert!(lzjb(&[0b100, b'a', b'b', 7 << 2, 2][..length], &mut [0; 12]).is_err());
        }
    }
}
