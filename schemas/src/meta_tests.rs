use super::*;

fn full() -> Meta {
    Meta {
        generation: 7,
        attempt: 2,
        parks: 5,
        waits: 4,
        unknowns: 1,
        losses: 3,
        published: Some("2026-11-23T09:00:00Z".parse().unwrap()),
        told: Some("limited 2026-11-23T09:30:00Z".to_owned()),
        not_before: Some("2026-11-23T10:00:00Z".parse().unwrap()),
        expires: Some("2026-11-24T10:00:00.5Z".parse().unwrap()),
        payload_hash: Some("00ff".to_owned()),
        last: Some("rcpt_to: 450 4.2.0 later".to_owned()),
        pending: Some(vec![0, 3, 49]),
        part: Some(2),
        pin: Some(Pin {
            transport: "my provider".to_owned(),
            since: "2026-11-23T09:50:00Z".parse().unwrap(),
            until: "2026-11-23T10:05:00.25Z".parse().unwrap(),
        }),
        rest: Some(Rest {
            reason: "unknown".to_owned(),
            detail: "no answer after the final dot".to_owned(),
            at: "2026-11-23T10:00:00Z".parse().unwrap(),
            times: 2,
            lane: Some(Lane::Bulk),
            transport: Some("relay".to_owned()),
        }),
        publisher: Some("shop".to_owned()),
        damaged: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        tracestate: Some("a=b".to_owned()),
        trace0: Some("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01".to_owned()),
    }
}

fn back(meta: &Meta) -> Meta {
    let pairs = meta.to_pairs();
    Meta::from_pairs(pairs.iter().map(|(name, value)| (*name, value.as_str())))
}

#[test]
fn headers_come_back_as_they_went() {
    assert_eq!(back(&full()), full());
    assert_eq!(back(&Meta::default()), Meta::default());
    assert!(Meta::default().to_pairs().is_empty());
}

#[test]
fn the_brokers_own_headers_do_not_survive() {
    let pairs = [("x-death", "1"), ("x-delivery-count", "3"), ("CC", "a"), ("BCC", "b"), ("postrider-attempt", "4")];
    let meta = Meta::from_pairs(pairs);
    assert_eq!(meta.to_pairs(), [("postrider-attempt", "4".to_owned())]);
}

#[test]
fn an_unreadable_header_that_may_be_ignored_does_not_stop_the_message() {
    let meta = Meta::from_pairs([("postrider-attempt", "many"), ("postrider-not-before", "soon")]);
    assert_eq!(meta, Meta::default());
}

#[test]
fn an_unreadable_header_that_must_not_be_ignored_is_noted() {
    for (name, value) in [
        ("postrider-generation", "many"),
        ("postrider-generation", "4294967296"),
        ("postrider-generation", "-1"),
        ("postrider-part", "300"),
        ("postrider-pin", "somewhere"),
    ] {
        assert_eq!(Meta::from_pairs([(name, value)]).damaged, Some(name), "{value}");
        assert_eq!(Meta::from_producer([(name, value)]), Meta::default(), "{value}");
    }
}

#[test]
fn a_producer_says_what_decides_nothing() {
    let pairs = full().to_pairs();
    let read = Meta::from_producer(pairs.iter().map(|(name, value)| (*name, value.as_str())));
    let Meta { expires, payload_hash, traceparent, tracestate, trace0, .. } = full();
    assert_eq!(read, Meta { expires, payload_hash, traceparent, tracestate, trace0, ..Meta::default() });
}

#[test]
fn a_list_of_recipients_that_cannot_be_ours_serves_nobody_rather_than_everybody() {
    for text in ["1,x", "", "0,0", "0,1,0", "256", "-1", &"0,".repeat(60_000), &["0"; 300].join(",")] {
        assert_eq!(Meta::from_pairs([("postrider-pending", text)]).pending, Some(vec![]), "{text:.20}");
    }
    assert_eq!(Meta::from_pairs([("postrider-pending", "3,1")]).pending, Some(vec![3, 1]));
}

#[test]
fn what_a_producer_writes_is_cut_when_it_is_read() {
    let long = "a".repeat(100_000);
    let meta = Meta::from_producer([("tracestate", long.as_str()), ("postrider-payload-hash", long.as_str())]);
    assert_eq!(meta.tracestate.map(|text| text.len()), Some(VALUE_MAX));
    assert_eq!(meta.payload_hash.map(|text| text.len()), Some(VALUE_MAX));
}

#[test]
fn values_are_one_bounded_line() {
    let meta = Meta { last: Some(format!("a\r\nb{}", "é".repeat(400))), ..Meta::default() };
    let value = meta.to_pairs().remove(0).1;
    assert!(value.len() <= VALUE_MAX && value.starts_with("ab"), "{value}");
}
