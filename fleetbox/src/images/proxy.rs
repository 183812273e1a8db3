//! Finds the proxy for an address in the environment.

use std::net::IpAddr;

use http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::client::RequestError;

/// The proxy for `uri`, according to `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in
/// upper or lower case. `variable` reads a variable. A redirect uses the same proxy, unless
/// `NO_PROXY` names its host.
pub(super) fn of(
    uri: &Uri,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, RequestError> {
    let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
    let names = match uri.scheme_str() {
        Some("https") => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let excepted = first(&["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let excepted: Vec<_> = excepted.split(',').map(str::trim).collect();
    let host = uri.host().unwrap_or_default();
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    // A proxy's loopback is another machine's.
    if host == "localhost" || address.is_some_and(|a| a.is_loopback() || in_any(a, &excepted)) {
        return Ok(None);
    }
    let Some(text) = first(&names).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let invalid =
        |e: ureq::Error| RequestError::Fatal(format!("the environment's proxy {text:?}: {e}"));
    let named = Proxy::new(&text).map_err(invalid)?;
    if !matches!(named.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(RequestError::Fatal(format!(
            "the environment's proxy {text:?} is not an HTTP proxy, which is the only kind supported; \
             unset the variable, or name an HTTP proxy"
        )));
    }
    let mut proxy = Proxy::builder(named.protocol())
        .host(named.host())
        .port(named.port());
    if let Some(name) = named.username() {
        proxy = proxy.username(name);
    }
    if let Some(password) = named.password() {
        proxy = proxy.password(password);
    }
    // A domain stands for itself and for all below it.
    for domain in excepted.iter().map(|e| e.trim_start_matches('.')) {
        if !domain.is_empty() {
            proxy = proxy.no_proxy(domain).no_proxy(&format!(".{domain}"));
        }
    }
    proxy.build().map(Some).map_err(invalid)
}

/// True if `networks` has the address itself, or a network such as `10.0.0.0/8` that contains it.
fn in_any(address: IpAddr, networks: &[&str]) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let (wanted, width) = bits(address);
    networks.iter().any(|network| {
        let (base, length) = network.split_once('/').unwrap_or((network, ""));
        let Ok(base) = base.parse::<IpAddr>() else {
            return false;
        };
        let length = match length.parse::<u32>() {
            Ok(length) if length <= width => length,
            Err(_) if !network.contains('/') => width,
            _ => return false,
        };
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        base.is_ipv4() == address.is_ipv4() && (bits(base).0 ^ wanted) & mask == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `HOST:PORT` of the proxy for `url`.
    fn chosen(url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let uri: Uri = url.parse().unwrap();
        let variable = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let proxy = of(&uri, variable).unwrap()?;
        (!proxy.is_no_proxy(&uri)).then(|| format!("{}:{}", proxy.host(), proxy.port()))
    }

    #[test]
    fn the_scheme_chooses_the_variable() {
        let both = [
            ("HTTP_PROXY", "http://plain:3128"),
            ("https_proxy", "http://u:p%40ss@secure:3129"),
        ];
        assert_eq!(chosen("http://h/x", &both).unwrap(), "plain:3128");
        assert_eq!(chosen("https://h/x", &both).unwrap(), "secure:3129");
        assert_eq!(chosen("https://h/x", &both[..1]), None);
        let all = [("ALL_PROXY", "all:8080"), ("HTTP_PROXY", "plain:3128")];
        assert_eq!(chosen("https://h/x", &all).unwrap(), "all:8080");
        assert_eq!(chosen("http://h/x", &all).unwrap(), "plain:3128");
        assert_eq!(chosen("http://h/x", &[("HTTP_PROXY", "")]), None);
        assert_eq!(chosen("http://h/x", &[]), None);
        let uri = "https://h/x".parse().unwrap();
        let named = of(&uri, |_| Some("http://u:p%40ss@secure".to_owned()));
        let named = named.unwrap().unwrap();
        assert_eq!(
            (named.username(), named.password()),
            (Some("u"), Some("p@ss"))
        );
        for other in ["x://y", "socks5://y:1080", "socks4://y"] {
            let wrong = of(&uri, |name| {
                (name == "HTTPS_PROXY").then(|| other.to_owned())
            });
            let Err(RequestError::Fatal(why)) = wrong else {
                panic!("{wrong:?}");
            };
            assert!(why.contains(other), "{why}");
        }
    }

    #[test]
    fn exceptions_are_hosts_domains_and_networks() {
        let proxied = |url: &str, no_proxy: &str| {
            chosen(url, &[("ALL_PROXY", "all"), ("no_proxy", no_proxy)]).is_some()
        };
        let list = "example.org, .dotted.org,10.0.0.0/8,192.0.2.7,2001:db8::/32";
        for direct in [
            "http://example.org/",
            "http://a.Example.org/",
            "http://dotted.org/",
            "http://a.dotted.org/",
            "http://10.1.2.3/",
            "http://192.0.2.7:8080/",
            "http://[2001:db8::1]/",
            "http://localhost/",
            "http://127.0.0.1/",
            "http://[::1]/",
        ] {
            assert!(!proxied(direct, list), "{direct}");
        }
        for other in [
            "http://anexample.org/",
            "http://example.org.net/",
            "http://11.1.2.3/",
            "http://192.0.2.8/",
            "http://[2001:db9::1]/",
        ] {
            assert!(proxied(other, list), "{other}");
            assert!(!proxied(other, "*"), "{other}");
            assert!(proxied(other, "x/8,10.0.0.0/33,/8,,::/0z"), "{other}");
        }
    }
}
