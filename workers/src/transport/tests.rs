use super::*;
use crate::config::load_text;

/// A relay at which nothing listens.
fn relay() -> Transport {
    let text = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                connections = 8\n[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";
    Transport::new(&load_text(text).unwrap().transports[0]).unwrap()
}

#[tokio::test]
async fn a_relay_that_could_not_be_asked_is_not_silent() {
    let transport = relay();
    let relay = transport.relay().unwrap();
    let begun = Instant::now();
    let _waiting = transport.crowds[Lane::Bulk as usize].enter(begun);
    let is_silent_after = |seconds: u64| transport.is_silent_at(Lane::Bulk, begun + Duration::from_secs(seconds));
    assert_eq!((is_silent_after(5), is_silent_after(11)), (false, true));
    relay.resize(0);
    assert!(!is_silent_after(11), "others have all connections");
    relay.resize(2);
    let opened = transport.open_since().unwrap();
    let is_silent_at = |now: Instant| transport.is_silent_at(Lane::Bulk, now);
    assert_eq!((is_silent_at(opened + SILENT_AFTER), is_silent_after(11)), (false, true));
    relay.resize(1);
    assert_eq!(transport.open_since(), Some(opened), "it was open all the time");
}
