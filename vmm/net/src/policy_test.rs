use super::*;

impl End {
    fn text(self) -> &'static str {
        match self {
            Self::Member => "members",
            Self::Uplink => "the uplink",
            Self::Gateway => "the gateway",
        }
    }
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Arp => "ARP (0x0806)",
            Self::Dhcp => "IPv4 (0x0800), UDP to port 67",
            Self::Ipv4 => "IPv4 (0x0800), all else",
        }
    }
}

impl Check {
    fn text(self) -> &'static str {
        match self {
            Self::SameSender => "ARP's sender is the frame's sender",
            Self::ClaimsOwn => {
                "it is a request or a reply; ARP's sender has its own IP address or a free one, or a request has none"
            }
            Self::Own => "the source is the sender's own IP address or a free one",
            Self::OwnOrUnset => "the source is the sender's own IP address or 0.0.0.0",
            Self::NotTaken => "the source is not a taken IP address",
            Self::NoService => {
                "no UDP from port 67 or to port 68; no ICMP redirect or router advertisement"
            }
            Self::Reachable => {
                "the destination is in the network, or guests may [reach](#out-of-reach) it"
            }
        }
    }
}

#[test]
fn the_documentation_has_the_same_table() {
    let docs = include_str!("../../../docs/networking.md");
    let (_, rest) = docs
        .split_once("| frame | from | to | checks |\n|---|---|---|---|\n")
        .expect("the table");
    let (written, _) = rest.split_once("\n\n").expect("its end");
    let lines = RULES.iter().map(|rule| {
        let to: Vec<_> = rule.to.iter().map(|end| end.text()).collect();
        let checks: Vec<_> = rule.checks.iter().map(|check| check.text()).collect();
        format!(
            "| {} | {} | {} | {} |",
            rule.kind.text(),
            rule.from.text(),
            to.join(", "),
            checks.join("; ")
        )
    });
    let expected: Vec<_> = lines.collect();
    assert_eq!(written.lines().collect::<Vec<_>>(), expected);
}
