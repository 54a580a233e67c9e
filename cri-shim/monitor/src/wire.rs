//! How a message looks on the socket between the daemon and a pod's monitor.
//!
//! ```text
//! daemon                                       monitor (SOCK_SEQPACKET, one packet per message)
//!   │ 1 Hello{version}                           │
//!   ├───────────────────────────────────────────►│
//!   │◄───────────────────────────────────────────┤ 1 Welcome{version, pid, build}
//!   │ 2 Create{id, bundle, …}                    │
//!   ├───────────────────────────────────────────►│ executes the OCI runtime
//!   │ 3 State{}                                  │
//!   ├───────────────────────────────────────────►│
//!   │◄───────────────────────────────────────────┤ 3 ContainerState{…} + fds, one per container
//!   │◄───────────────────────────────────────────┤ 3 Done{}
//!   │◄───────────────────────────────────────────┤ 2 Created{pid, …} + fds   (answers come in any order)
//!   │◄───────────────────────────────────────────┤ 0 Exited{id, code, …}     (events have the id 0)
//!
//! packet   u32 request id · u16 kind · u16 zero · fields
//! field    u16 tag · u32 length · value         tag 0: the roles of the descriptors sent along, a byte each
//! value    integers of 1 to 8 bytes, little endian · UTF-8 text · fields of a nested message
//! ```
//!
//! A monitor is spoken to for as long as its pod lives, over any number of daemon releases: a tag or a kind is
//! never used again for something else, an unknown tag is skipped, an unknown request answered with `Failed`,
//! an absent field is zero or empty. Every request gets exactly one answer with its id (State: items before it).

use std::fmt;
use std::os::fd::OwnedFd;

/// The protocol's version. It rises only when the meaning of something existing changes.
pub const VERSION: u64 = 1;
/// The longest packet; what is larger (specs, process.json) goes by path.
pub const MAX_PACKET: usize = 64 * 1024;
/// The most descriptors in one packet.
pub const MAX_FDS: usize = 8;
const HEADER: usize = 8;
const FIELD_HEADER: usize = 6;
const ROLES: u16 = 0;

/// What a descriptor in a packet is for. A role not known is closed by its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The container's or the exec's process.
    Pidfd = 1,
    /// The master of the pty.
    Pty = 2,
    /// Standard input of the process: its end, or in `Attached` the end to write to.
    Stdin = 3,
    /// Standard output, the process's end.
    Stdout = 4,
    /// Standard error, the process's end.
    Stderr = 5,
    /// The socket of an attach ([`crate::messages::Attached`]).
    Session = 6,
}

impl Role {
    fn from_byte(byte: u8) -> Option<Role> {
        [Role::Pidfd, Role::Pty, Role::Stdin, Role::Stdout, Role::Stderr, Role::Session].into_iter().find(|r| *r as u8 == byte)
    }
}

/// A packet that does not follow the format; the text says where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed packet: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A type that is one kind of message.
pub trait Message: Field {
    /// Its number on the wire.
    const KIND: u16;
}

/// A type that a field can have.
pub trait Field: Default {
    /// Appends the field, or nothing where absence means the same.
    fn put(&self, tag: u16, out: &mut Vec<u8>);
    /// Takes a value that was sent for this field.
    fn take(&mut self, value: &[u8]) -> Result<(), Malformed>;
}

/// Appends one field.
pub fn put_bytes(tag: u16, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

/// Splits fields into pairs of tag and value.
pub fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = split_field(rest);
        rest = field.map_or(&[], |(_, _, rest)| rest);
        Some(field.map(|(tag, value, _)| (tag, value)).ok_or(Malformed("a field is longer than its packet")))
    })
}

fn split_field(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<FIELD_HEADER>()?;
    let [t0, t1, l0, l1, l2, l3] = *header;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes([l0, l1, l2, l3]) as usize)?;
    Some((u16::from_le_bytes([t0, t1]), value, rest))
}

/// Writes a whole packet into `out`, which is emptied first. `roles` are those of the descriptors sent along.
pub fn encode<M: Message>(id: u32, message: &M, roles: &[Role], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&M::KIND.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    if !roles.is_empty() {
        put_bytes(ROLES, &[], out);
        out.extend(roles.iter().map(|r| *r as u8));
        let at = HEADER + 2;
        out[at..at + 4].copy_from_slice(&(roles.len() as u32).to_le_bytes());
    }
    let mut nested = Vec::new();
    message.put(ROLES, &mut nested);
    // A message as a field of its own is its fields behind a header.
    out.extend_from_slice(nested.get(FIELD_HEADER..).unwrap_or_default());
}

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// Of the request; 0 in events.
    pub id: u32,
    /// Which message this is.
    pub kind: u16,
    bytes: Vec<u8>,
    fds: Vec<(Option<Role>, OwnedFd)>,
}

impl Packet {
    /// Reads a packet; descriptors whose role is not known are closed with it.
    pub fn parse(bytes: &[u8], received: Vec<OwnedFd>) -> Result<Packet, Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed("it is shorter than its header"))?;
        let [i0, i1, i2, i3, k0, k1, ..] = *header;
        let roles = fields(rest).filter_map(Result::ok).find(|(tag, _)| *tag == ROLES).map_or(&[][..], |(_, roles)| roles);
        let fds = received.into_iter().enumerate().map(|(i, fd)| (roles.get(i).copied().and_then(Role::from_byte), fd)).collect();
        Ok(Packet { id: u32::from_le_bytes([i0, i1, i2, i3]), kind: u16::from_le_bytes([k0, k1]), bytes: rest.to_vec(), fds })
    }

    /// The message, if the packet's kind is `M`.
    pub fn message<M: Message>(&self) -> Option<Result<M, Malformed>> {
        (self.kind == M::KIND).then(|| {
            let mut message = M::default();
            message.take(&self.bytes).map(|()| message)
        })
    }

    /// Takes the first descriptor that has this role.
    pub fn take_fd(&mut self, role: Role) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(r, _)| *r == Some(role))?;
        Some(self.fds.swap_remove(at).1)
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn put(&self, tag: u16, out: &mut Vec<u8>) {
                put_bytes(tag, &self.to_le_bytes(), out);
            }
            fn take(&mut self, value: &[u8]) -> Result<(), Malformed> {
                let mut bytes = [0; 8];
                bytes.get_mut(..value.len()).ok_or(Malformed("an integer has more than 8 bytes"))?.copy_from_slice(value);
                *self = Self::try_from(u64::from_le_bytes(bytes)).map_err(|_| Malformed("an integer is out of range"))?;
                Ok(())
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, tag: u16, out: &mut Vec<u8>) {
        if *self {
            put_bytes(tag, &[1], out);
        }
    }
    fn take(&mut self, value: &[u8]) -> Result<(), Malformed> {
        *self = value.iter().any(|b| *b != 0);
        Ok(())
    }
}

impl Field for String {
    fn put(&self, tag: u16, out: &mut Vec<u8>) {
        if !self.is_empty() {
            put_bytes(tag, self.as_bytes(), out);
        }
    }
    fn take(&mut self, value: &[u8]) -> Result<(), Malformed> {
        *self = str::from_utf8(value).map_err(|_| Malformed("a text is not UTF-8"))?.to_owned();
        Ok(())
    }
}

/// A list is its tag several times. Empty texts keep their place.
impl<T: Field> Field for Vec<T> {
    fn put(&self, tag: u16, out: &mut Vec<u8>) {
        for item in self {
            let before = out.len();
            item.put(tag, out);
            if out.len() == before {
                put_bytes(tag, &[], out);
            }
        }
    }
    fn take(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let mut item = T::default();
        item.take(value)?;
        self.push(item);
        Ok(())
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, tag: u16, out: &mut Vec<u8>) {
        if let Some(value) = self {
            let before = out.len();
            value.put(tag, out);
            if out.len() == before {
                put_bytes(tag, &[], out);
            }
        }
    }
    fn take(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let mut item = T::default();
        item.take(value)?;
        *self = Some(item);
        Ok(())
    }
}

/// Declares messages: a struct each, with its number, and a tag per field.
#[macro_export]
macro_rules! messages {
    ($($(#[$about:meta])* $name:ident = $kind:literal { $($(#[$doc:meta])* $field:ident: $type:ty = $tag:literal,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl $crate::wire::Message for $name {
            const KIND: u16 = $kind;
        }

        impl $crate::wire::Field for $name {
            fn put(&self, tag: u16, out: &mut Vec<u8>) {
                $crate::wire::put_bytes(tag, &[], out);
                let start = out.len();
                $($crate::wire::Field::put(&self.$field, $tag, out);)*
                let length = (out.len() - start) as u32;
                out[start - 4..start].copy_from_slice(&length.to_le_bytes());
            }
            fn take(&mut self, value: &[u8]) -> Result<(), $crate::wire::Malformed> {
                for field in $crate::wire::fields(value) {
                    match field? {
                        $(($tag, value) => $crate::wire::Field::take(&mut self.$field, value)?,)*
                        (_, _value) => (),
                    }
                }
                Ok(())
            }
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Adopt, ContainerState, Create, Done, Exited, Hello, MakeSandbox};

    fn packet<M: Message>(message: &M) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        encode(7, message, &[], &mut out);
        out
    }

    fn back<M: Message>(message: &M) -> M {
        let packet = Packet::parse(&packet(message), Vec::new()).unwrap();
        assert_eq!((packet.id, packet.kind), (7, M::KIND));
        packet.message().unwrap().unwrap()
    }

    #[test]
    fn there_and_back() {
        let create = Create {
            id: "c".into(),
            args: vec!["--root".into(), String::new(), "/run/ünïcode".into()],
            tty: true,
            log_line_max: u64::MAX,
            ..Create::default()
        };
        assert_eq!(back(&create), create);
        let adopt = Adopt { create, pid: 1 << 31, start_time: 0, started: true };
        assert_eq!(back(&adopt), adopt);
        let state = ContainerState { exited: Some(Exited::default()), ..ContainerState::default() };
        assert_eq!(back(&state), state);
        assert_eq!(back(&ContainerState::default()).exited, None);
        let sandbox = MakeSandbox { sysctls: vec!["a=b".into(); 300], ..MakeSandbox::default() };
        assert_eq!(back(&sandbox), sandbox);
    }

    /// What is on the wire today must be understood for ever.
    #[test]
    fn the_bytes_themselves() {
        assert_eq!(packet(&Done {}), [7, 0, 0, 0, 64, 0, 0, 0]);
        let hello = [7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(packet(&Hello { version: 1 }), hello);
        let mut out = Vec::new();
        encode(7, &Done {}, &[Role::Pty, Role::Stdin], &mut out);
        assert_eq!(out, [7, 0, 0, 0, 64, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 3]);
    }

    #[test]
    fn what_is_not_known_is_skipped_and_what_is_absent_is_nothing() {
        let mut bytes = packet(&Hello { version: 5 });
        put_bytes(999, b"from the future", &mut bytes);
        put_bytes(1, &[9], &mut bytes);
        let packet = Packet::parse(&bytes, Vec::new()).unwrap();
        assert_eq!(packet.message::<Hello>().unwrap().unwrap().version, 9);
        assert!(packet.message::<Done>().is_none());
        assert_eq!(Packet::parse(&bytes[..8], Vec::new()).unwrap().message::<Hello>().unwrap().unwrap(), Hello::default());
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(Packet::parse(&[1, 2, 3], Vec::new()).is_err());
        let good = packet(&Create { id: "abc".into(), ..Create::default() });
        for cut in 9..good.len() {
            // Between two fields there is nothing wrong.
            if let Some(Ok(create)) = Packet::parse(&good[..cut], Vec::new()).unwrap().message::<Create>() {
                assert!(create.id.is_empty() || create.id == "abc");
            }
        }
        let bad = |tag: u16, value: &[u8]| {
            let mut bytes = packet(&Done {});
            bytes[4] = Create::KIND as u8;
            put_bytes(tag, value, &mut bytes);
            Packet::parse(&bytes, Vec::new()).unwrap().message::<Create>().unwrap().is_err()
        };
        assert!(bad(1, &[0xff]), "a text that is not UTF-8");
        assert!(bad(10, &[0; 9]), "nine bytes of integer");
        assert!(!bad(10, &[]) && !bad(1, b"x"));
    }

    #[test]
    fn descriptors_have_roles() {
        let mut bytes = Vec::new();
        encode(7, &Done {}, &[Role::Stdout, Role::Stdin], &mut bytes);
        bytes[14] = 200;
        let fd = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut packet = Packet::parse(&bytes, vec![fd(), fd(), fd()]).unwrap();
        assert!(packet.take_fd(Role::Stdout).is_none() && packet.take_fd(Role::Stdin).is_some() && packet.take_fd(Role::Stdin).is_none());
    }
}
