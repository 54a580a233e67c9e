//! Behaviour of the CRI server and of the pod monitor from outside, theme by theme. `cri monitor::` runs one theme.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics fails, and says where")]

mod monitor;
