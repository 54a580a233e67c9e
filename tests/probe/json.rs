//! As much JSON as a report needs.

/// A string in quotes; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn string(text: impl AsRef<std::ffi::OsStr>) -> String {
    let mut out = String::from("\"");
    for c in text.as_ref().to_string_lossy().chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A list of finished values.
pub(crate) fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

/// An object of names and finished values.
pub(crate) fn object<K: AsRef<std::ffi::OsStr>>(items: impl IntoIterator<Item = (K, String)>) -> String {
    let fields: Vec<String> = items.into_iter().map(|(k, v)| format!("{}:{v}", string(k))).collect();
    format!("{{{}}}", fields.join(","))
}

/// `null` for nothing.
pub(crate) fn maybe(value: Option<String>) -> String {
    value.unwrap_or_else(|| "null".into())
}
