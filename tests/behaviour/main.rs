//! Behaviour of the runtime from outside, theme by theme. `behaviour lifecycle::` runs one theme.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics fails, and says where")]

mod bad_input;
mod budgets;
mod cgroups;
mod checkpoint;
mod cli;
mod confined;
mod devices;
mod enosys;
mod events;
mod exec;
mod features;
mod hooks;
mod killed;
mod lifecycle;
mod masks;
mod mounts;
mod mounts_live;
mod mounts_special;
mod namespaces;
mod net_devices;
mod notify;
mod process;
mod races;
mod rootless;
mod seccomp;
mod security;
mod systemd;
mod terminal;
