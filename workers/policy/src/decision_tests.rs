use postrider_schemas::{JobLimits, JobV1, Lane};

use super::*;
use crate::{
    outcome::{Receipt, Stage},
    route::{OnLimit, Send, When},
};

fn answer(code: u16) -> Answer {
    Answer::new(Stage::RcptTo, Some(code), None, "text")
}

fn refusal(class: Class) -> Refusal {
    Refusal { class, answer: answer(if class.is_permanent() { 550 } else { 450 }), retry_after: None }
}

fn one(index: usize, class: Class) -> RecipientRefusal {
    RecipientRefusal { index, refusal: refusal(class) }
}

fn taken(refused: Vec<RecipientRefusal>) -> Outcome {
    Outcome::Accepted { receipt: Receipt { answer: answer(250) }, refused }
}

/// Settles an outcome of a job to three recipients; shows what follows and the events as `type[positions]`.
fn shown(outcome: &Outcome, lane: Lane, meta: &Meta) -> (Disposition, String) {
    shown_with(outcome, lane, meta, None)
}

fn shown_with(outcome: &Outcome, lane: Lane, meta: &Meta, pin: Option<&Pin>) -> (Disposition, String) {
    let job = JobV1 {
        from: "a@shop.example".into(),
        to: vec!["b@dest.example".into(), "c@dest.example".into()],
        bcc: vec!["d@dest.example".into()],
        text: Some(String::new()),
        lane,
        ..JobV1::default()
    };
    let job = job.parse(&JobLimits::DEFAULT).unwrap();
    let route = Route {
        name: "all".to_owned(),
        when: When::default(),
        send: Send::Ordered(vec![0]),
        on_limit: OnLimit::Wait,
        on_unknown: None,
    };
    let schedule = RetrySchedule { waits: vec![Duration::from_secs(30), Duration::from_secs(60)], jitter: 0.0 };
    let situation = DecisionInput {
        job: &job,
        meta,
        route: &route,
        transport: "relay",
        passed_over: &[],
        pin,
        tripped: false,
        schedule: &schedule,
        config_wait: Duration::from_secs(5),
        now: Timestamp::UNIX_EPOCH,
    };
    let verdict = decide(outcome, situation).unwrap();
    let events: Vec<String> = verdict
        .events
        .iter()
        .map(|event| {
            let who: Vec<String> =
                event.data.recipients.iter().map(|one| format!("{:?}{}", one.field, one.position)).collect();
            format!("{}[{}]", event.kind.as_str(), who.join(","))
        })
        .collect();
    (verdict.next, events.join(" "))
}

#[track_caller]
fn check(outcome: Outcome, expected: (&str, Option<Vec<u8>>, &str)) {
    let (next, events) = shown(&outcome, Lane::Bulk, &Meta::default());
    let pending = match &next {
        Disposition::Again { pending, .. }
        | Disposition::Hold { pending, .. }
        | Disposition::DeadLetter { pending, .. } => pending.clone(),
        _ => None,
    };
    assert_eq!((next.as_str(), pending, events.as_str()), expected);
}

fn whole(class: Class) -> Outcome {
    Outcome::Refused { refusal: refusal(class), recipients: Vec::new() }
}

#[test]
fn a_message_that_everybody_gets_is_sent() {
    check(taken(vec![]), ("sent", None, "accepted[]"));
}

#[test]
fn recipients_that_were_served_are_never_tried_again() {
    check(
        taken(vec![one(1, Class::Transient), one(2, Class::Recipient)]),
        ("again", Some(vec![1]), "accepted[To0] rejected[Bcc0] deferred[]"),
    );
    check(taken(vec![one(2, Class::Recipient)]), ("sent", None, "accepted[To0,To1] rejected[Bcc0]"));
}

#[test]
fn recipients_refused_one_by_one_part_ways() {
    let list = vec![one(0, Class::Recipient), one(1, Class::Throttled), one(2, Class::Transient)];
    let outcome = Outcome::Refused { refusal: refusal(Class::Throttled), recipients: list };
    check(outcome, ("again", Some(vec![1, 2]), "rejected[To0] deferred[]"));
    let list = (0..3).map(|index| one(index, Class::Recipient)).collect();
    let outcome = Outcome::Refused { refusal: refusal(Class::Recipient), recipients: list };
    check(outcome, ("rejected", None, "rejected[To0,To1,Bcc0]"));
}

#[test]
fn every_class_has_its_consequence() {
    check(whole(Class::Message), ("rejected", None, "rejected[]"));
    check(whole(Class::Recipient), ("rejected", None, "rejected[]"));
    check(whole(Class::Unsupported), ("dead_letter", None, "dead[]"));
    for class in [Class::Transient, Class::Throttled, Class::Quota, Class::Config, Class::Sender] {
        check(whole(class), ("again", None, "deferred[]"));
    }
    let local = Refusal { class: Class::Message, answer: Answer::local(Stage::Compose, "no"), retry_after: None };
    check(Outcome::Refused { refusal: local, recipients: vec![] }, ("dead_letter", None, "dead[]"));
}

#[test]
fn only_real_tries_count() {
    let counted = |class, waits| match shown(&whole(class), Lane::Bulk, &Meta { waits, ..Meta::default() }).0 {
        Disposition::Again { counted, .. } => counted,
        other => panic!("{other:?}"),
    };
    assert!(counted(Class::Transient, 0));
    for class in [Class::Config, Class::Sender, Class::Throttled, Class::Quota] {
        assert!(!counted(class, 7), "{class:?}");
    }
    assert!(counted(Class::Throttled, PATIENCE_MAX), "patience ends");
    let mixed = vec![one(0, Class::Throttled), one(1, Class::Transient), one(2, Class::Throttled)];
    let outcome = Outcome::Refused { refusal: refusal(Class::Throttled), recipients: mixed };
    assert!(matches!(shown(&outcome, Lane::Bulk, &Meta::default()).0, Disposition::Again { counted: true, .. }));
}

#[test]
fn having_waited_for_limits_of_ours_says_nothing_about_the_patience_of_a_transport() {
    let wait = |meta: Meta| match shown(&whole(Class::Throttled), Lane::Transactional, &meta).0 {
        Disposition::Again { wait, counted: false, patience: true, .. } => wait,
        other => panic!("{other:?}"),
    };
    let first = wait(Meta::default());
    assert_eq!(wait(Meta { parks: 200, generation: 200, ..Meta::default() }), first);
    assert!(wait(Meta { waits: 3, ..Meta::default() }) > first);
    // What waits for a person asked for nothing.
    assert!(matches!(
        shown(&whole(Class::Config), Lane::Bulk, &Meta::default()).0,
        Disposition::Again { patience: false, .. }
    ));
}

#[test]
fn the_schedule_ends_in_dead() {
    let meta = Meta { attempt: 2, ..Meta::default() };
    let (next, events) = shown(&whole(Class::Transient), Lane::Bulk, &meta);
    assert!(matches!(next, Disposition::DeadLetter { reason, .. } if reason == "retries-exhausted"));
    assert_eq!(events, "dead[]");
}

#[test]
fn an_unknown_follows_the_policy_of_its_lane() {
    let outcome = Outcome::Unknown(Answer::local(Stage::Body, "closed"));
    assert_eq!(shown(&outcome, Lane::Bulk, &Meta::default()).1, "held[]");
    let (next, events) = shown(&outcome, Lane::Transactional, &Meta::default());
    assert!(matches!(next, Disposition::Again { unknown: true, counted: true, .. }));
    assert_eq!(events, "deferred[]");
}

fn pin(until: i64) -> Pin {
    let until = Timestamp::from_second(until).unwrap();
    Pin { transport: "api".to_owned(), since: Timestamp::UNIX_EPOCH, until }
}

#[test]
fn a_call_that_can_be_repeated_is_repeated_whatever_the_policy() {
    let outcome = Outcome::Unknown(Answer::local(Stage::Call, "cut"));
    for lane in [Lane::Bulk, Lane::Transactional] {
        let (next, events) = shown_with(&outcome, lane, &Meta::default(), Some(&pin(900)));
        assert!(matches!(next, Disposition::Again { unknown: true, pin: Some(_), .. }), "{next:?}");
        assert_eq!(events, "deferred[]");
    }
    // The next try would come too late to be recognised: the policy decides.
    assert_eq!(shown_with(&outcome, Lane::Bulk, &Meta::default(), Some(&pin(30))).1, "held[]");
}

#[test]
fn a_repeated_call_stays_unknown_until_the_provider_says_yes() {
    let repeated = |until| Meta { attempt: 1, pin: Some(pin(until)), ..Meta::default() };
    for class in [Class::Transient, Class::Throttled, Class::Quota, Class::Config, Class::Sender, Class::Message] {
        let (next, _) = shown(&whole(class), Lane::Bulk, &repeated(900));
        assert!(matches!(next, Disposition::Again { pin: Some(_), .. }), "{class:?} {next:?}");
        assert_eq!(shown(&whole(class), Lane::Bulk, &repeated(50)).1, "held[]", "{class:?}");
    }
    assert_eq!(shown(&taken(vec![]), Lane::Bulk, &repeated(900)).0, Disposition::Sent);
}

#[test]
fn the_parts_of_a_job_are_fresh_messages() {
    let before = Meta { generation: 3, attempt: 2, parks: 1, ..Meta::default() };
    let meta = part_meta(&before, 2, &[1, 4]);
    assert_eq!((meta.generation, meta.part, meta.pending, meta.attempt), (0, Some(2), Some(vec![1, 4]), 2));
}

#[test]
fn the_copys_headers_tell_what_happened() {
    let before = Meta { generation: 4, attempt: 1, parks: 2, losses: 2, ..Meta::default() };
    let again = |counted| Disposition::Again {
        wait: Duration::from_secs(5),
        pending: Some(vec![1]),
        counted,
        patience: !counted,
        unknown: true,
        last: "l".to_owned(),
        pin: None,
    };
    let meta = again(true).meta(&before, Timestamp::UNIX_EPOCH);
    assert_eq!(meta.not_before, Some(Timestamp::UNIX_EPOCH + Duration::from_secs(5)));
    assert_eq!((meta.generation, meta.attempt, meta.parks, meta.unknowns, meta.losses), (5, 2, 2, 1, 0));
    assert_eq!(meta.waits, 0);
    let meta = again(false).meta(&before, Timestamp::UNIX_EPOCH);
    assert_eq!((meta.generation, meta.attempt, meta.parks, meta.pending), (5, 1, 3, Some(vec![1])));
    assert_eq!(meta.waits, 1);
}

#[test]
fn a_job_that_dies_twice_for_the_same_reason_says_so() {
    let bury = |reason: &str| Disposition::DeadLetter {
        reason: reason.to_owned(),
        detail: String::new(),
        pending: None,
        transport: "relay".to_owned(),
    };
    let once = bury("conflict").meta(&Meta::default(), Timestamp::UNIX_EPOCH);
    let twice = bury("conflict").meta(&once, Timestamp::UNIX_EPOCH);
    let other = bury("no-route").meta(&twice, Timestamp::UNIX_EPOCH);
    let times = |meta: &Meta| meta.rest.as_ref().map(|rest| rest.times);
    assert_eq!((times(&once), times(&twice), times(&other)), (Some(1), Some(2), Some(1)));
}

#[test]
fn a_decision_survives_the_ledger() {
    let outcome = taken(vec![one(1, Class::Transient)]);
    let (next, _) = shown(&outcome, Lane::Bulk, &Meta::default());
    let text = serde_json::to_string(&next).unwrap();
    assert_eq!(serde_json::from_str::<Disposition>(&text).unwrap(), next);
    assert!(text.len() < 1024, "{text}");
}

#[test]
fn what_no_word_explains_is_asked_once_more_before_it_is_final() {
    let unexplained = |text: &str| {
        let answer = Answer::new(Stage::RcptTo, Some(550), None, text).marked(Mark::Unexplained);
        let refusal = Refusal { class: Class::Recipient, answer, retry_after: None };
        Outcome::Refused { refusal: refusal.clone(), recipients: vec![RecipientRefusal { index: 0, refusal }] }
    };
    let (next, events) = shown(&unexplained("pink at mx1.dest.example"), Lane::Bulk, &Meta::default());
    assert!(matches!(next, Disposition::Again { counted: true, .. }), "{next:?}");
    assert_eq!(events, "deferred[]");
    let last = Some("rcpt_to: 550 pink at mx2.dest.example".to_owned());
    let again = Meta { last, attempt: 1, ..Meta::default() };
    assert_eq!(shown(&unexplained("pink at mx1.dest.example"), Lane::Bulk, &again).0, Disposition::Rejected);
    let other = Meta { last: Some("rcpt_to: 450 wait".to_owned()), ..Meta::default() };
    assert!(matches!(shown(&unexplained("pink"), Lane::Bulk, &other).0, Disposition::Again { .. }));
    let no_more = Meta { attempt: 2, ..Meta::default() };
    assert_eq!(
        shown(&unexplained("pink"), Lane::Bulk, &no_more).0,
        Disposition::Rejected,
        "no try is left to ask again"
    );
}

#[test]
fn who_was_left_for_the_next_transaction_goes_at_once_and_uses_up_no_try() {
    let rest = |index| {
        let answer = Answer::local(Stage::RcptTo, "left").marked(Mark::NotAsked);
        RecipientRefusal { index, refusal: Refusal { class: Class::Transient, answer, retry_after: None } }
    };
    let receipt = Receipt { answer: answer(250) };
    let outcome = Outcome::Accepted { receipt, refused: vec![rest(1), rest(2)] };
    let (next, events) = shown(&outcome, Lane::Bulk, &Meta::default());
    let Disposition::Again { wait, pending, counted: false, .. } = next else { panic!("{next:?}") };
    assert_eq!((wait, pending), (Duration::ZERO, Some(vec![1, 2])));
    assert_eq!(events, "accepted[To0] deferred[]");
}

#[test]
fn a_transport_that_is_not_there_uses_up_no_try_however_often() {
    let meta = Meta { attempt: 1, parks: 500, ..Meta::default() };
    let next = shown(&whole(Class::Unavailable), Lane::Bulk, &meta).0;
    assert!(matches!(next, Disposition::Again { counted: false, .. }), "{next:?}");
}

#[test]
fn an_unknown_outcome_leads_to_one_resend_and_then_to_a_person() {
    let outcome = Outcome::Unknown(answer(250));
    let first = shown(&outcome, Lane::Transactional, &Meta::default()).0;
    assert!(matches!(first, Disposition::Again { unknown: true, .. }), "{first:?}");
    let second = shown(&outcome, Lane::Transactional, &Meta { unknowns: 1, attempt: 1, ..Meta::default() }).0;
    assert!(matches!(second, Disposition::Hold { .. }), "{second:?}");
}
