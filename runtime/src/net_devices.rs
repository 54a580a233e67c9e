//! `linux.netDevices`: network devices of the host that the container gets, under another name where it
//! says so, with the addresses they have. The parent moves them while init waits; what the host had of them
//! comes back by the kernel's doing when the container's network namespace ends.
//!
//! Spoken is rtnetlink(7), for the six messages that this takes.

use crate::namespaces::{NEWNET, Namespaces};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use oci_spec::runtime::Linux;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// A device: its name on the host and in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    host: String,
    name: String,
}

/// Reads `linux.netDevices`.
pub fn plan(linux: Option<&Linux>, namespaces: &Namespaces, rootless: bool) -> Result<Vec<NetDevice>> {
    let mut list = Vec::new();
    for (host, device) in linux.and_then(|l| l.net_devices().as_ref()).into_iter().flatten() {
        let name = device.name().clone().filter(|n| !n.is_empty()).unwrap_or_else(|| host.clone());
        for name in [host, &name] {
            if name.len() > 15
                || matches!(name.as_str(), "" | "." | "..")
                || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
            {
                bail!("linux.netDevices[{host:?}]: invalid network device name {name:?}");
            }
        }
        if list.iter().any(|d: &NetDevice| d.name == name) {
            bail!("linux.netDevices[{host:?}]: another device has the name {name:?}");
        }
        list.push(NetDevice { host: host.clone(), name });
    }
    if !list.is_empty() && !namespaces.has(NEWNET) {
        bail!("linux.netDevices: unable to move network devices without a private NET namespace");
    }
    if !list.is_empty() && rootless {
        bail!("linux.netDevices: network devices are not supported for rootless containers");
    }
    Ok(list)
}

/// Moves them into the network namespace of process `pid`, gives them their addresses again and sets them up.
pub fn move_all(devices: &[NetDevice], pid: i32) -> Result<()> {
    let open = |path: String| File::open(&path).context(path);
    let (home, there) = (open("/proc/self/ns/net".to_owned())?, open(format!("/proc/{pid}/ns/net"))?);
    let rtnetlink = Rtnetlink::new()?;
    let mut moved = Vec::new();
    for device in devices {
        let context = || format!("linux.netDevices[{:?}]", device.host);
        let index = rtnetlink.index(&device.host).with_context(context)?;
        let addresses = rtnetlink.addresses(index).with_context(context)?;
        rtnetlink.link_down(index).and_then(|()| rtnetlink.move_link(index, &there, &device.name)).with_context(context)?;
        moved.push((device, addresses));
    }
    setns(&there, CloneFlags::CLONE_NEWNET).context("setns to the container's network namespace")?;
    let given = give(&moved);
    setns(&home, CloneFlags::CLONE_NEWNET).context("setns back to the runtime's own network namespace")?;
    given
}

fn give(moved: &[(&NetDevice, Vec<Address>)]) -> Result<()> {
    let rtnetlink = Rtnetlink::new()?;
    for (device, addresses) in moved {
        let context = || format!("linux.netDevices[{:?}]: {} in the container", device.host, device.name);
        let index = rtnetlink.index(&device.name).with_context(context)?;
        for address in addresses {
            match rtnetlink.add_address(index, address) {
                Err(Errno::EEXIST) => (),
                other => other.context("add an address").with_context(context)?,
            }
        }
        rtnetlink.link_up(index).with_context(context)?;
    }
    Ok(())
}

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const EXCL: u16 = 0x200;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;
const HEADER: usize = 16;
const IFADDRMSG: usize = 8;

/// An address of a device, as the kernel tells and takes it.
struct Address {
    family: u8,
    prefix: u8,
    /// Of those that mean the same on another device: IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST.
    attributes: Vec<(u16, Vec<u8>)>,
}

struct Rtnetlink(OwnedFd);

impl Rtnetlink {
    fn new() -> Result<Rtnetlink> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        socket.map(Rtnetlink).context("rtnetlink socket")
    }

    fn index(&self, name: &str) -> Result<u32> {
        let mut index = None;
        let body = [link(0, 0, 0), attribute(IFLA_IFNAME, &c_name(name))].concat();
        let asked = self.ask(RTM_GETLINK, 0, &body, |kind, payload| {
            if kind == RTM_NEWLINK && payload.len() >= 8 {
                index = Some(u32_at(payload, 4));
            }
        });
        asked.with_context(|| format!("find the network device {name}"))?;
        index.with_context(|| format!("find the network device {name}: no answer"))
    }

    fn link_down(&self, index: u32) -> Result<()> {
        self.ask(RTM_NEWLINK, 0, &link(index, 0, IFF_UP), |_, _| ()).context("set it down")
    }

    fn link_up(&self, index: u32) -> Result<()> {
        self.ask(RTM_NEWLINK, 0, &link(index, IFF_UP, IFF_UP), |_, _| ()).context("set it up")
    }

    fn move_link(&self, index: u32, namespace: &File, name: &str) -> Result<()> {
        let fd = attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        let body = [link(index, 0, 0), fd, attribute(IFLA_IFNAME, &c_name(name))].concat();
        self.ask(RTM_NEWLINK, 0, &body, |_, _| ()).with_context(|| format!("move it into the container as {name}"))
    }

    /// The addresses that somebody has given it: permanent, and meant for the world.
    fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        const PERMANENT: u8 = 0x80;
        const UNIVERSE: u8 = 0;
        let mut list = Vec::new();
        self.ask(RTM_GETADDR, DUMP, &[0; IFADDRMSG], |kind, payload| {
            if kind != RTM_NEWADDR || payload.len() < IFADDRMSG || u32_at(payload, 4) != index {
                return;
            }
            if payload[2] & PERMANENT != 0 && payload[3] == UNIVERSE {
                let attributes = attributes(&payload[IFADDRMSG..]).filter(|(kind, _)| [1, 2, 4].contains(kind)).collect();
                list.push(Address { family: payload[0], prefix: payload[1], attributes });
            }
        })
        .context("list its addresses")?;
        Ok(list)
    }

    fn add_address(&self, index: u32, address: &Address) -> nix::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        for (kind, data) in &address.attributes {
            body.extend(attribute(*kind, data));
        }
        self.ask(RTM_NEWADDR, CREATE | EXCL, &body, |_, _| ())
    }

    /// Sends a request; `each` gets the type and the payload of every message of the answer.
    fn ask(&self, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> nix::Result<()> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut buffer = vec![0u8; 32768];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = (u32_at(rest, 0) as usize).clamp(HEADER, rest.len());
                let (kind, payload) = (u16::from_ne_bytes([rest[4], rest[5]]), &rest[HEADER..size]);
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR if payload.len() >= 4 => {
                        return match u32_at(payload, 0) as i32 {
                            0 => Ok(()),
                            errno => Err(Errno::from_raw(-errno)),
                        };
                    }
                    _ => each(kind, payload),
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body
}

/// `struct rtattr`, with what pads it.
fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + data.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    std::iter::from_fn(move || {
        let head: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let data = bytes.get(4..length)?.to_vec();
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]), data))
    })
}

fn c_name(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_go_there_and_back() {
        let bytes = [attribute(1, &[1, 2, 3]), attribute(4, &[5; 8]), vec![9]].concat();
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(1, vec![1, 2, 3]), (4, vec![5; 8])]);
    }

    #[test]
    fn the_loopback_device_is_found() {
        let rtnetlink = Rtnetlink::new().unwrap();
        assert_eq!(rtnetlink.index("lo").unwrap(), 1);
        assert!(format!("{:#}", rtnetlink.index("no-such-device").unwrap_err()).contains("no-such-device"));
    }
}
