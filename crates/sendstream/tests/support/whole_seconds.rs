//! The times that zfs-fuse reports.

/// zfs-fuse's stat returns whole seconds, so its recorded trees have no fractions.
pub fn whole_seconds(listing: &str) -> String {
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        if let Some(Ok(mtime)) = fields.get(6).map(|mtime| mtime.parse::<i128>()) {
            fields[6] = format!("{}", mtime.div_euclid(1_000_000_000) * 1_000_000_000);
        }
        fields.join("\t") + "\n"
    };
    listing.lines().map(line).collect()
}
