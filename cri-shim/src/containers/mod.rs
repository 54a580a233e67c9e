//! Containers: what one is made of, and its life.

pub mod oci;
