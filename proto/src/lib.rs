//! The CRI v1 interface of `rrun-cri`: the place of its generated messages. Nothing is generated yet.
