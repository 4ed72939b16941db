use super::*;
use crate::reply::testing::{now, reply, shown};

const OK: &str = r#"{"MessageId":"0107-id"}"#;

#[track_caller]
fn check(status: u16, kind: &str, body: &str, expected: &str) {
    let headers: &[(&'static str, &str)] = if kind.is_empty() { &[] } else { &[("x-amzn-errortype", kind)] };
    assert_eq!(shown(&verdict(&reply(status, headers, body), now())), expected, "{status} {kind} {body}");
}

fn message(text: &str) -> String {
    json!({ "message": text }).to_string()
}

#[test]
fn a_message_with_an_id_is_taken() {
    check(200, "", OK, "taken 0107-id");
    check(200, "", "{}", "unclear");
    check(200, "", r#"{"MessageId":""}"#, "unclear");
    check(200, "", "<html>a proxy's page</html>", "not the api");
    check(200, "", "", "unclear");
    check(200, "", &OK[..12], "unclear");
    let cut = ProviderReply { is_whole: false, ..reply(200, &[], OK) };
    assert_eq!(shown(&verdict(&cut, now())), "unclear");
    check(302, "", OK, "config");
}

#[test]
fn throttles_come_with_http_400_and_two_meanings() {
    check(400, "ThrottlingException", &message("Maximum sending rate exceeded."), "throttled");
    check(400, "ThrottlingException", &message("Daily message quota exceeded."), "quota");
    check(429, "TooManyRequestsException", &message("Too Many Requests"), "throttled");
    check(429, "TooManyRequestsException", &message("Daily message quota exceeded"), "quota");
    check(400, "LimitExceededException", &message("limit"), "quota");
    check(429, "", "", "throttled");
}

#[test]
fn the_type_stands_in_a_header_or_in_the_body() {
    check(400, "ThrottlingException:http://internal.amazon.com/coral/com.amazon.coral.availability/", "", "throttled");
    check(400, "", r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#, "throttled");
    check(400, "", r#"{"__type":"com.amazonaws.sesv2#SendingPausedException","Message":"paused"}"#, "config");
}

#[test]
fn what_needs_a_person_burns_no_job() {
    for kind in [
        "SendingPausedException",
        "AccountSuspendedException",
        "NotFoundException",
        "AccessDeniedException",
        "IncompleteSignature",
    ] {
        check(400, kind, &message("no"), "config");
    }
    check(400, "MailFromDomainNotVerifiedException", &message("no"), "sender");
    check(403, "SignatureDoesNotMatch", &message("The request signature does not match"), "config");
    check(403, "InvalidClientTokenId", &message("The security token is invalid"), "config");
    check(403, "", "", "config");
    check(404, "NotFoundException", &message("Configuration set <x> does not exist"), "config");
    check(400, "MessageRejected", &message("Email address is not verified. The following …"), "sender");
}

#[test]
fn a_call_that_is_refused_may_be_taken_by_another_transport() {
    check(400, "MessageRejected", &message("Message contains a virus"), "unsupported");
    check(400, "BadRequestException", &message("Illegal address"), "unsupported");
    check(413, "RequestEntityTooLargeException", "", "unsupported");
    check(400, "", "<html>bad request</html>", "unsupported");
    check(400, "", "", "unsupported");
}

#[test]
fn what_may_pass_is_tried_again() {
    check(408, "RequestTimeoutException", "", "transient");
    check(500, "InternalFailure", &message("try again"), "transient");
    check(503, "ServiceUnavailable", "<html>", "transient");
    check(403, "ExpiredTokenException", &message("The security token included in the request is expired"), "transient");
    assert!(keys_ended(&reply(403, &[("x-amzn-errortype", "ExpiredTokenException")], "")));
    assert!(!keys_ended(&reply(403, &[], "")));
    check(502, "", "<html>bad gateway</html>", "unclear");
    check(504, "", "", "unclear");
}

#[test]
fn a_message_tag_is_plain() {
    assert!(is_legal("2026-w48_A") && is_legal(&"x".repeat(256)));
    assert!(!is_legal("") && !is_legal("a b") && !is_legal("a.b") && !is_legal("é") && !is_legal(&"x".repeat(257)));
}
