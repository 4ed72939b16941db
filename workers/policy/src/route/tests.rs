use postrider_schemas::{JobLimits, JobV1, Tenant, fields::Header};
use proptest::prelude::*;

use super::{
    pattern::{DomainPatterns, TextPatterns},
    when::Range,
    *,
};

fn rule(name: &str, conditions: Vec<Condition>) -> Route {
    Route {
        name: name.to_owned(),
        when: When(conditions),
        send: Send::Ordered(vec![0]),
        on_limit: OnLimit::Wait,
        on_unknown: None,
    }
}

fn texts(list: &[&str]) -> TextPatterns {
    TextPatterns::parse(list.iter().copied()).unwrap()
}

fn domains(list: &[&str]) -> DomainPatterns {
    DomainPatterns::parse(list.iter().copied()).unwrap()
}

fn job(change: impl FnOnce(&mut JobV1)) -> Job {
    let mut job = JobV1 {
        from: "a@shop.example".into(),
        to: vec!["b@gmail.example".into()],
        text: Some("12345".to_owned()),
        ..JobV1::default()
    };
    change(&mut job);
    job.parse(&JobLimits::DEFAULT).unwrap()
}

/// Whether a rule with this condition takes this job.
#[track_caller]
fn check(condition: Condition, change: impl FnOnce(&mut JobV1), expected: bool) {
    let shown = condition.to_string();
    let routes = Routes::new(vec![rule("one", vec![condition]), rule("rest", vec![])]);
    let taken_by = routes.route(&job(change), None);
    assert_eq!(taken_by, Routed::One(usize::from(!expected)), "{shown}");
}

#[test]
fn every_condition_holds_for_what_it_names_and_for_nothing_else() {
    let shop = || Condition::Tenants(vec![Tenant::parse("shop").unwrap()]);
    check(Condition::Lane(Lane::Bulk), |job| job.lane = Lane::Bulk, true);
    check(Condition::Lane(Lane::Bulk), |_| {}, false);
    check(shop(), |job| job.tenant = Some("shop".to_owned()), true);
    check(shop(), |_| {}, false);
    let tags = || Condition::Tags(texts(&["a", "b*"]));
    check(tags(), |job| job.tags = vec!["x".to_owned(), "bc".to_owned()], true);
    check(tags(), |job| job.tags = vec!["x".to_owned()], false);
    check(tags(), |_| {}, false);
    let metadata = || Condition::Metadata("region".to_owned(), texts(&["eu"]));
    check(metadata(), |job| _ = job.metadata.insert("region".to_owned(), "eu".to_owned()), true);
    check(metadata(), |job| _ = job.metadata.insert("region".to_owned(), "us".to_owned()), false);
    check(metadata(), |_| {}, false);
    check(Condition::SenderDomains(domains(&["shop.example"])), |_| {}, true);
    check(Condition::SenderDomains(domains(&[".shop.example"])), |_| {}, false);
    check(Condition::RecipientDomains(domains(&["gmail.example"])), |_| {}, true);
    check(Condition::RecipientDomains(domains(&["yahoo.example"])), |_| {}, false);
    check(Condition::RecipientGroups(vec!["g".to_owned()], domains(&[".example"])), |_| {}, true);
    check(Condition::Attachments(false), |_| {}, true);
    check(Condition::Attachments(true), |_| {}, false);
    check(Condition::Tracking(true), |job| job.tracking.clicks = true, true);
    check(Condition::Tracking(true), |_| {}, false);
    check(Condition::Tracking(false), |_| {}, true);
    check(Condition::Bytes(Range { min: 5, max: 5 }), |_| {}, true);
    check(Condition::Bytes(Range { min: 6, max: usize::MAX }), |_| {}, false);
    check(Condition::Recipients(Range { min: 2, max: 50 }), |job| job.cc = vec!["c@d.example".into()], true);
    check(Condition::Recipients(Range { min: 2, max: 50 }), |_| {}, false);
    let not = || Condition::Not(When(vec![Condition::Lane(Lane::Bulk), Condition::Tracking(false)]));
    check(not(), |job| job.lane = Lane::Bulk, false);
    check(not(), |_| {}, true);
}

#[test]
fn a_header_is_found_whatever_its_case() {
    let header = |name: &str, value: &str| Header::parse(name, value, 998).unwrap();
    assert_eq!(header("X-Campaign", "lamps").name(), "X-Campaign");
    let condition = || Condition::Header("x-campaign".to_owned(), texts(&["lamp*"]));
    let with = |value: &'static str| {
        move |job: &mut JobV1| {
            let text = format!(r#"[{{"name": "X-Campaign", "value": "{value}"}}]"#);
            job.headers = serde_json::from_str(&text).unwrap();
        }
    };
    check(condition(), with("lamps"), true);
    check(condition(), with("beds"), false);
    check(condition(), |_| {}, false);
}

#[test]
fn the_first_rule_whose_conditions_all_hold_decides() {
    let routes = Routes::new(vec![
        rule(
            "bulk of shop",
            vec![Condition::Lane(Lane::Bulk), Condition::Tenants(vec![Tenant::parse("shop").unwrap()])],
        ),
        rule("bulk", vec![Condition::Lane(Lane::Bulk)]),
        rule("rest", vec![]),
    ]);
    let bulk = |tenant: &str| {
        job(|job| {
            job.lane = Lane::Bulk;
            job.tenant = Some(tenant.to_owned());
        })
    };
    assert_eq!(routes.route(&bulk("shop"), None), Routed::One(0));
    assert_eq!(routes.route(&bulk("b"), None), Routed::One(1));
    assert_eq!(routes.route(&job(|_| {}), None), Routed::One(2));
    let job = bulk("b");
    let why: Vec<String> = routes
        .explain(&job, 0)
        .into_iter()
        .map(|(n, failing)| format!("{n}: {}", failing.map_or("matches".to_owned(), ToString::to_string)))
        .collect();
    assert_eq!(why, ["0: tenants = shop", "1: matches"]);
    assert_eq!(Routes::default().route(&job, None), Routed::Nobody);
}

#[test]
fn recipients_that_route_differently_part_ways() {
    let routes = Routes::new(vec![
        rule("google", vec![Condition::RecipientDomains(domains(&["gmail.example"]))]),
        rule("rest", vec![]),
    ]);
    let job = job(|job| {
        job.to = vec!["a@gmail.example".into(), "b@other.example".into()];
        job.bcc = vec!["c@gmail.example".into()];
    });
    let part = |route, recipients: &[u8]| RoutePart { route, recipients: recipients.to_vec() };
    assert_eq!(routes.route(&job, None), Routed::Parts(vec![part(0, &[0, 2]), part(1, &[1])]));
    assert_eq!(routes.route(&job, Some(&[0, 2])), Routed::One(0));
    assert_eq!(routes.route(&job, Some(&[1])), Routed::One(1));
}

#[test]
fn weights_are_kept_and_a_job_never_jumps() {
    let route = Route { send: Send::Weighted(vec![(3, 70), (5, 20), (9, 10)]), ..rule("w", vec![]) };
    let mut first = std::collections::BTreeMap::<usize, u32>::new();
    for n in 0..10_000_u128 {
        let id = JobId(uuid::Uuid::from_u128(0x0190_a5c0_7a10_7c3e_9d51_0000_0000_0000 + n));
        let order = route.order(id);
        assert_eq!(order, route.order(id));
        assert_eq!(order.len(), 3);
        *first.entry(order[0]).or_default() += 1;
    }
    for (transport, share) in [(3, 7000_i64), (5, 2000), (9, 1000)] {
        let got = i64::from(first[&transport]);
        assert!((got - share).abs() < 300, "{transport}: {got}");
    }
}

#[test]
fn a_rule_that_no_job_reaches_is_recognised() {
    let when = |conditions| When(conditions);
    let bulk = || Condition::Lane(Lane::Bulk);
    assert!(when(vec![]).covers(&when(vec![bulk()])));
    assert!(when(vec![bulk()]).covers(&when(vec![Condition::Tracking(true), bulk()])));
    assert!(!when(vec![bulk(), Condition::Tracking(true)]).covers(&when(vec![bulk()])));
    assert!(when(vec![bulk(), Condition::Lane(Lane::Transactional)]).contradiction().is_some());
    assert!(when(vec![bulk(), Condition::Not(when(vec![bulk()]))]).contradiction().is_some());
    assert!(when(vec![Condition::Not(when(vec![]))]).contradiction().is_some());
    assert!(when(vec![Condition::Bytes(Range { min: 2, max: 1 })]).contradiction().is_some());
    assert!(when(vec![Condition::Tenants(vec![])]).contradiction().is_some());
    assert!(when(vec![bulk(), Condition::Not(when(vec![Condition::Tracking(true)]))]).contradiction().is_none());
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(|bulk| Condition::Lane(if bulk { Lane::Bulk } else { Lane::Transactional })),
        any::<bool>().prop_map(Condition::Tracking),
        any::<bool>().prop_map(Condition::Attachments),
        (0_usize..4, 0_usize..5).prop_map(|(min, max)| Condition::Recipients(Range { min, max })),
        prop::sample::subsequence(vec!["gmail.example", ".example", "b.example"], 0..3)
            .prop_map(|list| Condition::RecipientDomains(domains(&list))),
        prop::sample::subsequence(vec!["a", "b*", "*"], 0..3).prop_map(|list| Condition::Tags(texts(&list))),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(|list| Condition::Not(When(list))))
}

fn any_job() -> impl Strategy<Value = Job> {
    let recipient = prop::sample::select(vec!["a@gmail.example", "b@b.example", "c@other.test", "d@gmail.example"]);
    (prop::collection::vec(recipient, 1..5), any::<(bool, bool)>(), prop::sample::subsequence(vec!["a", "bc"], 0..2))
        .prop_map(|(to, (bulk, tracked), tags)| {
            job(|job| {
                job.to = to.into_iter().map(Into::into).collect();
                job.lane = if bulk { Lane::Bulk } else { Lane::Transactional };
                job.tracking.opens = tracked;
                job.tags = tags.into_iter().map(str::to_owned).collect();
            })
        })
}

proptest! {
    /// With a catch-all, every recipient of every job has exactly one rule, the same each time, and it is the first that matches.
    #[test]
    fn routing_is_total_and_deterministic(
        rules in prop::collection::vec(prop::collection::vec(any_condition(), 1..4), 0..5),
        job in any_job(),
    ) {
        let mut list: Vec<Route> = rules.into_iter().map(|conditions| rule("r", conditions)).collect();
        list.push(rule("rest", vec![]));
        let routes = Routes::new(list);
        let answer = routes.route(&job, None);
        prop_assert_eq!(&answer, &routes.route(&job, None));
        let all = job.recipients();
        let of: Vec<usize> = match &answer {
            Routed::One(route) => vec![*route; all.len()],
            Routed::Parts(parts) => {
                let mut of = vec![usize::MAX; all.len()];
                for part in parts {
                    for index in &part.recipients {
                        prop_assert_eq!(of[usize::from(*index)], usize::MAX, "a recipient stands in two parts");
                        of[usize::from(*index)] = part.route;
                    }
                }
                of
            }
            Routed::Nobody => return Err(TestCaseError::fail("nobody")),
        };
        for (n, route) in of.into_iter().enumerate() {
            let explained = routes.explain(&job, n);
            prop_assert_eq!(explained.last().map(|(route, failing)| (*route, failing.is_none())), Some((route, true)));
        }
    }

    /// What the linter calls covered is never reached by a job.
    #[test]
    fn a_covered_rule_takes_nothing(
        wide in prop::collection::vec(any_condition(), 0..3),
        narrow in prop::collection::vec(any_condition(), 0..3),
        job in any_job(),
    ) {
        let (wide, narrow) = (When(wide), When(narrow));
        for recipient in job.recipients() {
            if narrow.first_failing(&job, &recipient).is_none() {
                prop_assert!(narrow.contradiction().is_none(), "{} cannot hold and does", narrow);
                if wide.covers(&narrow) {
                    prop_assert!(wide.first_failing(&job, &recipient).is_none(), "{} does not cover {}", wide, narrow);
                }
            }
        }
    }
}
