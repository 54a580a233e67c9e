//! The record of a container's end: one JSON object in a file, synced before the end is told to anybody.

use crate::messages::Exited;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes the record: temporary name, sync, rename, sync of the folder.
pub fn write(path: &Path, exited: &Exited) -> Result<()> {
    let folder = path.parent().filter(|_| path.is_absolute()).with_context(|| format!("exit record: not an absolute path: {path:?}"))?;
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).with_context(|| format!("exit record: {}", temporary.display()))?;
    file.write_all(text(exited).as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("exit record: {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("exit record: {}", path.display()))?;
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("exit record: sync {}", folder.display()))
}

/// Reads the record; None if there is none. `id` is not in it and is left empty.
pub fn read(path: &Path) -> Result<Option<Exited>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).with_context(|| format!("exit record: {}", path.display())).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("exit record: {}", path.display())),
    }
}

fn text(e: &Exited) -> String {
    format!(
        "{{\"code\":{},\"signal\":{},\"oom\":{},\"finished_at\":{},\"unknown\":{}}}\n",
        e.code, e.signal, e.oom, e.finished_at, e.unknown
    )
}

/// Of a flat object of numbers and booleans.
fn parse(text: &str) -> Result<Exited> {
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).context("not a JSON object")?;
    let (mut exited, mut seen) = (Exited::default(), 0);
    for pair in inner.split(',') {
        let (name, value) = pair.split_once(':').context("not a flat JSON object")?;
        let (name, value) = (name.trim().trim_matches('"'), value.trim());
        let number = || value.parse::<u64>().with_context(|| format!("{name}: {value:?} is no number"));
        match name {
            "code" => exited.code = number()? as u32,
            "signal" => exited.signal = number()? as u32,
            "finished_at" => exited.finished_at = number()?,
            "oom" => exited.oom = value == "true",
            "unknown" => exited.unknown = value == "true",
            _ => continue,
        }
        seen += 1;
    }
    ensure!(seen >= 3, "fields are missing");
    Ok(exited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let exited = Exited { code: 137, signal: 9, oom: true, finished_at: 1_700_000_000_123_456_789, ..Exited::default() };
        assert_eq!(parse(&text(&exited)).unwrap(), exited);
        assert_eq!(parse("{ \"code\" : 3, \"finished_at\": 5, \"signal\": 0 }").unwrap().code, 3);
        for bad in ["", "{}", "{\"code\":1}", "{\"code\":\"x\",\"signal\":0,\"finished_at\":1}", "[1]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn on_disk() {
        let path = std::env::temp_dir().join(format!("rrun-exit-record-{}", std::process::id()));
        assert_eq!(read(&path).unwrap(), None);
        let exited = Exited { code: 1, unknown: true, finished_at: 9, ..Exited::default() };
        write(&path, &exited).unwrap();
        assert_eq!(read(&path).unwrap(), Some(exited));
        assert!(write(Path::new("relative"), &Exited::default()).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
