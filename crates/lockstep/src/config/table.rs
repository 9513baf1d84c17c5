//! Tables of the configuration: what serde derives reads a struct from an array, too, by position.
//!
//! What could go wrong: `local = [1]` counts as `local = { last = 1 }`, and `prune` removes all sets but one.

/// Lets structs be read from tables alone. They derive `Deserialize` with `#[serde(remote = "Self")]`.
macro_rules! from_tables {
    ($($name:ident),+) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Table;
                impl<'de> serde::de::Visitor<'de> for Table {
                    type Value = $name;

                    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        to.write_str("a table")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        map: A,
                    ) -> Result<$name, A::Error> {
                        // The derived one, which is no trait's.
                        <$name>::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                from.deserialize_map(Table)
            }
        }
    )+};
}

pub(crate) use from_tables;
