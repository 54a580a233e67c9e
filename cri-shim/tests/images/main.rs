//! Behaviour of the image store: unpacking against GNU tar, hostile archives, the store's life.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod full;
mod gnu_tar;
mod hostile;
mod mutated;
mod store;
mod support;
