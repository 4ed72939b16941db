use postrider_schemas::address::Domain;

use super::*;
use crate::{
    config::load_text,
    policy::{
        classify::{Classification, DataPhase, SmtpEvent, classify},
        mailbox_provider::MxHosts,
        outcome::{Answer, Class, EnhancedCode, Refusal, Stage},
        rate_limit::shaping_rule,
        route::Condition,
    },
};

const RELAY: &str = "[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\n";
const ROUTE: &str = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

fn limits(more: &str) -> Result<LimitsConfig, String> {
    load_text(&format!("{RELAY}{more}\n{ROUTE}")).map(|config| config.limits).map_err(|error| error.to_string())
}

#[track_caller]
fn check_refused(more: &str, expected: &[&str]) {
    let error = limits(more).expect_err("must be refused");
    for part in expected {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

#[test]
fn rates_stand_where_people_look_for_them() {
    let limits = limits(
        "rate = [\"100/s\", \"1_000_000/d burst 10_000\"]\nsender_rate = \"10/s\"\nconnections_total = 50\n[limits]\ntenant_rate = \"50/s\"\n\
         [limits.tenants.shop]\nrate = \"20/s\"\nweight = 2\n[limits.tenants.news]\nweight = 0.5\n\
         [[throttle]]\nname = \"google\"\nrate = \"20/s\"\n\
         [[throttle]]\nname = \"partner\"\ndomains = [\"partner.example\", \"*.partner.example\"]\nrate = [\"5/s\", \"1000/h\"]\n\
         [[throttle]]\nname = \"rest\"\nrate = \"10/s\"\n",
    )
    .unwrap();
    let shown = |rates: &[Rate]| rates.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(shown(&limits.transports[0].rates), "100/s 1000000/d burst 10000");
    assert_eq!(shown(&limits.transports[0].sender_rates), "10/s");
    assert_eq!(limits.transports[0].connections_total, Some(50));
    assert_eq!((shown(&limits.tenant_rates).as_str(), limits.tenants["news"].rates.clone()), ("50/s", None));
    assert_eq!(limits.tenants["shop"], TenantLimits { rates: Some(vec!["20/s".parse().unwrap()]), weight: 2.0 });
    assert_eq!(shown(&limits.group_rates["google"]), "20/s");
    assert_eq!(shown(&limits.other_rates), "10/s");
    let group = |domain: &str| limits.groups.find(domain, MxHosts::Unknown).map(|group| group.name.as_str());
    assert_eq!(
        [group("gmail.com"), group("eu.partner.example"), group("x.example")],
        [Some("google"), Some("partner"), None]
    );
}

#[test]
fn a_throttle_may_be_for_one_transport() {
    let other = "[transport.other]\nkind = \"smtp\"\nhost = \"other.example.com\"\n";
    let with = |more: &str| {
        let text = format!(
            "{RELAY}{other}[[throttle]]\nname = \"google\"\nrate = \"20/s\"\n{more}\n[[route]]\nname = \"all\"\nsend = [\"relay\", \"other\"]\n"
        );
        load_text(&text).map(|config| config.limits).map_err(|error| error.to_string())
    };
    let warm_up = "[[throttle]]\nname = \"google\"\ntransport = \"other\"\nrate = \"50/h\"\n[[throttle]]\nname = \"others\"\ntransport = \"other\"\nrate = \"9/h\"\n";
    let found = with(warm_up).unwrap();
    let shown = |transport: &str, group: &str| {
        found.rates_of(transport, group).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!([shown("relay", "google"), shown("other", "google")], ["20/s", "50/h"]);
    assert_eq!([shown("relay", "x.example"), shown("other", "x.example")], ["", "9/h"]);
    let twice = warm_up.repeat(2);
    for (wrong, reason) in [
        ("[[throttle]]\nname = \"google\"\ntransport = \"rely\"\nrate = \"1/s\"\n", "there is no transport `rely`"),
        ("[[throttle]]\nname = \"google\"\ntransport = \"other\"\n", "has no rate"),
        ("[[throttle]]\nname = \"gogle\"\ntransport = \"other\"\nrate = \"1/s\"\n", "no known group"),
        (twice.as_str(), "there are two"),
    ] {
        let error = with(wrong).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_throttle_may_replace_the_lists_of_a_group_or_use_those_of_routes() {
    let limits = limits(
        "[groups]\nfriends = [\"friend.example\", \"*.friend.example\"]\n[[throttle]]\nname = \"google\"\ndomains = [\"gmail.com\"]\n\
         [[throttle]]\nname = \"friends\"\nrate = \"1/s\"\n",
    )
    .unwrap();
    let group = |domain: &str| limits.groups.find(domain, MxHosts::Unknown).map(|group| group.name.as_str());
    assert_eq!([group("gmail.com"), group("googlemail.com")], [Some("google"), None]);
    assert_eq!([group("friend.example"), group("a.friend.example")], [Some("friends"), Some("friends")]);
}

#[test]
fn a_list_without_a_throttle_is_for_routes_alone_unless_it_replaces_one_that_ships() {
    let list = "[groups]\nuniversities = [\".edu\", \"*.ac.uk\"]\ngoogle = [\"corp.example\"]\nours = [\"gmx.de\", \"free.fr\"]\n\
                [[throttle]]\nname = \"gmx\"\nrate = \"1/s\"\n";
    let route = "[[route]]\nname = \"some\"\nwhen = { recipient_groups = [\"universities\", \"google\"] }\nsend = [\"relay\"]\n";
    let config = load_text(&format!("{RELAY}{list}{route}{ROUTE}")).unwrap();
    let shown = config.routes.list()[0].when.to_string();
    assert_eq!(shown, "recipient_groups = universities, google");
    let Condition::RecipientGroups(_, members) = &config.routes.list()[0].when.0[0] else { panic!("{shown}") };
    let takes = |domain: &str| members.matches(&Domain::parse(domain).unwrap());
    assert_eq!(["mit.edu", "a.ac.uk", "corp.example", "gmail.com"].map(takes), [true, true, true, false]);
    let groups = &config.limits.groups;
    let group = |domain: &str| groups.find(domain, MxHosts::Unknown).map(|group| group.name.as_str());
    let found = ["mit.edu", "corp.example", "gmail.com", "gmx.de"].map(group);
    assert_eq!(found, [None, Some("google"), None, Some("gmx")], "a list of routes takes nothing from limits");
    let at_google = ["aspmx.l.google.com".to_owned()];
    let by_exchangers = groups.find("mit.edu", MxHosts::Names(&at_google)).map(|group| group.name.as_str());
    assert_eq!(by_exchangers, None, "the list that replaces google has no exchangers");
    let lists: Vec<&str> = config.limits.lists.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(lists, ["ours", "universities"]);
    check_refused("[groups]\nu = [\"@@\"]\n", &["groups.u", "`@@` is no domain"]);
    check_refused("[groups]\nu = []\n", &["groups.u", "lists no domain"]);
    check_refused("[groups]\n\" \" = [\"a.example\"]\n", &["groups. ", "the name is empty"]);
}

#[test]
fn domains_of_groups_are_read_as_addresses_have_them() {
    let limits = limits(
        "[groups]\nbooks = [\"B\u{fc}cher.example\", \".m\u{fc}ller.example\", \".\u{440}\u{444}\"]\n\
         [[throttle]]\nname = \"books\"\n[[throttle]]\nname = \"a\"\ndomains = [\"stra\u{df}e.example.\"]\nmx = [\".Google.com\", \"mx_1.a.example\", \".com\"]\n",
    )
    .unwrap();
    let group = |domain: &str| limits.groups.find(domain, MxHosts::Unknown).map(|group| group.name.as_str());
    let found = ["xn--bcher-kva.example", "a.xn--mller-kva.example", "a.xn--p1ai"].map(group);
    assert_eq!((found, group("xn--strae-oqa.example")), ([Some("books"); 3], Some("a")));
    let mx = limits.groups.0.iter().find(|one| one.name == "a").map(|one| one.mx.clone());
    assert_eq!(mx.unwrap(), [".google.com", "mx_1.a.example", ".com"]);
    for wrong in ["a..b", "..b", "*a.example", "*", ".", "a_b.example", "a.example..", ""] {
        let text = format!("[[throttle]]\nname = \"a\"\ndomains = [\"{wrong}\"]\n");
        check_refused(&text, &["throttle `a`", "is no domain and no end of one"]);
    }
    check_refused("[[throttle]]\nname = \"a\"\nmx = [\"a..b\"]\n", &["throttle `a`", "`a..b` is no domain"]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    check_refused("rate = \"fast\"\n", &["transport.relay.rate", "20/s"]);
    check_refused("rate = [\"20/s\", \"5/s\"]\n", &["transport.relay.rate", "two rates per s"]);
    check_refused("connections_total = 0\n", &["connections_total"]);
    check_refused("rat = \"20/s\"\n", &["unknown", "transport.relay.rat"]);
    check_refused("[limits.tenants.\"A B\"]\n", &["limits.tenants.A B"]);
    check_refused(
        "[[throttle]]\nname = \"a\"\nrate = \"1/s\"\n[[throttle]]\nname = \"b\"\nrate = \"2/s\"\n",
        &["throttle `b`", "already"],
    );
    check_refused("[[throttle]]\nname = \"a\"\n", &["throttle `a`", "neither"]);
    check_refused("[[throttle]]\nname = \"a\"\ndomains = [\"x y\"]\n", &["`x y` is no domain"]);
    check_refused(
        "[[shaping_rule]]\nname = \"a\"\nmatch = { transports = [\"other\"] }\n",
        &["shaping rule `a`", "`other`"],
    );
    check_refused("[[shaping_rule]]\nname = \"a\"\nmatch = { codes = [\"4\"] }\n", &["421 or 45x"]);
    check_refused("[[shaping_rule]]\nname = \"a\"\ntrigger = \"3\"\n", &["3/10m"]);
    check_refused(
        "[[shaping_rule]]\nname = \"a\"\nretry_after = \"decides\"\n",
        &["shaping rule `a`", "needs a `pause`"],
    );
    check_refused(
        "[[shaping_rule]]\nname = \"a\"\npause = \"1m\"\nretry_after = \"first\"\n",
        &["retry_after", "`first` is neither `longer` nor `decides`"],
    );
    check_refused("[dns]\nservers = \"resolver\"\n", &["dns.servers", "127.0.0.1:53"]);
    check_refused("rate = \"5000000000/s\"\n", &["transport.relay.rate", "the largest 4294967295"]);
    check_refused("[[throttle]]\nname = \" \"\nrate = \"1/s\"\n", &["throttle ` `", "the name is empty"]);
    check_refused("[[throttle]]\nrate = \"1/s\"\n", &["`throttle[0]`", "`name` is missing"]);
    check_refused("connections_total = -1\n", &["transport.relay.connections_total"]);
    let api = "[transport.api]\nkind = \"resend\"\napi_key = \"x\"\nconnections_total = 5\n";
    check_refused(api, &["transport.api.connections_total", "is for SMTP relays"]);
}

#[test]
fn a_reaction_that_can_never_be_meant_is_refused() {
    let one = |more: &str| format!("[[shaping_rule]]\nname = \"a\"\n{more}\n");
    let check = |more: &str, expected: &[&str]| check_refused(&one(more), expected);
    check("match = { groups = [\"gogle\"] }", &["shaping rule `a`: match.groups", "`gogle` is neither", "google"]);
    check("match = { groups = [\"gmail.com\"] }", &["`gmail.com` belongs to the group `google`"]);
    check("match = { groups = [\".edu\"] }", &["`.edu` is neither"]);
    check("trigger = \"3/0s\"", &["shaping rule `a`", "at least 1s"]);
    check("match = { enhanced = [\"a.b.c\"] }", &["4.7.28 or 4.7.x"]);
    check("match = { enhanced = [\"4..1\"] }", &["4.7.28 or 4.7.x"]);
    check("match = { text = [\"busy\", \"\"] }", &["shaping rule `a`", "matches every answer"]);
    check("match = { text = [\"*\"] }", &["shaping rule `a`", "matches every answer"]);
    check_refused("[[shaping_rule]]\nname = \"\"\n", &["shaping rule ``", "the name is empty"]);
    let limits = limits(&format!(
        "[groups]\nedu = [\".edu\"]\n[[throttle]]\nname = \"edu\"\n{}",
        one("match = { groups = [\"edu\", \"google\", \"B\u{fc}cher.example\"] }")
    ));
    assert_eq!(limits.unwrap().shaping_rules[0].on.groups, ["edu", "google", "xn--bcher-kva.example"]);
}

#[test]
fn a_word_that_is_none_is_told_those_that_there_are() {
    let shaping_rule = |more: &str| format!("[[shaping_rule]]\nname = \"a\"\n{more}\n");
    check_refused(
        &shaping_rule("target = \"all\""),
        &["shaping_rule[0].target", "`all`", "`stage`, `group`, `transport`"],
    );
    check_refused(
        &shaping_rule("match = { classes = [\"spam\"] }"),
        &["shaping_rule[0].match.classes", "`spam`", "`throttled`"],
    );
    check_refused("tls = \"yes\"\n", &["transport.relay.tls", "`yes`", "`none`, `starttls`, `implicit`"]);
    check_refused("mechanism = \"cram\"\n", &["transport.relay.mechanism", "`cram`", "`xoauth2`"]);
    let route = "[[route]]\nname = \"a\"\nsend = [\"relay\"]\n";
    check_refused(
        &format!("{route}on_limit = \"stop\"\n"),
        &["route[0].on_limit", "`stop`", "`wait`, `next`, `expire`"],
    );
    check_refused(&format!("{route}on_unknown = \"stop\"\n"), &["route[0].on_unknown", "`hold` or `resend`"]);
    check_refused(
        &format!("{route}when = {{ lane = \"slow\" }}\n"),
        &["route[0].when.lane", "`transactional` or `bulk`"],
    );
    check_refused("[queue]\ntopology = \"make\"\n", &["queue.topology", "`apply` or `verify`"]);
    check_refused("[log]\nformat = \"xml\"\n", &["log.format", "`json`, `pretty`, `auto`"]);
    assert!(limits("tls = \"STARTTLS\"\n").is_ok(), "in any case");
}

#[test]
fn a_transport_has_a_name_that_its_scopes_can_hold() {
    for name in ["a:b", "", "a b", "a\\tb", " "] {
        check_refused(
            &format!("[transport.\"{name}\"]\nkind = \"smtp\"\nhost = \"b\"\n"),
            &["transport.", "without colons, blanks and control characters"],
        );
    }
}

#[test]
fn a_reaction_of_the_configuration_stands_first_and_replaces_its_namesake() {
    let limits = limits("[[shaping_rule]]\nname = \"rate\"\nmatch = { text = [\"never\"] }\n").unwrap();
    assert_eq!(limits.shaping_rules[0].name, "rate");
    assert_eq!(limits.shaping_rules.iter().filter(|one| one.name == "rate").count(), 1);
}

/// For how long the set that ships pauses a transport after an answer of a Web API that asks for this wait, in seconds.
#[track_caller]
fn check_pause(class: Class, asks_for: Option<u64>, expected: (&str, f64)) {
    let limits = limits("").unwrap();
    let answer = Answer::new(Stage::Call, Some(429), None, "no more for the moment");
    let refusal = Refusal { class, answer, retry_after: asks_for.map(Duration::from_secs) };
    let found = shaping_rule::find(&limits.shaping_rules, "relay", "google", &refusal).unwrap();
    assert_eq!((found.name.as_str(), found.call(&refusal, None).pause_us / 1e6), expected);
}

#[test]
fn a_used_up_quota_that_says_until_when_is_believed_and_patience_lasts_at_least_as_long_as_its_rule_says() {
    check_pause(Class::Quota, None, ("quota", 3600.0));
    check_pause(Class::Quota, Some(60), ("quota", 60.0));
    check_pause(Class::Quota, Some(36_000), ("quota", 36_000.0));
    check_pause(Class::Throttled, None, ("patience", 10.0));
    check_pause(Class::Throttled, Some(1), ("patience", 10.0));
    check_pause(Class::Throttled, Some(60), ("patience", 60.0));
}

/// What an answer of a Web API leads to: the rule.
#[track_caller]
fn check_call(status: u16, class: Class, text: &str, expected: &str) {
    let limits = limits("").unwrap();
    let refusal = Refusal { class, answer: Answer::new(Stage::Call, Some(status), None, text), retry_after: None };
    let found = shaping_rule::find(&limits.shaping_rules, "api", "google", &refusal);
    let acting = found.filter(|one| one.acts(&refusal)).map(|one| one.name.as_str());
    assert_eq!(acting, Some(expected), "{status} {text}: {found:?}");
}

#[test]
fn what_a_web_api_says_of_a_quota_is_about_the_account_not_about_one_mailbox() {
    check_call(429, Class::Quota, "You are over quota for today", "quota");
    check_call(402, Class::Quota, "Quota exceeded for this plan", "quota");
    check_call(403, Class::Quota, "Your account is over quota", "quota");
    check_call(420, Class::Quota, "Domain is over quota", "quota");
    check_call(429, Class::Throttled, "Quota exceeded for requests per minute", "patience");
    check_call(400, Class::Throttled, "You are over quota, try later", "patience");
}

/// What an answer of a large provider at `stage` leads to: the rule and whether the transport or the group is slowed down.
#[track_caller]
fn check(stage: Stage, reply: &str, expected: &str) {
    let limits = limits("").unwrap();
    let (code, text) = reply.split_at(3);
    let text = text.trim_start_matches([' ', '-']);
    let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
    let parts: Vec<u16> = first.split('.').filter_map(|part| part.parse().ok()).collect();
    let (enhanced, text) = match parts.as_slice() {
        [class, subject, detail] if first.split('.').count() == 3 => {
            (Some(EnhancedCode(u8::try_from(*class).unwrap(), *subject, *detail)), rest)
        }
        _ => (None, text),
    };
    let code = code.parse().unwrap();
    let class = match classify(
        &crate::config::shipped_answers(),
        stage,
        SmtpEvent::Reply { code, enhanced, text },
        DataPhase::No,
    ) {
        Classification::Refused(class, _) => class,
        Classification::Unknown => panic!("{reply}"),
    };
    let refusal = Refusal { class, answer: Answer::new(stage, Some(code), enhanced, text), retry_after: None };
    let found = shaping_rule::find(&limits.shaping_rules, "relay", "google", &refusal);
    let shown = match found {
        Some(one) if one.acts(&refusal) => {
            let whose = if one.target.is_transport(stage) { "transport" } else { "group" };
            format!("{}: {whose}", one.name)
        }
        Some(one) => format!("{}: nothing", one.name),
        None => "none".to_owned(),
    };
    assert_eq!(shown, expected, "{reply}");
}

#[test]
fn google() {
    let unusual = "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited.";
    check(Stage::Body, unusual, "rate: group");
    check(
        Stage::RcptTo,
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly. Please resend your message at a later time.",
        "one mailbox: nothing",
    );
    check(
        Stage::RcptTo,
        "452 4.2.2 The email account that you tried to reach is over quota and inactive.",
        "one mailbox: nothing",
    );
    check(
        Stage::RcptTo,
        "450 The user is receiving mail at a rate that prevents it",
        "one mailbox by its text: nothing",
    );
    check(Stage::RcptTo, "452 Mailbox is full", "one mailbox by its text: nothing");
    check(Stage::RcptTo, "421 Quota exceeded for user", "one mailbox by its text: nothing");
    check(Stage::MailFrom, "421 4.7.0 Try again later, closing connection.", "patience: transport");
    check(Stage::Body, "550 5.4.5 Daily user sending limit exceeded.", "quota: transport");
    check(Stage::RcptTo, "550 5.1.1 The email account that you tried to reach does not exist.", "none");
    check(Stage::Body, "421 4.3.0 Temporary System Problem. Try again later.", "421: group");
}

#[test]
fn microsoft() {
    check(Stage::RcptTo, "451 4.7.500 Server busy. Please try again later from [192.0.2.1].", "rate: group");
    check(
        Stage::RcptTo,
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.",
        "rate: group",
    );
    check(
        Stage::Connect,
        "421 RP-001 (BAY004-MC1F1) Unfortunately, some messages from 192.0.2.1 weren't sent. Please try again. We have limits for how many messages can be sent per hour and per day.",
        "rate: transport",
    );
    check(Stage::MailFrom, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", "connections: transport");
    check(
        Stage::MailFrom,
        "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.",
        "connections: transport",
    );
    check(
        Stage::RcptTo,
        "452 4.5.3 Recipients belong to multiple regions ATTR38",
        "too many recipients of one message: nothing",
    );
}

#[test]
fn yahoo() {
    check(
        Stage::MailFrom,
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
        "volume: group",
    );
    check(
        Stage::Connect,
        "421 4.7.0 [TS01] Messages from 192.0.2.1 temporarily deferred due to user complaints - 4.16.55.1",
        "volume: group",
    );
    check(
        Stage::MailFrom,
        "421 Max message per connection reached, closing transmission channel",
        "connection used up: nothing",
    );
}

#[test]
fn others() {
    check(
        Stage::Connect,
        "421 4.1.0 192.0.2.1 Throttled - try again later. Please see http://postmaster.comcast.net/smtp-error-codes.php#RL000010",
        "rate: transport",
    );
    check(
        Stage::Connect,
        "421 mwinf5c77 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]",
        "rate: transport",
    );
    check(Stage::Connect, "550 Connection frequency limited", "rate: transport");
    check(
        Stage::Connect,
        "421 Too many concurrent SMTP connections from this IP address; please try again later",
        "connections: transport",
    );
}

#[test]
fn relays_and_their_filters() {
    check(Stage::MailFrom, "450 4.7.1 Error: too much mail from 127.0.0.1", "rate: transport");
    check(
        Stage::Connect,
        "421 4.7.0 mail.example.org Error: too many connections from 127.0.0.1",
        "connections: transport",
    );
    check(
        Stage::RcptTo,
        "450 4.2.0 Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/x.html",
        "greylisting: nothing",
    );
    check(Stage::RcptTo, "451 4.7.1 Greylisting in action, please come back later", "greylisting: nothing");
    check(Stage::Body, "454 Throttling failure: Maximum sending rate exceeded.", "patience: group");
    check(Stage::Body, "454 Throttling failure: Daily message quota exceeded.", "quota: transport");
    check(Stage::MailFrom, "451 4.3.0 queue file write error", "none");
    check(Stage::MailFrom, "452 4.3.1 Insufficient system storage", "none");
}
