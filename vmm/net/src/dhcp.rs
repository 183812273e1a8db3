//! The DHCP server (RFC 2131). Every member has one address, which is fixed before it asks.

use std::net::Ipv4Addr;

use crate::config::NetworkConfig;
use crate::frame::{MTU, Mac, be16, be32, ipv4_at, mac_at, put};
use crate::name::encode;

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// Bytes before the options: the BOOTP message and the magic number.
const FIXED: usize = 240;
const MAGIC: u32 = 0x6382_5363;
/// Maximum number of options of a request that are read; more are ignored.
const MAX_OPTIONS: usize = 64;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request<'a> {
    kind: u8,
    transaction: [u8; 4],
    broadcast: bool,
    client_ip: Ipv4Addr,
    client_mac: Mac,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        // A request from Ethernet that no relay has handled.
        if message.get(..3)? != [1, 1, 6] || be32(message, 236)? != MAGIC {
            return None;
        }
        let mut request = Self {
            kind: 0,
            transaction: message.get(4..8)?.try_into().ok()?,
            broadcast: be16(message, 10)? & 0x8000 != 0,
            client_ip: ipv4_at(message, 12)?,
            client_mac: mac_at(message, 28)?,
            requested: None,
            server: None,
            client_id: None,
        };
        let mut rest = message.get(FIXED..)?;
        for _ in 0..MAX_OPTIONS {
            match *rest {
                [] | [255, ..] => break,
                [0, ref tail @ ..] => rest = tail,
                [code, len, ref tail @ ..] => {
                    let value = tail.get(..usize::from(len))?;
                    rest = tail.get(usize::from(len)..)?;
                    match code {
                        53 => request.kind = *value.first()?,
                        50 => request.requested = ipv4_at(value, 0),
                        54 => request.server = ipv4_at(value, 0),
                        61 => request.client_id = Some(value),
                        _ => {}
                    }
                }
                _ => return None,
            }
        }
        (request.kind != 0).then_some(request)
    }
}

/// A message for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The UDP payload.
    pub(crate) message: Vec<u8>,
    /// Where to send it. This is the broadcast address for a client that has no address yet and
    /// asks for a broadcast.
    pub(crate) to: Ipv4Addr,
}

/// The member that sent the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) ip: Ipv4Addr,
}

/// Answers a DHCP message of a member. Returns `None` if the protocol requires silence, for example
/// for clients behind the member with other hardware addresses.
pub(crate) fn answer(config: &NetworkConfig, client: Client<'_>, message: &[u8]) -> Option<Reply> {
    let request = Request::parse(message)?;
    if request.client_mac != client.mac {
        return None;
    }
    let gateway = config.subnet.gateway();
    let kind = match request.kind {
        DISCOVER => OFFER,
        REQUEST => {
            if request.server.is_some_and(|server| server != gateway) {
                return None;
            }
            let wanted = request.requested.unwrap_or(request.client_ip);
            if wanted == client.ip { ACK } else { NAK }
        }
        INFORM => ACK,
        _ => return None,
    };

    let mut reply = vec![0; FIXED];
    put(&mut reply, 0, &[2, 1, 6, 0]);
    put(&mut reply, 4, &request.transaction);
    if request.broadcast || kind == NAK {
        put(&mut reply, 10, &0x8000u16.to_be_bytes());
    }
    if kind != NAK {
        put(&mut reply, 12, &request.client_ip.octets());
        if request.kind != INFORM {
            put(&mut reply, 16, &client.ip.octets());
        }
    }
    put(&mut reply, 28, &request.client_mac);
    put(&mut reply, 236, &MAGIC.to_be_bytes());

    let mut option = |code: u8, value: &[u8]| {
        // No value here is longer than a name, which is checked to be short.
        let value = value.get(..255).unwrap_or(value);
        reply.extend([code, value.len() as u8]);
        reply.extend(value);
    };
    option(53, &[kind]);
    option(54, &gateway.octets());
    if let Some(id) = request.client_id {
        // RFC 6842: handed back as it came.
        option(61, id);
    }
    if kind != NAK {
        if request.kind != INFORM {
            let lease = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
            option(51, &lease.to_be_bytes());
            option(58, &(lease / 2).to_be_bytes());
            option(59, &(lease - lease / 8).to_be_bytes());
        }
        option(1, &config.subnet.mask().octets());
        option(28, &config.subnet.broadcast().octets());
        option(3, &config.router.unwrap_or(gateway).octets());
        option(6, &gateway.octets());
        option(12, client.name.as_bytes());
        if !config.domain.is_empty() {
            option(15, config.domain.as_bytes());
            // RFC 3397: some clients search what option 15 names, others only what this one does.
            option(119, &encode(&config.domain));
        }
        option(26, &(MTU as u16).to_be_bytes());
    }
    reply.push(255);
    // Old clients expect the size of a BOOTP message at least.
    reply.resize(reply.len().max(300), 0);

    let to = if kind == NAK || request.broadcast {
        Ipv4Addr::BROADCAST
    } else if !request.client_ip.is_unspecified() {
        request.client_ip
    } else {
        client.ip
    };
    Some(Reply { message: reply, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client<'static> = Client {
        name: "web",
        mac: [2, 0, 0, 0, 0, 9],
        ip: Ipv4Addr::new(10, 187, 41, 9),
    };

    fn ask(kind: u8, options: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        put(&mut message, 0, &[1, 1, 6, 0, 1, 2, 3, 4]);
        put(&mut message, 28, &CLIENT.mac);
        put(&mut message, 236, &MAGIC.to_be_bytes());
        message.extend([53, 1, kind]);
        options.iter().for_each(|option| message.extend(*option));
        message.push(255);
        message
    }

    fn option(reply: &Reply, wanted: u8) -> Option<Vec<u8>> {
        let mut rest = &reply.message[FIXED..];
        while let [code, len, tail @ ..] = rest {
            if *code == 255 {
                break;
            }
            if *code == wanted {
                return Some(tail[..usize::from(*len)].to_vec());
            }
            rest = &tail[usize::from(*len)..];
        }
        None
    }

    #[test]
    fn a_member_is_offered_its_address_and_all_it_needs() {
        let config = NetworkConfig::default();
        let reply = answer(&config, CLIENT, &ask(DISCOVER, &[&[61, 3, 255, 7, 8]])).unwrap();
        assert_eq!(reply.to, CLIENT.ip);
        assert_eq!(reply.message[4..8], [1, 2, 3, 4]);
        assert_eq!(reply.message[16..20], CLIENT.ip.octets());
        assert_eq!(option(&reply, 53), Some(vec![OFFER]));
        assert_eq!(option(&reply, 3), Some(vec![10, 187, 41, 1]));
        assert_eq!(option(&reply, 6), Some(vec![10, 187, 41, 1]));
        assert_eq!(option(&reply, 1), Some(vec![255, 255, 255, 0]));
        assert_eq!(option(&reply, 12), Some(b"web".to_vec()));
        assert_eq!(option(&reply, 61), Some(vec![255, 7, 8]));
        assert_eq!(option(&reply, 15), Some(b"fleetbox".to_vec()));
        assert_eq!(option(&reply, 119), Some(b"\x08fleetbox\0".to_vec()));
    }

    #[test]
    fn a_router_other_than_the_gateway_is_told() {
        let config = NetworkConfig {
            router: Some(Ipv4Addr::new(10, 187, 41, 254)),
            ..NetworkConfig::default()
        };
        let reply = answer(&config, CLIENT, &ask(DISCOVER, &[])).unwrap();
        assert_eq!(option(&reply, 3), Some(vec![10, 187, 41, 254]));
        assert_eq!(option(&reply, 6), Some(vec![10, 187, 41, 1]));
        assert_eq!(option(&reply, 54), Some(vec![10, 187, 41, 1]));
    }

    #[test]
    fn a_request_is_granted_only_for_the_own_address() {
        let config = NetworkConfig::default();
        let right = answer(&config, CLIENT, &ask(REQUEST, &[&[50, 4, 10, 187, 41, 9]]));
        assert_eq!(option(&right.unwrap(), 53), Some(vec![ACK]));
        let wrong = answer(&config, CLIENT, &ask(REQUEST, &[&[50, 4, 10, 187, 41, 8]])).unwrap();
        assert_eq!(option(&wrong, 53), Some(vec![NAK]));
        assert_eq!(wrong.to, Ipv4Addr::BROADCAST);
        // A request that accepts another server's offer is not ours to answer.
        let other = ask(REQUEST, &[&[54, 4, 10, 187, 41, 77]]);
        assert_eq!(answer(&config, CLIENT, &other), None);
    }

    #[test]
    fn other_clients_and_servers_messages_are_ignored() {
        let config = NetworkConfig::default();
        let mut foreign = ask(DISCOVER, &[]);
        foreign[33] = 1;
        assert_eq!(answer(&config, CLIENT, &foreign), None);
        let mut reply = ask(DISCOVER, &[]);
        reply[0] = 2;
        assert_eq!(answer(&config, CLIENT, &reply), None);
    }

    proptest::proptest! {
        #[test]
        fn any_options_are_survived(tail in proptest::collection::vec(0u8.., 0..400)) {
            let mut message = ask(DISCOVER, &[]);
            message.truncate(FIXED);
            message.extend(tail);
            let _ = answer(&NetworkConfig::default(), CLIENT, &message);
        }
    }
}
