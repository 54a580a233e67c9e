//! Behaviour of the CRI server, theme by theme: the daemon as a kubelet sees it (a real daemon, monitor and runtime in
//! namespaces of their own), and the monitor alone. `cri pods::` runs one theme.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics fails, and says where")]

mod bad_input;
mod checkpoint;
mod client;
mod containers;
mod exec;
mod faults;
mod image;
mod images;
mod limits;
mod logs;
mod monitor;
mod mounts;
mod network;
mod node;
mod pods;
mod scan;
mod security;
mod stop;
mod streams;
