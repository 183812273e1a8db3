//! DNS on the gateway (RFC 1035). It answers names of members and registered names itself, and
//! forwards all others to the host's resolvers. Queries about the network's own domain or addresses
//! are never forwarded.

mod message;
mod resolvers;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::message::{
    CLASS_IN, HEADER, NO_ERROR, NOT_IMPLEMENTED, NXDOMAIN, Question, Record, SERVFAIL, TYPE_A,
    TYPE_ANY, TYPE_PTR, answer, is_excuse, reverse,
};
use self::resolvers::{Resolvers, Transport, ask};
use crate::config::NetworkConfig;
use crate::frame::{Mac, Udp};
use crate::members::Members;
use crate::name::encode;
use crate::output::Output;
use crate::port::Port;
use crate::stream::GuestStream;

pub(crate) use self::message::DNS_PORT;

/// A guest's TCP connection is closed after this time without a query (RFC 7766, 6.2.3).
const STREAM_IDLE: Duration = Duration::from_secs(30);

/// The name service of a network.
#[derive(Debug)]
pub(crate) struct Dns {
    config: Arc<NetworkConfig>,
    members: Rc<Members>,
    output: Rc<Output>,
    resolvers: Resolvers,
    /// Queries of each port that wait for a resolver.
    waiting: RefCell<HashMap<u32, usize>>,
    pub(crate) local: Cell<u64>,
    pub(crate) forwarded: Cell<u64>,
    pub(crate) failed: Cell<u64>,
}

/// A slot in the number of queries that may wait for a resolver.
struct QuestionSlot {
    dns: Rc<Dns>,
    port: u32,
}

impl Drop for QuestionSlot {
    fn drop(&mut self) {
        let mut waiting = self.dns.waiting.borrow_mut();
        if let Some(count) = waiting.get_mut(&self.port) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.port);
            }
        }
    }
}

impl Dns {
    pub(crate) fn new(
        config: Arc<NetworkConfig>,
        members: Rc<Members>,
        output: Rc<Output>,
    ) -> Self {
        Self {
            resolvers: Resolvers::new(&config),
            config,
            members,
            output,
            waiting: RefCell::default(),
            local: Cell::new(0),
            forwarded: Cell::new(0),
            failed: Cell::new(0),
        }
    }

    fn wait(self: &Rc<Self>, port: &Port) -> Option<QuestionSlot> {
        let mut waiting = self.waiting.borrow_mut();
        let count = waiting.entry(port.id).or_insert(0);
        if *count >= self.config.limits.dns_questions {
            return None;
        }
        *count += 1;
        Some(QuestionSlot {
            dns: self.clone(),
            port: port.id,
        })
    }

    /// Handles a query that came over UDP.
    pub(crate) fn datagram(
        self: &Rc<Self>,
        port: &Rc<Port>,
        from: Mac,
        guest: Ipv4Addr,
        udp: &Udp<'_>,
    ) {
        if udp.payload.len() < HEADER || udp.payload.get(2).is_none_or(|flags| flags & 0x80 != 0) {
            return;
        }
        let reply = {
            let (dns, port, client) = (self.clone(), port.clone(), udp.source);
            move |message: &[u8]| {
                let udp = Udp {
                    source: DNS_PORT,
                    to: client,
                    payload: message,
                };
                let gateway = dns.config.subnet.gateway();
                dns.output.send_udp(&port, from, gateway, guest, &udp);
            }
        };
        if let Some(message) = self.answer_local(udp.payload) {
            reply(&message);
            return;
        }
        // Beyond the limit questions are dropped; the guest's resolver asks again.
        let Some(waiting) = self.wait(port) else {
            return;
        };
        let query = udp.payload.to_vec();
        tokio::task::spawn_local(async move {
            let message = waiting.dns.forward(&query, Transport::Udp).await;
            if let Some(message) = message {
                reply(&message);
            }
        });
    }

    /// Serves a guest's DNS connection (RFC 7766).
    pub(crate) async fn stream(self: Rc<Self>, port: Rc<Port>, mut stream: GuestStream) {
        while let Ok(Ok(len)) = tokio::time::timeout(STREAM_IDLE, stream.read_u16()).await {
            let mut query = vec![0; usize::from(len)];
            let read = tokio::time::timeout(STREAM_IDLE, stream.read_exact(&mut query)).await;
            if !matches!(read, Ok(Ok(_))) || query.len() < HEADER || query[2] & 0x80 != 0 {
                return;
            }
            let message = match self.answer_local(&query) {
                Some(message) => message,
                None => {
                    let Some(_waiting) = self.wait(&port) else {
                        return;
                    };
                    match self.forward(&query, Transport::Tcp).await {
                        Some(message) => message,
                        None => return,
                    }
                }
            };
            let Ok(len) = u16::try_from(message.len()) else {
                return;
            };
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(message);
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }

    /// Answers a query about a member, or one that cannot be forwarded.
    fn answer_local(&self, query: &[u8]) -> Option<Vec<u8>> {
        let Some(question) = Question::parse(query) else {
            return Some(answer(query, HEADER, NOT_IMPLEMENTED, &[]));
        };
        let (code, records) = self.records(&question)?;
        self.local.set(self.local.get() + 1);
        Some(answer(query, question.end, code, &records))
    }

    /// The code and the records for a name that the gateway knows; `None` for all other names.
    fn records(&self, question: &Question) -> Option<(u8, Vec<Record>)> {
        let asks = |kind| {
            question.class == CLASS_IN && (question.kind == kind || question.kind == TYPE_ANY)
        };
        let domain = self.config.domain.to_ascii_lowercase();
        if let Some(ip) = reverse(&question.name) {
            if !self.config.subnet.contains(ip) {
                return None;
            }
            return Some(match self.members.name_of(ip) {
                Some(name) if asks(TYPE_PTR) => {
                    let record = encode(&format!("{name}.{domain}"));
                    (NO_ERROR, vec![(TYPE_PTR, record)])
                }
                Some(_) => (NO_ERROR, Vec::new()),
                None => (NXDOMAIN, Vec::new()),
            });
        }
        let in_domain = question
            .name
            .strip_suffix(&domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .filter(|_| !domain.is_empty());
        let host = in_domain.unwrap_or(&question.name);
        let ip = if in_domain.is_some() && host == "gateway" {
            Some(self.config.subnet.gateway())
        } else {
            self.members.address_of(host)
        };
        match ip {
            Some(ip) if asks(TYPE_A) => Some((NO_ERROR, vec![(TYPE_A, ip.octets().to_vec())])),
            // The name exists, with addresses of the other family only.
            Some(_) => Some((NO_ERROR, Vec::new())),
            None if in_domain.is_some() => Some((NXDOMAIN, Vec::new())),
            // The domain itself exists and has no records.
            None if question.name == domain => Some((NO_ERROR, Vec::new())),
            None => None,
        }
    }

    /// Asks the host's resolvers in turn, as the C library does: one that does not answer, or that says that it cannot,
    /// makes room for the next. If none can answer, the answer is the first one's excuse, or SERVFAIL.
    async fn forward(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = Question::parse(query)?;
        let mut excuse = None;
        for resolver in self.resolvers.current() {
            match ask(transport, resolver, query, &question).await {
                Ok(message) if is_excuse(&message) => {
                    tracing::debug!(%resolver, code = message.get(3).map(|byte| byte & 15), "a resolver cannot answer");
                    excuse.get_or_insert(message);
                }
                Ok(message) => {
                    self.forwarded.set(self.forwarded.get() + 1);
                    return Some(message);
                }
                Err(error) => tracing::debug!(%resolver, %error, "a resolver does not answer"),
            }
        }
        let (counter, message) = match excuse {
            Some(message) => (&self.forwarded, message),
            None => (&self.failed, answer(query, question.end, SERVFAIL, &[])),
        };
        counter.set(counter.get() + 1);
        Some(message)
    }
}
