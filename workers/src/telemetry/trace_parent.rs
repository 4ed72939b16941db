//! Whose child an attempt is, and which traces it points at. Pure: a test calls it with made-up headers.
//!
//! The first attempt within ten minutes of the publish is a child of the producer's span. Anything later is a trace of its own, with links to the
//! job's creation and to the attempt before it: a trace that stays open for days helps nobody.

use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use postrider_schemas::Meta;

/// An attempt that begins later than this after the publish is no child of the producer's span any more.
const CHILD_FOR: Duration = Duration::from_mins(10);

/// Where an attempt stands among the traces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceParent {
    /// The span that it is a child of.
    pub parent: Option<SpanContext>,
    /// Spans that it points at.
    pub links: Vec<SpanContext>,
}

/// Decides.
pub fn trace_parent(meta: &Meta, published_at: Option<Timestamp>, now: Timestamp) -> TraceParent {
    let state = meta.tracestate.as_deref().unwrap_or_default();
    let previous = meta.traceparent.as_deref().and_then(|text| parse(text, state));
    let creation = meta.trace0.as_deref().and_then(|text| parse(text, state)).or_else(|| previous.clone());
    let age = published_at.map_or(Duration::ZERO, |at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
    if meta.generation == 0 && age <= CHILD_FOR {
        return TraceParent { parent: creation, links: Vec::new() };
    }
    let mut links: Vec<SpanContext> = creation.into_iter().chain(previous).collect();
    links.dedup_by(|a, b| a.span_id() == b.span_id() && a.trace_id() == b.trace_id());
    TraceParent { parent: None, links }
}

/// Reads a `traceparent`; nothing where it is malformed, as the W3C wants it.
pub fn parse(text: &str, state: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    if !lower_hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    if !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let state = state.parse().unwrap_or_else(|_| TraceState::default());
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

/// Writes a `traceparent`. By hand, because every attempt needs one.
pub fn format(context: &SpanContext) -> String {
    let mut text = String::with_capacity(55);
    text.push_str("00-");
    push_hex(&mut text, &context.trace_id().to_bytes());
    text.push('-');
    push_hex(&mut text, &context.span_id().to_bytes());
    text.push('-');
    push_hex(&mut text, &[context.trace_flags().to_u8()]);
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const SECOND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    #[track_caller]
    fn check(generation: u32, traceparent: &str, trace0: Option<&str>, age: i64, parent: Option<&str>, links: &[&str]) {
        let meta = Meta {
            generation,
            traceparent: Some(traceparent.to_owned()),
            trace0: trace0.map(str::to_owned),
            ..Meta::default()
        };
        let found = trace_parent(&meta, Timestamp::from_second(now().as_second() - age).ok(), now());
        assert_eq!(found.parent.as_ref().map(format).as_deref(), parent);
        assert_eq!(found.links.iter().map(format).collect::<Vec<_>>(), links);
    }

    #[test]
    fn the_first_attempt_is_a_child_of_the_producer_for_ten_minutes() {
        check(0, FIRST, None, 0, Some(FIRST), &[]);
        check(0, FIRST, Some(FIRST), 600, Some(FIRST), &[]);
        check(0, FIRST, None, 601, None, &[FIRST]);
    }

    #[test]
    fn a_message_that_was_handed_back_is_still_the_producers() {
        check(0, SECOND, Some(FIRST), 5, Some(FIRST), &[]);
    }

    #[test]
    fn a_later_attempt_points_at_the_creation_and_at_the_attempt_before_it() {
        check(1, SECOND, Some(FIRST), 1, None, &[FIRST, SECOND]);
        check(4, FIRST, Some(FIRST), 1, None, &[FIRST]);
    }

    #[test]
    fn malformed_context_is_ignored() {
        for text in [
            "",
            "nonsense",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(parse(text, ""), None, "{text}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more";
        assert_eq!(
            parse(later, "").as_ref().map(format).as_deref(),
            Some(FIRST),
            "a later version is read as far as it is known"
        );
        assert!(parse(FIRST, "a=b,c=d").is_some_and(|context| context.trace_state().get("a") == Some("b")));
        assert!(parse(FIRST, "= , nothing to read").is_some(), "a bad state does not spoil its parent");
    }
}
