//! The monitor of a pod.

fn main() {}
