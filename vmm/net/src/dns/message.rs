//! DNS messages (RFC 1035). Only the header and the question are read.

use std::net::Ipv4Addr;

use crate::frame::{be16, put};

/// The port of DNS.
pub(crate) const DNS_PORT: u16 = 53;
/// Bytes of a message's header.
pub(crate) const HEADER: usize = 12;
/// How long an answer about a member may be cached, in seconds. It is short because members come
/// and go.
const TTL: u32 = 5;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;

pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;
pub(crate) const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// A resource record without its owner: its type and its data.
pub(crate) type Record = (u16, Vec<u8>);

/// The question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// In lower case, with labels joined by dots, and without the final dot.
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The end of the question section in the message.
    pub(crate) end: usize,
}

impl Question {
    /// Parses a query with exactly one question. Names are not compressed there.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        // Neither a response nor an operation other than a standard query is a question.
        if message.get(2)? & 0xf8 != 0 || be16(message, 4)? != 1 {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            if len > 63 || name.len() + len > 254 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            for byte in message.get(at..at + len)? {
                // Any other character makes the name unequal to all names that are known here.
                name.push(char::from(byte.to_ascii_lowercase()));
            }
            at += len;
        }
        Some(Self {
            name,
            kind: be16(message, at)?,
            class: be16(message, at + 2)?,
            end: at + 4,
        })
    }
}

/// Builds an answer to `query` with the given code, and the resource records in `records`, without
/// their owners.
pub(crate) fn answer(query: &[u8], end: usize, code: u8, records: &[Record]) -> Vec<u8> {
    let mut message = query.get(..end).unwrap_or(query).to_vec();
    if message.len() < HEADER {
        message.resize(HEADER, 0);
    }
    let recursion_desired = message[2] & 1;
    // A response; authoritative unless it is an error of forwarding; recursion available.
    let authoritative = if code == SERVFAIL { 0 } else { 4 };
    let operation = message[2] & 0x78;
    message[2] = 0x80 | operation | authoritative | recursion_desired;
    message[3] = 0x80 | code;
    let questions: u16 = if end > HEADER { 1 } else { 0 };
    put(&mut message, 4, &questions.to_be_bytes());
    put(&mut message, 6, &(records.len() as u16).to_be_bytes());
    put(&mut message, 8, &[0; 4]);
    for (kind, data) in records {
        // The owner is the question's name, which stands right after the header.
        message.extend([0xc0, HEADER as u8]);
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message.extend(TTL.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
    }
    message
}

/// The query with a new, random identifier, which an attacker cannot guess.
pub(crate) fn disguise(query: &[u8]) -> ([u8; 2], Vec<u8>) {
    let id = rand::random::<u16>().to_be_bytes();
    let mut message = query.to_vec();
    put(&mut message, 0, &id);
    (id, message)
}

/// Checks that `message` answers this query, and sets the guest's identifier in it.
pub(crate) fn restore(query: &[u8], id: [u8; 2], question: &Question, message: &mut [u8]) -> bool {
    let is_response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
    if message.get(..2) != Some(&id) || !is_response {
        return false;
    }
    // Some servers leave the question out of an error.
    if be16(message, 4) != Some(0) {
        let asked = query.get(HEADER..question.end).unwrap_or_default();
        let repeated = message.get(HEADER..question.end).unwrap_or_default();
        if !repeated.eq_ignore_ascii_case(asked) {
            return false;
        }
    }
    put(message, 0, query.get(..2).unwrap_or_default());
    true
}

/// True if a resolver says that it cannot answer, so that another may know more: an error of its own, or a referral to
/// other servers (neither an answer nor an authority, without an error or recursion). The C library judges alike.
pub(crate) fn is_excuse(message: &[u8]) -> bool {
    let (Some(flags), Some(code)) = (message.get(2), message.get(3)) else {
        return true;
    };
    let is_referral = || {
        let is_empty = |at| be16(message, at) == Some(0);
        code & 15 == NO_ERROR && flags & 4 == 0 && code & 0x80 == 0 && is_empty(6) && is_empty(10)
    };
    matches!(code & 15, SERVFAIL | NOT_IMPLEMENTED | REFUSED) || is_referral()
}

/// The address of a name in the reverse tree.
pub(crate) fn reverse(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let address: Ipv4Addr = digits.parse().ok()?;
    let [a, b, c, d] = address.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::encode;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(encode(name));
        message.extend(kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message
    }

    #[test]
    fn a_question_is_read() {
        let message = query("Web.FLEETBOX", TYPE_A);
        let question = Question::parse(&message).unwrap();
        assert_eq!(question.name, "web.fleetbox");
        assert_eq!((question.kind, question.class), (TYPE_A, CLASS_IN));
        assert_eq!(question.end, message.len());
    }

    #[test]
    fn what_is_no_plain_question_is_refused() {
        let mut response = query("a", TYPE_A);
        response[2] |= 0x80;
        assert_eq!(Question::parse(&response), None);
        let mut two = query("a", TYPE_A);
        two[5] = 2;
        assert_eq!(Question::parse(&two), None);
        let mut compressed = query("a", TYPE_A);
        compressed[HEADER] = 0xc0;
        assert_eq!(Question::parse(&compressed), None);
        let long = vec!["x".repeat(60); 5].join(".");
        assert_eq!(Question::parse(&query(&long, TYPE_A)), None);
    }

    #[test]
    fn only_the_answer_to_the_question_is_taken() {
        let asked = query("example.org", TYPE_A);
        let question = Question::parse(&asked).unwrap();
        let (id, sent) = disguise(&asked);
        let mut right = answer(&sent, question.end, NO_ERROR, &[]);
        assert!(restore(&asked, id, &question, &mut right));
        assert_eq!(right[..2], asked[..2]);
        let other = query("example.com", TYPE_A);
        let mut wrong = answer(&other, other.len(), NO_ERROR, &[]);
        put(&mut wrong, 0, &id);
        assert!(!restore(&asked, id, &question, &mut wrong));
    }

    #[test]
    fn only_an_answer_is_final() {
        let asked = query("example.org", TYPE_A);
        let with = |flags: [u8; 2], answers: u8| {
            let mut message = asked.clone();
            put(&mut message, 2, &flags);
            put(&mut message, 7, &[answers]);
            message
        };
        // SERVFAIL, NOTIMP and REFUSED, whatever else is set, and a referral.
        for flags in [
            [0x81, 0x82],
            [0x81, 0x84],
            [0x81, 0x85],
            [0x85, 0x05],
            [0x81, 0],
        ] {
            assert!(is_excuse(&with(flags, 0)), "{flags:?}");
        }
        // NXDOMAIN, no records, an authority's "no records", and an answer without recursion.
        let finals = [
            ([0x81, 0x83], 0),
            ([0x81, 0x80], 0),
            ([0x85, 0], 0),
            ([0x81, 0], 1),
        ];
        for (flags, answers) in finals {
            assert!(!is_excuse(&with(flags, answers)), "{flags:?}");
        }
    }

    #[test]
    fn reverse_names_are_understood() {
        assert_eq!(
            reverse("9.41.187.10.in-addr.arpa"),
            Some(Ipv4Addr::new(10, 187, 41, 9))
        );
        assert_eq!(reverse("41.187.10.in-addr.arpa"), None);
        assert_eq!(reverse("web"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_survived(message in proptest::collection::vec(0u8.., 0..200)) {
            if let Some(question) = Question::parse(&message) {
                let _ = answer(&message, question.end, NO_ERROR, &[(TYPE_A, vec![1, 2, 3, 4])]);
                let _ = restore(&message, [0, 0], &question, &mut message.clone());
            }
            let _ = answer(&message, HEADER, SERVFAIL, &[]);
        }
    }
}
