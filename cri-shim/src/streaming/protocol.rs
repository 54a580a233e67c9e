//! Which protocol a client and this server agree on: the names in `X-Stream-Protocol-Version` (SPDY) and
//! `Sec-WebSocket-Protocol`. Pure.

/// The version of the remote command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
    V3,
    V4,
    V5,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Exec and attach over SPDY streams.
    Spdy(Version),
    /// Port-forward over SPDY streams.
    SpdyForward,
    /// Exec, attach and port-forward over the channels of a WebSocket.
    WebSocket { version: Version, base64: bool },
    /// Port-forward over SPDY streams in a WebSocket.
    Tunnel,
}

/// Versions by name. SPDY has no v5: its streams can be half-closed as they are.
const VERSIONS: [(&str, Version); 5] = [
    ("v5.channel.k8s.io", Version::V5),
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];
const FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The first of the client's SPDY protocols that is known, and its name.
pub(super) fn spdy(offered: &[&str], forward: bool) -> Option<(&'static str, Protocol)> {
    offered.iter().find_map(|name| match forward {
        true => (*name == FORWARD).then_some((FORWARD, Protocol::SpdyForward)),
        false => VERSIONS[1..].iter().find(|(known, _)| known == name).map(|(name, version)| (*name, Protocol::Spdy(*version))),
    })
}

/// What a client may offer over SPDY.
pub(super) fn spdy_names(forward: bool) -> Vec<&'static str> {
    match forward {
        true => vec![FORWARD],
        false => VERSIONS[1..].iter().map(|(name, _)| *name).collect(),
    }
}

/// The first of the client's WebSocket protocols that is known, and its name. Who offers none gets the oldest.
pub(super) fn websocket(offered: &[&str], forward: bool) -> Option<(Option<String>, Protocol)> {
    if offered.is_empty() {
        return Some((None, Protocol::WebSocket { version: if forward { Version::V4 } else { Version::V1 }, base64: false }));
    }
    offered.iter().find_map(|name| {
        if forward && *name == TUNNEL {
            return Some((Some(TUNNEL.to_owned()), Protocol::Tunnel));
        }
        let (plain, base64) = match name.split_once("base64.") {
            Some((before, after)) => (format!("{before}{after}"), true),
            None => ((*name).to_owned(), false),
        };
        let (_, version) = VERSIONS.iter().find(|(known, _)| *known == plain)?;
        (!forward || *version == Version::V4).then(|| (Some((*name).to_owned()), Protocol::WebSocket { version: *version, base64 }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_of_the_clients_protocols() {
        let offer = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
        assert_eq!(spdy(&offer, false), Some(("v4.channel.k8s.io", Protocol::Spdy(Version::V4))));
        assert_eq!(spdy(&["channel.k8s.io", "v4.channel.k8s.io"], false), Some(("channel.k8s.io", Protocol::Spdy(Version::V1))));
        assert_eq!(spdy(&offer, true), None);
        assert_eq!(spdy(&["portforward.k8s.io"], true), Some(("portforward.k8s.io", Protocol::SpdyForward)));
        assert_eq!(spdy(&["portforward.k8s.io"], false), None);
        assert_eq!(spdy(&[], false), None);
    }

    #[test]
    fn websocket_protocols() {
        let known = |name: &str, forward| websocket(&[name], forward).map(|(_, protocol)| protocol);
        let ws = |version, base64| Some(Protocol::WebSocket { version, base64 });
        assert_eq!(known("v5.channel.k8s.io", false), ws(Version::V5, false));
        assert_eq!(known("v4.base64.channel.k8s.io", false), ws(Version::V4, true));
        assert_eq!(known("base64.channel.k8s.io", false), ws(Version::V1, true));
        assert_eq!(known("v4.base64.channel.k8s.io", true), ws(Version::V4, true));
        assert_eq!(known("v5.channel.k8s.io", true), None);
        assert_eq!(known(TUNNEL, true), Some(Protocol::Tunnel));
        assert_eq!(known(TUNNEL, false), None);
        assert_eq!(known("chat", false), None);
        assert_eq!(websocket(&[], false), Some((None, Protocol::WebSocket { version: Version::V1, base64: false })));
        let (name, _) = websocket(&["chat", "base64.channel.k8s.io"], false).unwrap();
        assert_eq!(name.as_deref(), Some("base64.channel.k8s.io"));
    }
}
