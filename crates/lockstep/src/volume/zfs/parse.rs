//! What `zfs -H` prints, taken apart. What isn't understood stays in the error, verbatim.

use super::{DatasetName, Properties};
use crate::error::{Error, Result};

/// `zfs get -Hp -o name,property,value`: three columns between tabs. `-` stands for "not set".
pub(super) fn properties(text: &str) -> Result<Properties> {
    let mut all = Properties::new();
    for line in text.lines() {
        let mut columns = line.splitn(3, '\t');
        let (Some(name), Some(property), Some(value)) =
            (columns.next(), columns.next(), columns.next())
        else {
            return Err(Error::failed(format!("cannot read this line of \"zfs get\": {line:?}")));
        };
        all.entry(name.to_owned()).or_default().insert(property.to_owned(), value.to_owned());
    }
    Ok(all)
}

/// A dataset's name as printed.
pub(super) fn dataset(text: &str) -> Result<DatasetName> {
    DatasetName::new(text).map_err(Error::failed)
}

/// A number as printed with `-p`.
pub(super) fn number(text: &str, what: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::failed(format!("\"zfs get\" says {text:?} for {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabs_separate_and_blanks_do_not() {
        let all = properties("t/n:e.s t@x\tlockstep:label\tnight ly\nt\tguid\t17\n").unwrap();
        assert_eq!(all["t/n:e.s t@x"]["lockstep:label"], "night ly");
        assert_eq!(number(&all["t"]["guid"], "guid").unwrap(), 17);
    }

    #[test]
    fn what_is_not_understood_is_shown() {
        let error = properties("cannot open 'x': strange").unwrap_err();
        assert!(error.to_string().contains("strange"));
        assert!(number("12K", "used").unwrap_err().to_string().contains("12K"));
    }
}
