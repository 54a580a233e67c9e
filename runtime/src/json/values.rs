//! How the plain values of a document are read: strings, numbers, lists, maps.

use super::read::{Elements, Error, Fields, Read, Reader, Result};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

impl Read for String {
    fn read(reader: &mut Reader<'_>) -> Result<String> {
        reader.text().map(Cow::into_owned)
    }
}

impl Read for PathBuf {
    fn read(reader: &mut Reader<'_>) -> Result<PathBuf> {
        String::read(reader).map(PathBuf::from)
    }
}

impl Read for bool {
    fn read(reader: &mut Reader<'_>) -> Result<bool> {
        reader.boolean()
    }
}

macro_rules! integers {
    ($($type:ty)*) => { $(
        impl Read for $type {
            fn read(reader: &mut Reader<'_>) -> Result<$type> {
                // Within the range of the type.
                reader.integer(<$type>::MIN as i128, <$type>::MAX as i128).map(|n| n as $type)
            }
        }
    )* };
}

integers!(u16 u32 u64 usize i32 i64);

impl<T: Read> Read for Option<T> {
    fn read(reader: &mut Reader<'_>) -> Result<Option<T>> {
        T::read(reader).map(Some)
    }
}

impl<T: Read> Elements for Vec<T> {
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        self.push(T::read(reader)?);
        Ok(())
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(reader: &mut Reader<'_>) -> Result<Vec<T>> {
        let mut list = Vec::new();
        reader.list(&mut list)?;
        Ok(list)
    }
}

impl Read for [String; 2] {
    fn read(reader: &mut Reader<'_>) -> Result<[String; 2]> {
        Vec::read(reader)?.try_into().map_err(|_| Error::value("must be two strings".to_owned()))
    }
}

impl<T: Read> Fields for HashMap<String, T> {
    fn field(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<bool> {
        self.insert(key.to_owned(), T::read(reader)?);
        Ok(true)
    }
}

impl<T: Read> Read for HashMap<String, T> {
    fn read(reader: &mut Reader<'_>) -> Result<HashMap<String, T>> {
        let mut map = HashMap::new();
        reader.object("", &mut map)?;
        Ok(map)
    }
}

impl Fields for BTreeMap<String, String> {
    fn field(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<bool> {
        self.insert(key.to_owned(), String::read(reader)?);
        Ok(true)
    }
}

impl Read for BTreeMap<String, String> {
    fn read(reader: &mut Reader<'_>) -> Result<BTreeMap<String, String>> {
        let mut map = BTreeMap::new();
        reader.object("", &mut map)?;
        Ok(map)
    }
}
