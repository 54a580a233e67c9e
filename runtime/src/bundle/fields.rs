//! How tables of fields become readers of the specification's types: the macros of [`super::spec`]
//! and [`super::linux`], one table a type, with the names that the documents have.
//!
//! What a document leaves out is empty, 0 or absent, as it is for Go's programs. Where a table
//! `needs` a field there is no such value.

use crate::json::read::{Error, Result};
use serde::Deserialize;
use serde::de::value::MapDeserializer;

/// What an empty document gives. The types' `Default` is a ready-made container.
pub(super) fn blank<T: for<'a> Deserialize<'a>>() -> Result<T> {
    T::deserialize(MapDeserializer::<_, serde::de::value::Error>::new(std::iter::empty::<(&str, &str)>()))
        .map_err(|e| Error::value(e.to_string()))
}

/// An object whose fields have setters.
macro_rules! object {
    ($type:ident; $($fields:tt)*) => { object! { @ $type, Default::default(), "", $($fields)* } };
    ($type:ident = $blank:expr; $($fields:tt)*) => { object! { @ $type, $blank, "", $($fields)* } };
    ($type:ident needs $needs:literal; $($fields:tt)*) => { object! { @ $type, Default::default(), $needs, $($fields)* } };
    (@ $type:ident, $blank:expr, $needs:literal, $($key:literal => $set:ident,)*) => {
        impl Fields for $type {
            // Fields that the specification has given up are still read.
            #[allow(deprecated)]
            fn field(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<bool> {
                match key {
                    $($key => { self.$set(Read::read(reader)?); })*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn names(&self) -> &'static [&'static str] {
                &[$($key),*]
            }
        }

        impl Read for $type {
            fn read(reader: &mut Reader<'_>) -> Result<$type> {
                let mut value: $type = $blank;
                reader.object($needs, &mut value)?;
                Ok(value)
            }
        }
    };
}

/// An object that only its builder can fill.
macro_rules! built {
    ($type:ident by $builder:ident; $($fields:tt)*) => { built! { @ $type, $builder, "", $($fields)* } };
    ($type:ident by $builder:ident needs $needs:literal; $($fields:tt)*) => { built! { @ $type, $builder, $needs, $($fields)* } };
    (@ $type:ident, $builder:ident, $needs:literal, $($key:literal => $field:ident: $of:ident,)*) => {
        impl Fields for $builder {
            fn field(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<bool> {
                match key {
                    $($key => *self = std::mem::take(self).$field($of::read(reader)?),)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn names(&self) -> &'static [&'static str] {
                &[$($key),*]
            }
        }

        impl Read for $type {
            fn read(reader: &mut Reader<'_>) -> Result<$type> {
                let mut builder = $builder::default();
                reader.object($needs, &mut builder)?;
                builder.build().map_err(|e| Error::value(e.to_string()))
            }
        }
    };
}

/// A string of a known set, and how an error calls another one.
macro_rules! choice {
    ($type:ident; $($fields:tt)*) => { choice! { $type, "unknown value"; $($fields)* } };
    ($type:ident, $wrong:literal; $($name:literal => $value:ident,)*) => {
        impl Read for $type {
            fn read(reader: &mut Reader<'_>) -> Result<$type> {
                const VALUES: &[$type] = &[$($type::$value),*];
                reader.choice(&[$($name),*], $wrong).map(|i| VALUES[i])
            }
        }
    };
}

/// A section for another platform: that it is there is all that matters.
macro_rules! foreign {
    ($($type:ty)*) => { $(
        impl Read for $type {
            fn read(reader: &mut Reader<'_>) -> Result<$type> {
                reader.skip().map(|()| Default::default())
            }
        }
    )* };
}

pub(super) use {built, choice, foreign, object};
