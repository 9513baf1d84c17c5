//! Numbers and lists as people read them.

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 pack`, `2 packs`.
#[must_use]
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Names a few of many, for a hint.
#[must_use]
pub fn a_few(all: &[String]) -> String {
    const FEW: usize = 6;
    let shown = all.iter().take(FEW).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(FEW) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
    }

    #[test]
    fn long_lists_end_with_how_many_more_there_are() {
        let many: Vec<_> = (0..9).map(|n| n.to_string()).collect();
        assert_eq!(a_few(&many), "0, 1, 2, 3, 4, 5 and 3 more");
        assert_eq!(a_few(&many[..2]), "0, 1");
    }
}
