//! SPDY/3.1 as far as `kubectl exec`, `attach` and `port-forward` use it: frames, header blocks, and the session of one
//! connection. `frame` and `headers` do no IO; the fuzz target `spdy` drives them.

pub mod frame;
pub mod headers;
pub(super) mod session;
