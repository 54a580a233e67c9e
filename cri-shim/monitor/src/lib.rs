//! What the daemon and a pod's monitor share: the wire format. `src/main.rs` is the monitor itself.

pub mod clock;
pub mod exit_record;
pub mod messages;
pub mod pins;
pub mod socket;
pub mod wire;
