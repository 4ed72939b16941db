//! Reads AMQP addresses. What stands in the address is used as it is or refused: nothing in it is replaced by a default.
//!
//! The parser of the AMQP library takes a host in brackets for `localhost` and an empty password for `guest`, and would send a login to
//! a machine that nobody named.

use std::net::Ipv6Addr;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};

/// The login of a broker that was named without one, as the AMQP URI specification has it.
const NO_LOGIN: &str = "guest";
/// The name of a virtual host goes over the wire in a string of at most this many octets.
const VHOST_MAX: usize = 255;

/// Reads `amqp[s]://user:password@host:port/vhost?setting=value`. User, password and virtual host are percent-decoded. Without a login it
/// is `guest`, without a virtual host `/`. Errors never repeat the address: it may hold a password.
pub fn parse(url: &str) -> Result<AMQPUri, String> {
    let (scheme, rest) = url.split_once("://").ok_or("it begins with amqp:// or amqps://")?;
    let scheme: AMQPScheme = scheme.parse().map_err(|_| "it begins with amqp:// or amqps://")?;
    if rest.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err("a blank, a control character or `#` must be written in percent encoding".to_owned());
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    let (host, port) = host_and_port(host, scheme.default_port())?;
    let userinfo = match login {
        None => AMQPUserInfo { username: NO_LOGIN.to_owned(), password: NO_LOGIN.to_owned() },
        Some(login) => {
            let (user, password) =
                login.split_once(':').ok_or("the password is missing; an empty one is written `user:@host`")?;
            let userinfo = AMQPUserInfo { username: decoded(user)?, password: decoded(password)? };
            if userinfo.username.is_empty()
                || [&userinfo.username, &userinfo.password].iter().any(|one| one.contains('\0'))
            {
                return Err("the user is empty, or a login holds a NUL".to_owned());
            }
            userinfo
        }
    };
    Ok(AMQPUri {
        vhost: vhost(path)?,
        query: settings(query)?,
        authority: AMQPAuthority { userinfo, host, port },
        scheme,
    })
}

/// The host and port of an authority: `host`, `host:port`, `[v6]` or `[v6]:port`. The host comes without brackets.
pub fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), String> {
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']').ok_or("a bracket of the host is not closed")? + 1;
        (&text[..end], &text[end..])
    } else {
        text.split_at(text.find(':').unwrap_or(text.len()))
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0).ok_or("the port is no number from 1 to 65535")?
        }
        _ => {
            return Err(
                "what follows the host is no port; write an IPv6 address as [::1]:5672, and `/`, `?`, `#` of a login \
                        in percent encoding"
                    .to_owned(),
            );
        }
    };
    Ok((host_name(host)?, port))
}

/// A host: a name, an IPv4 address, or an IPv6 address with or without brackets. Comes back without brackets.
pub fn host_name(text: &str) -> Result<String, String> {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("a bracket of the host is not closed")?;
        let address: Ipv6Addr = inner.parse().map_err(|_| "what stands in brackets is no IPv6 address")?;
        return Ok(address.to_string());
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(address.to_string());
    }
    if text.is_empty() {
        return Err("the host is missing".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
        return Err("the host is neither a name of letters, digits, `.`, `-` and `_` nor an IP address".to_owned());
    }
    Ok(text.to_owned())
}

/// A host as it stands in front of a port: an IPv6 address gets its brackets.
pub fn shown(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Percent-decodes; refuses what is no percent encoding of UTF-8.
pub fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.get(..2).and_then(|two| Some((hex(two[0])?, hex(two[1])?)));
        let (high, low) =
            digits.ok_or("a `%` is not followed by two hexadecimal digits; the sign itself is written %25")?;
        bytes.push(high << 4 | low);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "a percent encoding is not UTF-8".to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A slash alone behind the host is the virtual host `/`, and so is `//`: no broker has one without a name.
fn vhost(path: &str) -> Result<String, String> {
    if matches!(path, "" | "/") {
        return Ok("/".to_owned());
    }
    if path.contains(['/', '@']) {
        return Err(
            "a `/` or `@` of the virtual host, or a `/` of a login, must be written in percent encoding: %2F, %40"
                .to_owned(),
        );
    }
    let vhost = decoded(path)?;
    if vhost.len() > VHOST_MAX { Err(format!("the virtual host is longer than {VHOST_MAX} octets")) } else { Ok(vhost) }
}

fn settings(query: &str) -> Result<AMQPQueryString, String> {
    let mut settings = AMQPQueryString::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = || format!("the setting `{name}` behind `?` has no value that can be read");
        match name {
            "frame_max" => {
                let size = value.parse().ok().filter(|size| *size >= 4096).ok_or_else(wrong)?;
                settings.frame_max = Some(size);
            }
            "channel_max" => settings.channel_max = Some(value.parse().map_err(|_| wrong())?),
            "heartbeat" => settings.heartbeat = Some(value.parse().map_err(|_| wrong())?),
            "connection_timeout" => {
                settings.connection_timeout = Some(value.parse().ok().filter(|ms| *ms > 0).ok_or_else(wrong)?);
            }
            "auth_mechanism" => settings.auth_mechanism = Some(value.parse().map_err(|_| wrong())?),
            _ => {
                return Err("a setting behind `?` is not known; there are frame_max, channel_max, heartbeat, connection_timeout \
                            and auth_mechanism"
                    .to_owned());
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_address_is_used_as_it_stands() {
        for (url, user, password, host, port, vhost) in [
            ("amqp://h", "guest", "guest", "h", 5672, "/"),
            ("amqps://h", "guest", "guest", "h", 5671, "/"),
            ("amqp://guest:guest@127.0.0.1:5679/", "guest", "guest", "127.0.0.1", 5679, "/"),
            ("amqp://guest:guest@127.0.0.1:5679//", "guest", "guest", "127.0.0.1", 5679, "/"),
            ("amqp://guest:guest@127.0.0.1:5679/%2F", "guest", "guest", "127.0.0.1", 5679, "/"),
            ("amqp://guest:guest@127.0.0.1:5679/shop%2Feu", "guest", "guest", "127.0.0.1", 5679, "shop/eu"),
            ("amqp://app:p%40ss%2Fw%25rd%3A1@127.0.0.1/shop", "app", "p@ss/w%rd:1", "127.0.0.1", 5672, "shop"),
            ("amqp://app:p@ss@127.0.0.1:5679/shop", "app", "p@ss", "127.0.0.1", 5679, "shop"),
            ("amqp://app:a:b@h/shop", "app", "a:b", "h", 5672, "shop"),
            ("amqp://guest:guest@[::1]:5679/shop", "guest", "guest", "::1", 5679, "shop"),
            ("amqp://guest:guest@[2001:db8::5]/shop", "guest", "guest", "2001:db8::5", 5672, "shop"),
            ("amqp://app:@h/shop", "app", "", "h", 5672, "shop"),
            ("amqp://us%C3%A9r:%20@h/%C3%BC", "usér", " ", "h", 5672, "ü"),
        ] {
            let read = parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            let AMQPAuthority { userinfo, host: its_host, port: its_port } = read.authority;
            assert_eq!(
                (
                    userinfo.username.as_str(),
                    userinfo.password.as_str(),
                    its_host.as_str(),
                    its_port,
                    read.vhost.as_str()
                ),
                (user, password, host, port, vhost),
                "{url}"
            );
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_its_password() {
        for url in [
            "amqp",
            "http://h",
            "amqp://",
            "amqp:///shop",
            "amqp://:5672",
            "amqp://hunter2@h",
            "amqp://:hunter2@h",
            "amqp://app:hunter2/x@h/shop",
            "amqp://app:1/hunter2@h/shop",
            "amqp://app:hunter2?x@h/shop",
            "amqp://app:hunter2#x@h/shop",
            "amqp://app:hunter2%zz@h/shop",
            "amqp://app:hunter2%ff@h/shop",
            "amqp://app:hunter2%00@h/shop",
            "amqp://app:hunter2@/shop",
            "amqp://app:hunter2@h:/shop",
            "amqp://app:hunter2@h:0/shop",
            "amqp://app:hunter2@h:65536/shop",
            "amqp://app:hunter2@h:+5/shop",
            "amqp://app:hunter2@::1/shop",
            "amqp://app:hunter2@[::1/shop",
            "amqp://app:hunter2@[::1%25eth0]/shop",
            "amqp://app:hunter2@[h]/shop",
            "amqp://app:hunter2@[::1]5672/shop",
            "amqp://app:hunter2@h%41/shop",
            "amqp://app:hunter2@h/a/b",
            "amqp://app:hunter2@h/shop?verify=verify_peer",
            "amqp://app:hunter2@h/shop?heartbeat=soon",
            "amqp://app:hunter2@h/shop?frame_max=0",
            "amqp://app:hunter2@h /shop",
        ] {
            let error = parse(url).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        assert!(parse(&format!("amqp://h/{}", "v".repeat(256))).is_err(), "a name that no frame carries");
    }

    #[test]
    fn settings_behind_the_question_mark_are_read() {
        let query =
            parse("amqp://h/v?heartbeat=5&frame_max=8192&channel_max=9&connection_timeout=300&auth_mechanism=external")
                .unwrap()
                .query;
        assert_eq!((query.heartbeat, query.frame_max, query.channel_max), (Some(5), Some(8192), Some(9)));
        assert_eq!((query.connection_timeout, query.auth_mechanism.is_some()), (Some(300), true));
    }

    #[test]
    fn a_host_is_shown_so_that_it_can_be_read_again() {
        for text in ["h:1", "[::1]:5672", "10.0.0.1:5671"] {
            let (host, port) = host_and_port(text, 9).unwrap();
            assert_eq!(shown(&host, port), text);
        }
    }
}
