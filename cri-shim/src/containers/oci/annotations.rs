//! `annotations`: the keys that OCI runtimes and node tools read, under the names that they know.

use std::collections::HashMap;

use super::Input;

/// What names the pod and the container, and what of the pod's and the container's own annotations the settings let
/// through to the runtime.
pub(super) fn annotations(input: &Input<'_>) -> HashMap<String, String> {
    let pod = input.pod.config.metadata.clone().unwrap_or_default();
    let name = input.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
    let own = [
        ("container-type", "container"),
        ("container-name", &name),
        ("image-name", input.image_name),
        ("sandbox-id", input.pod.id),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
    ];
    let patterns = input.settings.runtimes.get(input.pod.handler).map(|r| r.pod_annotations.as_slice()).unwrap_or_default();
    let passed = input.pod.config.annotations.iter().chain(&input.config.annotations);
    passed
        .filter(|(key, _)| patterns.iter().any(|pattern| matches(pattern, key)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .chain(own.map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned())))
        .collect()
}

/// Whether a shell pattern of `*` and `?` matches all of `text`; neither crosses a `/`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            let segment = text.find('/').unwrap_or(text.len());
            text.char_indices().map(|(at, _)| at).chain([text.len()]).take_while(|at| *at <= segment).any(|at| matches(rest, &text[at..]))
        }
        Some(c) => match text.chars().next() {
            Some(t) if t == c || (c == '?' && t != '/') => matches(&pattern[c.len_utf8()..], &text[t.len_utf8()..]),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, text, yes) in [
            ("io.katacontainers.*", "io.katacontainers.config.x", true),
            ("io.katacontainers.*", "io.katacontainers", false),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a/?", "a/b", true),
            ("a?b", "a/b", false),
            ("exact", "exact", true),
            ("exact", "exacter", false),
            ("", "x", false),
            ("ä*", "äö", true),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
    }
}
