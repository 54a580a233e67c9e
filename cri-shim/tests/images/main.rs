//! Behaviour of the image store: unpacking against GNU tar, hostile archives, the store's life.
mod faults;
mod full;
mod gnu_tar;
mod hostile;
mod mutated;
mod store;
mod support;
