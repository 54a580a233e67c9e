//! Counters and histograms with labels. Adding costs a lock and a look-up by label, which no request notices.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds in seconds: from lists that answer from memory to pulls over a slow line.
const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// Counters of one name, by the values of its labels.
#[derive(Debug)]
pub struct Counters {
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    values: Mutex<BTreeMap<Vec<String>, u64>>,
}

impl Counters {
    /// None counted yet.
    pub const fn new(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Counters {
        Counters { name, labels, help, values: Mutex::new(BTreeMap::new()) }
    }

    /// Adds to the counter with those values of its labels.
    pub fn add(&self, labels: &[&str], more: u64) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let key: Vec<String> = labels.iter().map(ToString::to_string).collect();
        *values.entry(key).or_default() += more;
    }

    /// Prometheus's text format.
    pub(super) fn write(&self, text: &mut String) {
        head(text, self.name, "counter", self.help);
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.is_empty() && self.labels.is_empty() {
            let _ = writeln!(text, "{} 0", self.name);
        }
        for (labels, value) in values.iter() {
            let pairs = self.labels.iter().copied().zip(labels.iter().map(String::as_str));
            let _ = writeln!(text, "{}{} {value}", self.name, braces(pairs));
        }
    }
}

/// Histograms of durations of one name, by the value of one label.
#[derive(Debug)]
pub struct Histograms {
    name: &'static str,
    label: &'static str,
    help: &'static str,
    values: Mutex<BTreeMap<String, Histogram>>,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histograms {
    /// None observed yet.
    pub const fn new(name: &'static str, label: &'static str, help: &'static str) -> Histograms {
        Histograms { name, label, help, values: Mutex::new(BTreeMap::new()) }
    }

    /// Adds a duration to the histogram of that label.
    pub fn observe(&self, label: &str, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if !values.contains_key(label) {
            values.insert(label.to_owned(), Histogram::default());
        }
        let Some(histogram) = values.get_mut(label) else { return };
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            histogram.buckets[bucket] += 1;
        }
        histogram.count += 1;
        histogram.sum += seconds;
    }

    /// Observes the time from now until what it answers is dropped.
    pub fn time(&'static self, label: &'static str) -> Timer {
        Timer { histograms: self, label, began: Instant::now() }
    }

    /// Prometheus's text format.
    pub(super) fn write(&self, text: &mut String) {
        head(text, self.name, "histogram", self.help);
        for (label, histogram) in self.values.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let mut below = 0;
            for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
                below += count;
                let bound = bound.to_string();
                let _ = writeln!(text, "{}_bucket{} {below}", self.name, braces([(self.label, label.as_str()), ("le", &bound)]));
            }
            let all = braces([(self.label, label.as_str()), ("le", "+Inf")]);
            let _ = writeln!(text, "{}_bucket{all} {}", self.name, histogram.count);
            let labels = braces([(self.label, label.as_str())]);
            let _ = writeln!(text, "{}_sum{labels} {}", self.name, histogram.sum);
            let _ = writeln!(text, "{}_count{labels} {}", self.name, histogram.count);
        }
    }
}

/// Observes its own life's length.
#[derive(Debug)]
pub struct Timer {
    histograms: &'static Histograms,
    label: &'static str,
    began: Instant,
}

impl Timer {
    /// Another label than the one it began with: what came out, say.
    pub fn set_label(&mut self, label: &'static str) {
        self.label = label;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histograms.observe(self.label, self.began.elapsed());
    }
}

/// The two lines above a metric.
pub(super) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// `{a="x",b="y"}`; nothing without labels.
pub(super) fn braces<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<_> = labels.into_iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let counters = Counters::new("x_total", &["kind"], "Things.");
        counters.add(&["a\"b"], 2);
        counters.add(&["a\"b"], 3);
        let mut text = String::new();
        counters.write(&mut text);
        assert_eq!(text, "# HELP x_total Things.\n# TYPE x_total counter\nx_total{kind=\"a\\\"b\"} 5\n");
        let mut text = String::new();
        Counters::new("y_total", &[], "None.").write(&mut text);
        assert!(text.ends_with("y_total 0\n"));
    }

    #[test]
    fn buckets_add_up() {
        let histograms = Histograms::new("x_seconds", "operation", "Times.");
        for milliseconds in [0, 2, 40, 400_000] {
            histograms.observe("List", Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        histograms.write(&mut text);
        for line in [
            "x_seconds_bucket{operation=\"List\",le=\"0.001\"} 1",
            "x_seconds_bucket{operation=\"List\",le=\"0.0025\"} 2",
            "x_seconds_bucket{operation=\"List\",le=\"0.05\"} 3",
            "x_seconds_bucket{operation=\"List\",le=\"300\"} 3",
            "x_seconds_bucket{operation=\"List\",le=\"+Inf\"} 4",
            "x_seconds_sum{operation=\"List\"} 400.042",
            "x_seconds_count{operation=\"List\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
