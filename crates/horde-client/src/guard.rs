//! Which addresses a stranger may send the worker to: public ones, by https (or plain http where allowed), on the usual
//! ports. Literals are judged as they are, names by every address they resolve to, and the connection is pinned to what
//! was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

/// Longest address that is looked at, in bytes.
const LONGEST_URL: usize = 4096;

/// What a guard lets through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    /// Also plain `http`.
    pub allow_http: bool,
    /// Also loopback addresses on any port, for a Horde on this machine.
    pub allow_loopback: bool,
}

/// An address found fit, with the socket addresses a connection may use.
#[derive(Clone, Debug)]
pub struct Vetted {
    /// Name to pin, where the host is a name.
    pub name: Option<String>,
    /// Where to connect.
    pub addresses: Vec<SocketAddr>,
}

impl Guard {
    /// Judges `url` and resolves its host once. The error is a reason without the address's path or query.
    pub async fn vet(&self, url: &Url) -> Result<Vetted, String> {
        let (host, port) = self.vet_shape(url)?;
        match host {
            Host::Ipv4(ip) => self.vet_addresses(None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Ipv6(ip) => self.vet_addresses(None, vec![SocketAddr::new(ip.into(), port)]),
            Host::Domain(name) => {
                let found = tokio::net::lookup_host((name, port))
                    .await
                    .map_err(|_| "the host's name does not resolve".to_owned())?;
                self.vet_addresses(Some(name.to_owned()), found.collect())
            }
        }
    }

    fn vet_shape<'a>(&self, url: &'a Url) -> Result<(Host<&'a str>, u16), String> {
        if url.as_str().len() > LONGEST_URL {
            return Err(format!("the address is longer than {LONGEST_URL} bytes"));
        }
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            scheme => return Err(format!("`{scheme}` addresses are not fetched")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the address carries a user or password".to_owned());
        }
        let host = url.host().ok_or("the address has no host")?;
        let port = url.port_or_known_default().ok_or("the address has no port")?;
        if !self.allow_loopback && !matches!(port, 80 | 443) {
            return Err(format!("port {port} is not one for pictures"));
        }
        Ok((host, port))
    }

    fn vet_addresses(&self, name: Option<String>, addresses: Vec<SocketAddr>) -> Result<Vetted, String> {
        if addresses.is_empty() {
            return Err("the host's name has no address".to_owned());
        }
        // One private address among several is how a name is rebound: the whole name is refused.
        for address in &addresses {
            let usual_port = matches!(address.port(), 80 | 443);
            let allowed = (is_public(address.ip()) && usual_port)
                || (self.allow_loopback && address.ip().to_canonical().is_loopback());
            if !allowed {
                return Err("the host is not a public address".to_owned());
            }
        }
        Ok(Vetted { name, addresses })
    }
}

/// Whether an address belongs to the public internet (IANA special-purpose registries).
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 198 && (18..20).contains(&b)) // benchmarking
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 192 && b == 88 && c == 99); // 6to4 relay
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        // 6to4 and NAT64 reach the IPv4 address they carry.
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        [0x64, 0xff9b, ..] => false,
        // Teredo, documentation, ORCHID, benchmarking and the rest of 2001::/23.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Only 2000::/3 is global unicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn verdict(address: &str, guard: Guard) -> bool {
        match Url::parse(address) {
            Ok(url) => guard.vet(&url).await.is_ok(),
            Err(_) => false,
        }
    }

    #[tokio::test]
    async fn f110_private_addresses_are_refused_in_every_spelling() {
        let guard = Guard {
            allow_http: true,
            allow_loopback: false,
        };
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "0",
            "0.0.0.0",
            "1",
            "10.0.0.1",
            "10.1",
            "0xa000001",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "3232235777",
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[fe80::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[2002:7f00:1::]",
            "[2002:a9fe:a9fe::1]",
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
        ] {
            assert!(
                !verdict(&format!("http://{host}/a.png"), guard).await,
                "{host} was let through"
            );
            assert!(
                !verdict(&format!("https://{host}/a.png"), guard).await,
                "{host} was let through"
            );
        }
    }

    #[tokio::test]
    async fn public_literals_pass() {
        for host in [
            "1.1.1.1",
            "8.8.8.8",
            "16843009",
            "[2606:4700:4700::1111]",
            "[2002:808:808::1]",
            "[::ffff:8.8.8.8]",
        ] {
            assert!(
                verdict(&format!("https://{host}/a.png"), Guard::default()).await,
                "{host} was refused"
            );
        }
    }

    #[tokio::test]
    async fn f111_only_web_addresses_on_usual_ports_without_users_pass() {
        let guard = Guard::default();
        for address in [
            "file:///etc/passwd",
            "ftp://1.1.1.1/a",
            "data:image/png;base64,AAAA",
            "gopher://1.1.1.1/",
            "http://1.1.1.1/a.png",
            "https://user@1.1.1.1/a",
            "https://user:word@1.1.1.1/a",
            "https://1.1.1.1:22/",
            "https://1.1.1.1:6379/",
            "//1.1.1.1/a",
            "\\\\host\\share",
            "",
        ] {
            assert!(!verdict(address, guard).await, "{address} was let through");
        }
        assert!(!verdict(&format!("https://1.1.1.1/{}", "a".repeat(5_000)), guard).await);
    }

    #[tokio::test]
    async fn loopback_passes_only_where_it_was_allowed() {
        let guard = Guard {
            allow_http: true,
            allow_loopback: true,
        };
        assert!(verdict("http://127.0.0.1:40123/a", guard).await);
        assert!(!verdict("http://10.0.0.1/a", guard).await);
    }
}
