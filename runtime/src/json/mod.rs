//! JSON: the reader of every document that is given to us, the writer of every one that we give out,
//! and the table that makes both for a type of ours.

pub(crate) mod read;
mod values;
mod write;

pub use read::Read;
pub(crate) use read::parse;
pub use write::{Write, Writer, indented, quoted, text};

/// A type's fields by the names that its document has: it can then be read and written. What a
/// document leaves out keeps the value of the type's `Default`.
macro_rules! document {
    ($type:ident; $($key:literal => $field:ident,)*) => {
        impl $crate::json::read::Fields for $type {
            fn field(&mut self, key: &str, reader: &mut $crate::json::read::Reader<'_>) -> $crate::json::read::Result<bool> {
                match key {
                    $($key => self.$field = $crate::json::Read::read(reader)?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }

        impl $crate::json::Read for $type {
            fn read(reader: &mut $crate::json::read::Reader<'_>) -> $crate::json::read::Result<$type> {
                let mut value = $type::default();
                reader.object("", &mut value)?;
                Ok(value)
            }
        }

        $crate::json::written! { $type; $($key => $field,)* }
    };
}

/// The half of [`document`] for what is only written.
macro_rules! written {
    ($type:ident $(<$life:lifetime>)?; $($key:literal => $field:ident,)*) => {
        impl $(<$life>)? $crate::json::Write for $type $(<$life>)? {
            fn write(&self, writer: &mut $crate::json::Writer) {
                writer.object(|o| { $(o.field($key, &self.$field);)* });
            }
        }
    };
}

pub(crate) use {document, written};
