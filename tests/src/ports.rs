//! Free TCP ports of 127.0.0.1.
//!
//! A port that is merely free now may be taken by an outgoing connection before the server binds it, and two test programs
//! may pick the same one. So ports come from below the ephemeral range, and each is reserved by a UDP socket on the same
//! number, which the system releases when the test program ends, however it ends.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

use anyhow::{Result, anyhow};

const FIRST: u16 = 11_000;
const COUNT: u16 = 20_000;

struct Registry {
    next: u16,
    reserved: Vec<UdpSocket>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

/// A TCP port of 127.0.0.1 that nobody else of this harness gets while this program lives, so that a server may be
/// ended and started again on it.
pub fn free() -> Result<u16> {
    let mut slot = REGISTRY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Programs that start together begin at different places: fewer collisions to step over.
    let start = || u16::try_from((std::process::id() * 37) % u32::from(COUNT)).unwrap_or(0);
    let registry = slot.get_or_insert_with(|| Registry { next: start(), reserved: Vec::new() });
    for _ in 0..COUNT {
        let port = FIRST + registry.next % COUNT;
        registry.next = (registry.next + 1) % COUNT;
        let Ok(reservation) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            registry.reserved.push(reservation);
            return Ok(port);
        }
    }
    Err(anyhow!("no free port between {FIRST} and {}", FIRST + COUNT))
}

/// The same for a server that listens on UDP as well: the number is no longer reserved, so other programs of this harness may pick it.
pub fn free_with_udp() -> Result<u16> {
    let port = free()?;
    let mut slot = REGISTRY.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(registry) = slot.as_mut() {
        registry.reserved.retain(|one| one.local_addr().map_or(true, |address| address.port() != port));
    }
    Ok(port)
}

/// Whether something accepts connections on this port of 127.0.0.1.
pub fn is_open(port: u16) -> bool {
    let address = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(500)).is_ok()
}
