//! The values in a row that a server sent.
//!
//! What could go wrong: NULL where the catalogs normally have a value (a role that was dropped under its session), or
//! another type in another version. The driver's own `get` would panic then, in the middle of a backup.

use std::fmt::Display;

use postgres::Row;
use postgres::row::RowIndex;
use postgres::types::FromSql;

use crate::error::{Error, Result};

/// A column's value, by its name or number.
///
/// # Errors
/// It is NULL and `T` can't hold that, or of another type, or there is no such column.
pub fn column<'a, T>(row: &'a Row, at: impl RowIndex + Display) -> Result<T>
where
    T: FromSql<'a>,
{
    let number = at.to_string().parse::<usize>().ok();
    let name = number.and_then(|number| row.columns().get(number)).map(|column| column.name());
    let name = name.map_or_else(|| at.to_string(), str::to_owned);
    row.try_get(at).map_err(|e| Error::sql(format!("the server's answer has no good {name}"), e))
}
