//! Why a job goes which way, without sending it: the rules that were looked at, the order of the transports, and what ruled one out.

use postrider_schemas::Job;
use serde::Serialize;

use super::{
    capabilities::{Capabilities, Needs, TransportType},
    route::{OnLimit, OnUnknown, RoutePart, Routed, Routes},
};

/// A transport, as far as the explanation needs it.
#[derive(Debug, Clone, Copy)]
pub struct TransportForecast<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kind.
    pub kind: TransportType,
    /// What it can carry.
    pub capabilities: Capabilities,
}

/// How a job would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The job.
    pub job_id: String,
    /// One entry where all recipients go the same way; one for each part otherwise. Empty where no rule takes the job.
    pub parts: Vec<PartForecast>,
}

/// How some recipients would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartForecast {
    /// The recipients, as `to[0]`.
    pub recipients: Vec<String>,
    /// The same by their place in the job.
    #[serde(skip)]
    pub indices: Vec<u8>,
    /// The rule that takes them.
    pub route: String,
    /// The rules before it, and the condition that does not hold.
    pub passed: Vec<SkippedRule>,
    /// The transports in the order in which they would be tried.
    pub transports: Vec<Choice>,
    /// What follows when a limit makes the job wait.
    pub on_limit: &'static str,
    /// What follows when an attempt ends as unknown.
    pub on_unknown: &'static str,
}

/// A rule that does not take them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedRule {
    /// The rule.
    pub route: String,
    /// The first condition that does not hold.
    pub because: String,
}

/// A transport of the rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The transport.
    pub transport: String,
    /// Its kind.
    pub kind: &'static str,
    /// What of the job it cannot carry; nothing where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ruled_out: Option<String>,
}

impl PartForecast {
    /// The transport that would be asked first; nothing where none can carry the job.
    pub fn first(&self) -> Option<&str> {
        self.transports.iter().find(|one| one.ruled_out.is_none()).map(|one| one.transport.as_str())
    }
}

/// Explains.
pub fn explain(routes: &Routes, ways: &[TransportForecast<'_>], job: &Job) -> Explanation {
    let everybody = (0..u8::MAX).take(job.recipients().len()).collect();
    let parts = match routes.route(job, None) {
        Routed::One(route) => vec![RoutePart { route, recipients: everybody }],
        Routed::Parts(parts) => parts,
        Routed::Nobody => Vec::new(),
    };
    let parts = parts.into_iter().filter_map(|part| explain_part(routes, ways, job, &part)).collect();
    Explanation { job_id: job.id().to_string(), parts }
}

fn explain_part(routes: &Routes, ways: &[TransportForecast<'_>], job: &Job, part: &RoutePart) -> Option<PartForecast> {
    let route = routes.list().get(part.route)?;
    let all = job.recipients();
    let first = usize::from(*part.recipients.first()?);
    let needs = Needs::of(job);
    let named = |index: &u8| {
        let one = all[usize::from(*index)];
        let field = match one.field {
            postrider_schemas::job::RecipientField::To => "to",
            postrider_schemas::job::RecipientField::Cc => "cc",
            postrider_schemas::job::RecipientField::Bcc => "bcc",
        };
        format!("{field}[{}]", one.position)
    };
    let passed = routes.explain(job, first).into_iter().filter_map(|(n, failing)| {
        Some(SkippedRule { route: routes.list()[n].name.clone(), because: format!("{} does not hold", failing?) })
    });
    let choice = |n: usize| {
        let way = ways.get(n)?;
        let ruled_out = way.capabilities.lack(&needs).map(|lack| lack.to_string());
        Some(Choice { transport: way.name.to_owned(), kind: way.kind.as_str(), ruled_out })
    };
    Some(PartForecast {
        recipients: part.recipients.iter().map(named).collect(),
        indices: part.recipients.clone(),
        route: route.name.clone(),
        passed: passed.collect(),
        transports: route.order(job.id()).into_iter().filter_map(choice).collect(),
        on_limit: match route.on_limit {
            OnLimit::Wait => "wait",
            OnLimit::Next => "next",
            OnLimit::Expire => "expire",
        },
        on_unknown: match route.on_unknown(job) {
            OnUnknown::Hold => "hold",
            OnUnknown::Resend => "resend",
        },
    })
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};
    use proptest::prelude::*;

    use super::*;
    use crate::route::{Condition, Route, Send, When, pattern::DomainPatterns};

    #[test]
    fn every_step_of_the_choice_is_named() {
        let rule = |name: &str, conditions, send| Route {
            name: name.to_owned(),
            when: When(conditions),
            send: Send::Ordered(send),
            on_limit: OnLimit::Next,
            on_unknown: None,
        };
        let gmail = DomainPatterns::parse(["gmail.example"]).unwrap();
        let routes = Routes::new(vec![
            rule("bulk", vec![Condition::Lane(postrider_schemas::Lane::Bulk)], vec![0]),
            rule("gmail", vec![Condition::RecipientDomains(gmail)], vec![0, 1]),
            rule("rest", vec![], vec![1]),
        ]);
        let way = |name, kind, capabilities| TransportForecast { name, kind, capabilities };
        let ways = [
            way("relay", TransportType::Smtp, Capabilities::SMTP),
            way("api", TransportType::Provider("sendgrid"), Capabilities::ALL),
        ];
        let mut job = JobV1 {
            from: "a@shop.example".into(),
            to: vec!["b@gmail.example".into(), "c@other.example".into()],
            text: Some(String::new()),
            ..JobV1::default()
        };
        job.tracking.opens = true;
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        let explained = explain(&routes, &ways, &job);
        let shown: Vec<String> = explained
            .parts
            .iter()
            .map(|part| {
                let passed: Vec<String> =
                    part.passed.iter().map(|one| format!("{}: {}", one.route, one.because)).collect();
                let tried: Vec<String> = part
                    .transports
                    .iter()
                    .map(|one| format!("{} {}", one.transport, one.ruled_out.as_deref().unwrap_or("ok")))
                    .collect();
                format!("{} by {} ({}): {}", part.recipients.join(","), part.route, passed.join(", "), tried.join(", "))
            })
            .collect();
        assert_eq!(
            shown,
            [
                "to[0] by gmail (bulk: lane = bulk does not hold): relay cannot track opens, api ok",
                "to[1] by rest (bulk: lane = bulk does not hold, gmail: recipient_domains = gmail.example does not hold): api ok",
            ]
        );
        assert_eq!(explained.parts[0].first(), Some("api"));
        assert!(!serde_json::to_string(&explained).unwrap().contains('@'), "no address");
    }

    /// Transports that lack something each, and one that lacks nothing.
    fn kinds() -> Vec<(&'static str, Capabilities)> {
        let all = Capabilities::ALL;
        vec![
            ("relay", Capabilities::SMTP),
            ("no files", Capabilities { attachments: false, ..all }),
            ("no images", Capabilities { inline: false, ..all }),
            ("one tag", Capabilities { tags_max: 1, ..all }),
            ("no clicks", Capabilities { clicks: false, ..all }),
            ("all", all),
        ]
    }

    proptest! {
        /// The first transport is one that lacks nothing the job needs, and every one before it lacks something.
        #[test]
        fn a_job_never_goes_to_a_transport_whose_capabilities_it_exceeds(
            order in Just(kinds()).prop_shuffle(),
            (opens, clicks, attached, inline) in any::<(bool, bool, bool, bool)>(),
            tags in 0_usize..=10,
        ) {
            let rest = Route {
                name: "rest".to_owned(),
                when: When::default(),
                send: Send::Ordered((0..order.len()).collect()),
                on_limit: OnLimit::Wait,
                on_unknown: None,
            };
            let routes = Routes::new(vec![rest]);
            let ways: Vec<TransportForecast<'_>> = order
                .iter()
                .map(|(name, capabilities)| {
                    TransportForecast { name, kind: TransportType::Provider(name), capabilities: *capabilities }
                })
                .collect();
            let mut files = Vec::new();
            if attached {
                files.push(r#"{"filename": "a.pdf", "content_type": "application/pdf", "content": "AA=="}"#);
            }
            if inline {
                files.push(r#"{"filename": "b.png", "content_type": "image/png", "content": "AA==", "content_id": "b"}"#);
            }
            let mut job = JobV1 {
                from: "a@shop.example".into(),
                to: vec!["b@dest.example".into()],
                html: Some("<img src=\"cid:b\">".to_owned()),
                attachments: serde_json::from_str(&format!("[{}]", files.join(","))).unwrap(),
                tags: (0..tags).map(|n| format!("t{n}")).collect(),
                ..JobV1::default()
            };
            (job.tracking.opens, job.tracking.clicks) = (opens, clicks);
            let job = job.parse(&JobLimits::DEFAULT).unwrap();
            let explained = explain(&routes, &ways, &job);
            let needs = Needs::of(&job);
            let fitting = order.iter().find(|(_, capabilities)| capabilities.lack(&needs).is_none());
            let expected = fitting.map(|(name, _)| *name);
            prop_assert_eq!(explained.parts[0].first(), expected);
        }
    }
}
