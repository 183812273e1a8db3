//! The nf_tables rules of a bridge. They have a separate table, so that they are added and removed
//! together, and no other rules are touched.
//!
//! ```text
//! table ip fleetbox_ID {
//!     chain source  { type filter hook prerouting priority -300
//!                     ip saddr != NETWORK iifname BRIDGE drop }
//!     chain nat     { type nat hook postrouting priority 100
//!                     ip saddr NETWORK oifname != BRIDGE masquerade }
//!     chain forward { type filter hook forward priority 0
//!                     iifname BRIDGE accept
//!                     oifname BRIDGE ct state established,related accept
//!                     oifname BRIDGE drop }
//! }
//! ```

use std::io;
use std::time::{Duration, Instant};

use fleetbox_net::Subnet;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
    InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::PREFIX;
use super::error::BridgeError;

const SOURCE: &str = "source";
const NAT: &str = "nat";
const FORWARD: &str = "forward";

/// The priority that `nft` calls `raw`: before connections are tracked.
const PRIORITY_RAW: i32 = -300;
/// The priority that `nft` calls `srcnat`.
const PRIORITY_SOURCE_NAT: i32 = 100;
const PRIORITY_FILTER: i32 = 0;

/// The base of `ip saddr`: the network header, and the offset of the address in it (RFC 791).
const NETWORK_HEADER: u32 = 1;
const SOURCE_ADDRESS: u32 = 12;
/// The bytes of an address that make up the network.
const NETWORK_BYTES: usize = PREFIX as usize / 8;

/// <linux/netfilter/nf_tables.h>: attributes of the expression `ct`, and its key `state`.
const CT_REGISTER: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
/// <linux/netfilter/nf_conntrack_common.h>: established or related.
const KNOWN: u32 = 2 | 4;
/// <linux/netfilter.h>
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// The subsystem number of nf_tables in <linux/netfilter/nfnetlink.h>, which frames of a batch name.
const NF_TABLES: u16 = 10;

const SEND_BUFFER: usize = 16 << 10;
/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Adds the table of a bridge, completely or not at all.
pub(super) fn add(table: &str, bridge: &str, subnet: Subnet) -> Result<(), BridgeError> {
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let append = NLM_F_CREATE | NLM_F_APPEND;
    let rule = |chain, expressions| (append, rule(table, chain, expressions));
    let (from, to) = (MetaKey::Iifname, MetaKey::Oifname);
    let masquerade = Expressions::Other {
        expression_type: "masq".to_owned(),
        attributes: Vec::new(),
    };
    let forged = [
        source(Operator::NotEqual, subnet).to_vec(),
        interface(from, Operator::Equal, bridge).to_vec(),
        vec![verdict(DROP)],
    ];
    let outward = [
        source(Operator::Equal, subnet).to_vec(),
        interface(to, Operator::NotEqual, bridge).to_vec(),
        vec![masquerade],
    ];
    let inward = |rest: &[Expressions]| {
        let mut all = interface(to, Operator::Equal, bridge).to_vec();
        all.extend_from_slice(rest);
        all
    };
    let mut known = is_known().to_vec();
    known.push(verdict(ACCEPT));
    let mut own = interface(from, Operator::Equal, bridge).to_vec();
    own.push(verdict(ACCEPT));
    batch(vec![
        (
            create,
            NfTablesMessage::NewTable(TableMessage {
                attributes: vec![TableAttribute::Name(table.to_owned())],
            }),
        ),
        (
            create,
            chain(
                table,
                SOURCE,
                "filter",
                InetHookNumber::PreRouting,
                PRIORITY_RAW,
            ),
        ),
        (
            create,
            chain(
                table,
                NAT,
                NAT,
                InetHookNumber::PostRouting,
                PRIORITY_SOURCE_NAT,
            ),
        ),
        (
            create,
            chain(
                table,
                FORWARD,
                "filter",
                InetHookNumber::Forward,
                PRIORITY_FILTER,
            ),
        ),
        rule(SOURCE, forged.concat()),
        rule(NAT, outward.concat()),
        rule(FORWARD, own),
        rule(FORWARD, inward(&known)),
        rule(FORWARD, inward(&[verdict(DROP)])),
    ])
    .map_err(BridgeError::host("add the bridge's rules to nf_tables"))
}

/// Removes the table of a bridge, if it is there.
pub(super) fn remove(table: &str) -> Result<(), BridgeError> {
    let delete = NfTablesMessage::DeleteTable(TableMessage {
        attributes: vec![TableAttribute::Name(table.to_owned())],
    });
    match batch(vec![(0, delete)]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done.map_err(BridgeError::host(
            "remove the bridge's rules from nf_tables",
        )),
    }
}

fn chain(
    table: &str,
    name: &str,
    kind: &str,
    hook: InetHookNumber,
    priority: i32,
) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(hook.into()),
                Hook::Priority(priority.cast_unsigned()),
            ]),
            ChainAttribute::Type(kind.to_owned()),
            ChainAttribute::Policy(ACCEPT),
        ],
    })
}

fn rule(table: &str, chain: &str, expressions: Vec<Expressions>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    })
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// `ip saddr NETWORK` or `ip saddr != NETWORK`. The prefix length is a multiple of 8, so no mask is needed.
fn source(operator: Operator, subnet: Subnet) -> [Expressions; 2] {
    let network = subnet.network().octets();
    [
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(NETWORK_HEADER),
            Payload::Offset(SOURCE_ADDRESS),
            Payload::Len(NETWORK_BYTES as u32),
        ]),
        compare(operator, network[..NETWORK_BYTES].to_vec()),
    ]
}

/// `iifname NAME` and the like.
fn interface(key: MetaKey, operator: Operator, name: &str) -> [Expressions; 2] {
    let mut value = name.as_bytes().to_vec();
    value.resize(libc::IFNAMSIZ, 0);
    [
        Expressions::Meta(vec![
            Meta::DestinationRegister(Register::Reg1),
            Meta::Key(key),
        ]),
        compare(operator, value),
    ]
}

/// `ct state established,related`.
fn is_known() -> [Expressions; 3] {
    let attribute = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let value = |value: u32| DataAttribute::Value(value.to_ne_bytes().to_vec());
    [
        Expressions::Other {
            expression_type: "ct".to_owned(),
            attributes: vec![
                attribute(CT_REGISTER, u32::from(Register::Reg1)),
                attribute(CT_KEY, CT_STATE),
            ],
        },
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(4),
            Bitwise::Mask(value(KNOWN)),
            Bitwise::Xor(value(0)),
        ]),
        compare(Operator::NotEqual, 0_u32.to_ne_bytes().to_vec()),
    ]
}

fn verdict(code: u32) -> Expressions {
    let verdict = vec![VerdictAttribute::Code(Verdict::Other(code))];
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

/// Sends the messages as one batch: the kernel carries out all of them or none.
fn batch(messages: Vec<(u16, NfTablesMessage)>) -> io::Result<()> {
    let socket = open()?;
    let count = messages.len();
    let begin = (0, ControlMessage::BatchBegin.into(), NF_TABLES);
    let end = (0, ControlMessage::BatchEnd.into(), NF_TABLES);
    let messages = messages
        .into_iter()
        .map(|(flags, message)| (flags | NLM_F_ACK, NetfilterMessageInner::from(message), 0));
    let all = std::iter::once(begin).chain(messages).chain([end]);
    let mut buffer = Vec::new();
    for (number, (flags, inner, subsystem)) in all.enumerate() {
        let family = match subsystem {
            0 => NetfilterProtoFamily::IPv4,
            _ => NetfilterProtoFamily::Unspec,
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = number as u32;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, subsystem), inner);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = buffer.len();
        buffer.resize(start + message.buffer_len(), 0);
        message.serialize(&mut buffer[start..]);
    }
    if buffer.len() > SEND_BUFFER {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    socket.send(&buffer, 0)?;
    let mut acknowledged = 0;
    let deadline = Instant::now() + PATIENCE;
    while acknowledged < count {
        for message in receive(&socket)? {
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => acknowledged += 1,
                _ => {}
            }
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let patience = TimeVal::new(PATIENCE.as_secs() as libc::time_t, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(socket)
}

/// Receives one batch of messages from the kernel.
pub(super) fn receive(socket: &Socket) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Messages begin at multiples of four bytes; none is shorter than its header.
        let len = (message.header.length.max(16) as usize).next_multiple_of(4);
        messages.push(message);
        rest = rest.get(len..).unwrap_or_default();
    }
    Ok(messages)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rtnetlink::packet_core::NLM_F_DUMP;

    fn dump(message: NfTablesMessage) -> Vec<NfTablesMessage> {
        let socket = open().unwrap();
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let netfilter = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        let payload = NetlinkPayload::from(NetfilterMessage::new(netfilter, message));
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        socket.send(&buffer, 0).unwrap();
        let mut all = Vec::new();
        loop {
            for message in receive(&socket).unwrap() {
                match message.payload {
                    NetlinkPayload::Done(_) => return all,
                    NetlinkPayload::InnerMessage(message) => match message.inner {
                        NetfilterMessageInner::NfTables(message) => all.push(message),
                        other => panic!("{other:?}"),
                    },
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// The names of the tables that are ours.
    pub(in crate::host::bridge) fn tables() -> Vec<String> {
        let all = dump(NfTablesMessage::GetTable(TableMessage {
            attributes: Vec::new(),
        }));
        let names = all.into_iter().filter_map(|message| match message {
            NfTablesMessage::NewTable(table) => {
                table
                    .attributes
                    .into_iter()
                    .find_map(|attribute| match attribute {
                        TableAttribute::Name(name) => Some(name),
                        _ => None,
                    })
            }
            _ => None,
        });
        names
            .filter(|name| name.starts_with(super::super::record::TABLE_PREFIX))
            .collect()
    }

    /// The kinds of expressions of each rule of a table, with the chain before them.
    pub(in crate::host::bridge) fn rules(table: &str) -> Vec<String> {
        let all = dump(NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![RuleAttribute::Table(table.to_owned())],
        }));
        let mut rules = Vec::new();
        for message in all {
            let NfTablesMessage::NewRule(rule) = message else {
                continue;
            };
            let mut words = Vec::new();
            for attribute in rule.attributes {
                match attribute {
                    RuleAttribute::Chain(chain) => words.insert(0, chain),
                    RuleAttribute::Expressions(list) => {
                        let text = format!("{list:?}");
                        // `Name("payload")` and so on, in order.
                        let names = text.split("Name(\"").skip(1);
                        words.extend(
                            names.filter_map(|rest| rest.split('"').next().map(str::to_owned)),
                        );
                    }
                    _ => {}
                }
            }
            rules.push(words.join(" "));
        }
        rules
    }
}
