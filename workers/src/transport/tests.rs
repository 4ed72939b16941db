use super::*;
use crate::{
    config::load_text,
    policy::outcome::{Answer, Receipt, Stage},
};

/// A relay at which nothing listens.
fn relay() -> Transport {
    let text = "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"embedded:q.db\"\n[transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\n\
                connections = 8\n[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";
    Transport::new(&load_text(text).unwrap().transports[0]).unwrap()
}

#[tokio::test]
async fn a_relay_is_silent_that_leaves_those_unanswered_who_had_a_connection() {
    let transport = relay();
    let begun = Instant::now();
    let _waiting = transport.bulkheads[Lane::Bulk as usize].enter_at_once();
    let is_silent_after = |seconds: u64| transport.is_silent_at(Lane::Bulk, begun + Duration::from_secs(seconds));
    assert!(!is_silent_after(60), "others have all connections");
    transport.asks(begun + Duration::from_secs(20));
    transport.asks(begun + Duration::from_secs(25));
    assert_eq!([29, 31].map(is_silent_after), [false, true]);
    let relay = transport.relay().unwrap();
    relay.resize(0);
    assert!(is_silent_after(31), "that its turn is over changes nothing");
    let accepted =
        || Outcome::Accepted { receipt: Receipt { answer: Answer::local(Stage::Body, "") }, refused: Vec::new() };
    let at_work = transport.bulkheads[Lane::Bulk as usize].enter_at_once();
    at_work.has_turn();
    transport.heard(&accepted());
    assert_eq!([9, 60].map(is_silent_after), [false, true], "somebody else waits for an answer yet");
    drop(at_work);
    transport.heard(&accepted());
    assert!(!is_silent_after(60), "nobody waits for an answer");
}
