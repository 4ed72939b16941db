//! As much of an HTTP client as RabbitMQ's management interface needs: blocking, HTTP/1.0, one request a connection.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `host:port`
    pub address: String,
    /// `user:password`
    pub credentials: String,
}

impl Endpoint {
    /// Takes `http://user:password@host:port` apart; `guest:guest` when no user is named.
    pub fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").with_context(|| format!("not an http:// address: {url}"))?;
        let authority = rest.split('/').next().unwrap_or(rest);
        let (credentials, address) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        Ok(Self { address: address.to_owned(), credentials: credentials.to_owned() })
    }

    /// One request; the status and the body, whatever they are. Limit: 10 s for each read and write.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let address =
            self.address.to_socket_addrs()?.next().with_context(|| format!("no such host: {}", self.address))?;
        let limit = Duration::from_secs(10);
        let mut stream =
            TcpStream::connect_timeout(&address, limit).with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Basic {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            base64(self.credentials.as_bytes()),
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| format!("{method} {path}"))?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{method} {path}: no answer"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.with_context(|| format!("{method} {path}: no status"))?, body.to_owned()))
    }

    /// One request that has to succeed.
    pub fn expect(&self, method: &str, path: &str, body: &str) -> Result<String> {
        match self.request(method, path, body)? {
            (200..=299, body) => Ok(body),
            (status, body) => bail!("{method} {path}: {status} {body}"),
        }
    }
}

/// Percent-encodes a path segment.
pub fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place)) & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(DIGITS[digit as usize]) });
        }
    }
    text
}
