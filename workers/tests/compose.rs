//! What `compose` writes, read back by parsers that are not ours.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use mail_parser::{HeaderForm, HeaderValue, Message, MessageParser, MessagePart, MimeHeaders as _, PartType};
use postrider_schemas::{
    address::Mailbox,
    examples,
    fields::Header,
    job::{Attachment, Content, Job},
    limits::JobLimits,
    wire,
};
use postrider_workers::message::{ComposeError, Composed, compose};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: &str = "2026-11-23T10:57:22Z";

fn example(name: &str) -> Job {
    let (_, document) = examples::ALL.iter().find(|(other, _)| *other == name).unwrap();
    wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

/// A small job with some fields set to other values; `null` takes a field away.
fn job(fields: Value) -> Job {
    let mut document = json!({
        "id": "0190a5c0-7a10-7c3e-9d51-0000000000ff", "from": "The Shop <orders@shop.example>",
        "to": ["ada@customer.example"], "subject": "Hello", "text": "Hello\n",
    });
    for (name, value) in fields.as_object().unwrap() {
        document[name] = value.clone();
    }
    wire::decode(document.to_string().as_bytes(), None, &JobLimits::DEFAULT).unwrap()
}

fn template(subject: &str, text: &str, variables: Value) -> Job {
    job(json!({"subject": subject, "text": null, "template": {"text": text}, "variables": variables}))
}

#[track_caller]
fn composed(job: &Job) -> Composed {
    let composed = compose(job, NOW.parse().unwrap()).unwrap();
    assert_wire_form(&composed);
    composed
}

#[track_caller]
fn assert_wire_form(composed: &Composed) {
    let message = &composed.message;
    assert!(message.ends_with(b"\r\n"));
    assert!(composed.needs_smtputf8 || message.is_ascii(), "not 7-bit clean");
    assert!(!message.contains(&0));
    for line in message.split(|c| *c == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(line.len() <= 998, "a line of {} octets", line.len());
        assert!(!line.contains(&b'\r'), "a bare CR");
    }
    let bare = message.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r');
    assert!(!bare, "a bare LF");
}

fn parsed(composed: &Composed) -> Message<'_> {
    MessageParser::default().parse(&composed.message).unwrap()
}

fn addresses(list: Option<&mail_parser::Address<'_>>) -> Vec<(Option<String>, String)> {
    let both =
        |one: &mail_parser::Addr<'_>| (one.name().map(str::to_owned), one.address().unwrap_or_default().to_owned());
    list.map(|list| list.iter().map(both).collect()).unwrap_or_default()
}

fn expected(list: &[Mailbox]) -> Vec<(Option<String>, String)> {
    list.iter().map(|one| (one.name().map(str::to_owned), one.address().to_string())).collect()
}

fn one_line_end(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn text_of(part: &MessagePart<'_>) -> String {
    one_line_end(part.text_contents().unwrap())
}

/// The bodies of a kind, without the line ends at their end: a mail always ends with one.
fn bodies(mail: &Message<'_>, kind: &str) -> Vec<String> {
    let fits = |part: &&MessagePart<'_>| {
        part.content_disposition().is_none() && part.content_type().is_some_and(|t| t.subtype() == Some(kind))
    };
    mail.parts.iter().filter(fits).map(|part| text_of(part).trim_end_matches('\n').to_owned()).collect()
}

/// Compares the parsed mail with the job, field by field; subject and bodies are those after rendering.
#[track_caller]
fn assert_says(composed: &Composed, job: &Job, subject: &str, text: Option<&str>, html: Option<&str>) {
    let mail = parsed(composed);
    assert_eq!(mail.subject().unwrap_or_default(), subject);
    assert_eq!(addresses(mail.from()), expected(std::slice::from_ref(job.from())));
    assert_eq!(addresses(mail.to()), expected(job.to()));
    assert_eq!(addresses(mail.cc()), expected(job.cc()));
    assert_eq!(addresses(mail.reply_to()), expected(job.reply_to()));
    assert!(mail.bcc().is_none(), "a Bcc header");
    assert_eq!(format!("<{}>", mail.message_id().unwrap()), job.message_id());
    assert_eq!(mail.date().unwrap().to_timestamp(), NOW.parse::<Timestamp>().unwrap().as_second());
    for header in job.headers() {
        let values = mail.header_as(header.name().to_owned(), HeaderForm::Text);
        assert!(values.iter().any(|value| value.as_text() == Some(header.value())), "{}: {values:?}", header.name());
    }

    let asked = |text: Option<&str>| {
        text.map(|text| one_line_end(text).trim_end_matches('\n').to_owned()).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(bodies(&mail, "plain"), asked(text));
    assert_eq!(bodies(&mail, "html"), asked(html));

    let files: Vec<_> = mail.parts.iter().filter(|part| part.content_disposition().is_some()).collect();
    assert_eq!(files.len(), job.attachments().len());
    for asked in job.attachments() {
        let part = files.iter().find(|part| part.attachment_name() == Some(&asked.filename)).unwrap();
        assert_eq!(part.contents(), &asked.content[..]);
        let kind = part.content_type().unwrap();
        assert_eq!(format!("{}/{}", kind.ctype(), kind.subtype().unwrap()), asked.content_type);
        assert_eq!(part.content_id(), asked.content_id.as_deref());
    }
    match job.list_unsubscribe() {
        None => assert!(mail.header_raw("List-Unsubscribe").is_none()),
        Some(ways) => {
            let url = ways.url.as_ref().map(|url| format!("<{url}>"));
            let mailto = ways.mailto.as_ref().map(|address| format!("<mailto:{address}>"));
            let asked: Vec<_> = url.into_iter().chain(mailto).collect();
            let raw: Vec<_> = mail.header_raw("List-Unsubscribe").unwrap().split_whitespace().collect();
            assert_eq!(raw.join(" "), asked.join(", "));
            let post = mail.header_raw("List-Unsubscribe-Post").map(str::trim);
            assert_eq!(post, ways.one_click.then_some("List-Unsubscribe=One-Click"));
        }
    }
    let recipients: Vec<String> = job.recipients().iter().map(|one| one.address.to_string()).collect();
    assert_eq!(composed.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(), recipients);
    assert_eq!(composed.from.to_string(), job.from().address().to_string());
}

#[test]
fn every_example_reads_back_as_the_job_asked() {
    for (name, _) in examples::ALL {
        let job = example(name);
        let composed = composed(&job);
        match job.content() {
            Content::Bodies { text, html } => {
                assert_says(&composed, &job, job.subject(), text.as_deref(), html.as_deref());
            }
            Content::Raw(_) => panic!("{name} is made of parts"),
            Content::Template { .. } => assert_says(
                &composed,
                &job,
                "Order 4712 is on its way",
                Some("Hello John <J> & Co,\n\n- Lamp\n- Bulb & socket\n"),
                Some("<p>Hello John &lt;J&gt; &amp; Co,</p><ul><li>Lamp</li><li>Bulb &amp; socket</li></ul>"),
            ),
        }
    }
}

/// Says as JSON what Python's own parser reads in the mail on its standard input.
const PYTHON_READER: &str = r#"
import email, email.policy, json, sys
mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
boxes = lambda name: [[a.display_name, a.addr_spec] for h in mail.get_all(name, []) for a in h.addresses]
leaves = [p for p in mail.walk() if not p.is_multipart()]
body = lambda kind: [p.get_content().replace("\r\n", "\n").rstrip("\n") for p in leaves
                     if p.get_content_type() == kind and p.get_content_disposition() is None]
print(json.dumps({
    "from": boxes("From"), "to": boxes("To"), "cc": boxes("Cc"), "reply_to": boxes("Reply-To"), "bcc": mail["Bcc"],
    "subject": mail["Subject"], "id": mail["Message-ID"], "campaign": mail["X-Campaign"],
    "text": body("text/plain"), "html": body("text/html"),
    "files": [[p.get_filename(), p.get_content_type(), len(p.get_payload(decode=True)), p["Content-ID"]]
              for p in leaves if p.get_content_disposition()],
    "defects": [type(d).__name__ for p in mail.walk() for d in p.defects]
             + [type(d).__name__ for p in mail.walk() for h in p.values() for d in getattr(h, "defects", [])],
}))
"#;

#[test]
fn python_reads_every_example_as_the_job_asked() {
    for (name, _) in examples::ALL {
        assert_python_agrees(&example(name), name);
    }
}

#[test]
fn python_reads_awkward_names_subjects_and_files_as_the_job_asked() {
    let family = "👩‍👩‍👧‍👦 Ünïcödé, \"quoted\" \\ and <angled> ".repeat(6);
    let texts = ["Smith, J. (Sales); \"Jo\" @ \\ x", "=?utf-8?q?not_encoded?=", &family, "a.b", "O'Neil & Co"];
    for text in texts {
        // Some versions of Python put a blank between the encoded words of a long name, so names are short here.
        let name: String = text.chars().take(if text.is_ascii() { 60 } else { 9 }).collect();
        let file_name = format!("{} ü;%'.txt", name.replace('\\', "_"));
        let long = "a \"very\" long; name ".repeat(9);
        let file = |name: &str| json!({"filename": name, "content_type": "application/x-thing", "content": "AAECAw=="});
        let asked = job(json!({
            "from": {"address": "a@shop.example", "name": name},
            "to": [{"address": "b@shop.example", "name": name}, {"address": "c@shop.example", "name": name}],
            "subject": text, "text": text, "html": text, "headers": [{"name": "X-Campaign", "value": text}],
            "attachments": [file(&file_name), file(long.trim_end())],
        }));
        assert_python_agrees(&asked, text);
    }
}

#[track_caller]
fn assert_python_agrees(job: &Job, name: &str) {
    let composed = composed(job);
    let Some(seen) = python(PYTHON_READER, &composed.message) else { return };
    let boxes = |list: &[Mailbox]| {
        list.iter().map(|one| json!([one.name().unwrap_or(""), one.address().to_string()])).collect::<Vec<_>>()
    };
    let mail = parsed(&composed);
    let campaign = job.headers().iter().find(|header| header.name() == "X-Campaign").map(Header::value);
    let file = |one: &Attachment| {
        let id = one.content_id.as_ref().map(|id| format!("<{id}>"));
        json!([one.filename, one.content_type, one.content.len(), id])
    };
    let asked = json!({
        "from": boxes(std::slice::from_ref(job.from())), "to": boxes(job.to()), "cc": boxes(job.cc()),
        "reply_to": boxes(job.reply_to()), "bcc": null, "subject": mail.subject(), "id": job.message_id(),
        "campaign": campaign, "text": bodies(&mail, "plain"), "html": bodies(&mail, "html"),
        "files": job.attachments().iter().map(file).collect::<Vec<_>>(), "defects": [],
    });
    assert_eq!(seen, asked, "{name}");
}

/// Runs a script over a message; `None`, said aloud, where there is no Python.
fn python(script: &str, message: &[u8]) -> Option<Value> {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let started = Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = started else {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: python3 is not installed, its mail parser was not asked");
        }
        return None;
    };
    child.stdin.take().unwrap().write_all(message).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn attempts_differ_in_the_date_alone() {
    for (name, _) in examples::ALL {
        let job = example(name);
        let lines = |at: &str| {
            let message = compose(&job, at.parse().unwrap()).unwrap().message;
            String::from_utf8(message).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (first, second) = (lines(NOW), lines("2026-11-24T03:00:00Z"));
        assert_eq!(first.len(), second.len());
        let differing: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a != b).collect();
        assert!(differing.len() == 1 && differing[0].0.starts_with("Date: "), "{name}: {differing:?}");
    }
}

#[test]
fn a_header_name_may_stand_several_times() {
    let header = |name: &str, value: &str| json!({"name": name, "value": value});
    let headers = json!([header("X-Tag", "one"), header("X-Other", "o"), header("x-tag", "zwölf")]);
    let composed = composed(&job(json!({"headers": headers})));
    let mail = parsed(&composed);
    let values = mail.header_as("X-Tag", HeaderForm::Text);
    assert_eq!(values.iter().filter_map(HeaderValue::as_text).collect::<Vec<_>>(), ["one", "zwölf"]);
    assert_eq!(mail.header("X-Other").unwrap().as_text(), Some("o"));
}

#[test]
fn layers_follow_what_the_job_holds() {
    let outline = |fields: Value| {
        let composed = composed(&job(fields));
        let mail = parsed(&composed);
        let kind = |part: &MessagePart<'_>| part.content_type().unwrap().subtype().unwrap().to_owned();
        mail.parts.iter().map(kind).collect::<Vec<_>>().join(" ")
    };
    let png =
        |id: &str| json!([{"filename": "a.png", "content_type": "image/png", "content": "iVBORw==", "content_id": id}]);
    let html = "<img src='cid:a&amp;b%40x'>";
    assert_eq!(outline(json!({})), "plain");
    assert_eq!(outline(json!({"text": null, "html": "<p>"})), "html");
    assert_eq!(outline(json!({"html": "<p>"})), "alternative plain html");
    assert_eq!(outline(json!({"html": html, "attachments": png("a&b@x")})), "alternative plain related html png");
    assert_eq!(outline(json!({"html": html, "attachments": png("a")})), "mixed alternative plain html png");
    assert_eq!(outline(json!({"attachments": png("a&b@x")})), "mixed plain png");
}

#[test]
fn a_message_travels_as_a_message_where_it_can() {
    let with = |content: &str| {
        let file = json!({"filename": "m.eml", "content_type": "message/rfc822", "content": STANDARD.encode(content)});
        composed(&job(json!({"attachments": [file]})))
    };
    let ascii = with("Subject: inner\n\nhi\n");
    let part = parsed(&ascii).attachment(0).cloned().unwrap();
    assert!(matches!(&part.body, PartType::Message(message) if message.subject() == Some("inner")));
    let utf8 = with("Subject: ünner\n\nhi\n");
    let part = parsed(&utf8).attachment(0).cloned().unwrap();
    assert_eq!(part.content_type().unwrap().ctype(), "application");
    assert_eq!(part.contents(), "Subject: ünner\n\nhi\n".as_bytes());
}

#[test]
fn a_body_cannot_end_its_part() {
    let text = "--=_postrider-0190a5c0-7a10-7c3e-9d51-0000000000ff-alternative--\nstill here\n";
    let job = job(json!({"text": text, "html": "<p>"}));
    assert_says(&composed(&job), &job, "Hello", Some(text), Some("<p>"));
}

#[test]
fn blind_recipients_stay_out_of_the_message() {
    let composed = composed(&job(json!({"to": [], "bcc": ["secret@customer.example"]})));
    let message = String::from_utf8(composed.message).unwrap();
    assert!(!message.contains("secret") && message.contains("\r\nTo: undisclosed-recipients:;\r\n"));
    assert_eq!(composed.recipients[0].to_string(), "secret@customer.example");
}

#[test]
fn international_local_parts_ask_for_smtputf8_and_stand_as_they_are() {
    let job = job(json!({"from": "Zoë <zoë@bücher.example>", "to": ["用户@例え.jp"],
        "list_unsubscribe": {"mailto": "raus+ü@shop.example"}}));
    let composed = composed(&job);
    assert!(composed.needs_smtputf8);
    assert_eq!(composed.from.to_string(), "zoë@xn--bcher-kva.example");
    let message = String::from_utf8(composed.message).unwrap();
    assert!(message.contains("From: =?utf-8?q?Zo=C3=AB?= <zoë@xn--bcher-kva.example>\r\n"), "{message}");
    assert!(message.contains("To: 用户@xn--r8jz45g.jp\r\n"));
    assert!(message.contains("List-Unsubscribe: <mailto:raus+%C3%BC@shop.example>\r\n"));
    assert!(!self::composed(&example("international")).needs_smtputf8);
}

#[test]
fn a_variable_cannot_start_a_header() {
    for bad in ["x\r\nBcc: thief@elsewhere.example", "x\ny", "x\ry", "x\0y", "x\u{85}y"] {
        let job = template("Hi {{ name }}", "{{ name }}", json!({"name": bad}));
        assert!(matches!(compose(&job, NOW.parse().unwrap()), Err(ComposeError::Subject(_))), "{bad:?}");
    }
    let job = template("Hi {{ name }}", "x", json!({"name": "y".repeat(20_000)}));
    assert!(matches!(
        compose(&job, NOW.parse().unwrap()),
        Err(ComposeError::TooLarge { part: "subject", max: 16_384 })
    ));
}

#[test]
fn a_template_of_a_subject_may_end_in_a_line_end() {
    for source in ["{{ name }}\n", "{% if true %}{{ name }}{% endif %}\n", "{{ name }}"] {
        let job = template(source, "x", json!({"name": "A\tlamp\r\n"}));
        assert_eq!(parsed(&composed(&job)).subject(), Some("A lamp"), "{source:?}");
    }
}

#[test]
fn long_subjects_and_threads_are_folded() {
    let subject = "🎉".repeat(300);
    let ids: Vec<String> = (0..40).map(|n| format!("<{n}.{}@partner.example>", "0".repeat(40))).collect();
    let url = format!("https://shop.example/{}", "u".repeat(1500));
    let job = job(json!({"subject": subject, "headers": {"References": ids.join(" ")},
        "list_unsubscribe": {"url": url, "mailto": "mailto:u@shop.example?subject=leave%20me"}}));
    let composed = composed(&job);
    let mail = parsed(&composed);
    assert_eq!(mail.subject(), Some(subject.as_str()));
    let read: Vec<String> = mail.references().as_text_list().unwrap().iter().map(|id| format!("<{id}>")).collect();
    assert_eq!(read, ids);
    let ways: String = mail.header_raw("List-Unsubscribe").unwrap().split_whitespace().collect();
    assert_eq!(ways, format!("<{url}>,<mailto:u@shop.example?subject=leave%20me>"));
}

#[test]
fn a_header_with_an_international_address_asks_for_smtputf8_whoever_it_is() {
    for field in ["reply_to", "cc"] {
        assert!(composed(&job(json!({ field: ["zoë@dest.example"] }))).needs_smtputf8, "{field}");
    }
    assert!(composed(&job(json!({"headers": {"Disposition-Notification-To": "zoë@shop.example"}}))).needs_smtputf8);
    assert!(!composed(&job(json!({"bcc": ["zoë@dest.example"]}))).needs_smtputf8, "no header names it");
}

#[test]
fn an_invitation_stands_beside_the_bodies_and_is_a_file_as_well() {
    let text = "BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nSUMMARY:Fitting\r\nEND:VCALENDAR\r\n";
    let invitation = |content_type: &str| {
        let file = json!([{"filename": "invite.ics", "content_type": content_type, "content": STANDARD.encode(text)}]);
        let composed = composed(&job(json!({"html": "<p>Thursday?</p>", "attachments": file})));
        let mail = parsed(&composed);
        let kind = |part: &MessagePart<'_>| part.content_type().unwrap().subtype().unwrap().to_ascii_lowercase();
        for part in mail.parts.iter().filter(|part| kind(part) == "calendar") {
            assert_eq!(String::from_utf8_lossy(part.contents()).trim_end(), text.trim_end());
        }
        mail.parts.iter().map(kind).collect::<Vec<_>>().join(" ")
    };
    let beside = "mixed alternative plain html calendar calendar";
    assert_eq!(invitation("text/calendar; charset=utf-8; method=REQUEST"), beside);
    assert_eq!(invitation("Text/Calendar;METHOD=\"request\""), beside);
    assert_eq!(invitation("text/calendar; charset=utf-8"), "mixed alternative plain html calendar");
}

#[test]
fn a_whole_message_goes_out_as_it_came() {
    let (_, document) = examples::WHOLE_MESSAGE;
    let job = wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap();
    let composed = compose(&job, NOW.parse().unwrap()).unwrap();
    let given = String::from_utf8(job.raw().unwrap().as_given().to_vec()).unwrap();
    assert_eq!(String::from_utf8(composed.message).unwrap(), given.replace("Bcc: books@shop.example\r\n", ""));
    assert!(given.contains("Bcc") && !composed.needs_smtputf8, "the body alone is in 8 bits");
    assert_eq!(composed.recipients.len(), 2);
}

#[test]
fn a_whole_message_that_lacks_an_id_or_a_date_gets_them() {
    let given = "0190a5c0-7a10-7c3e-9d51-00000000000b";
    let composed = |head: &str| {
        let mime = STANDARD.encode(format!("{head}From: a@b.example\r\n\r\nt\r\n"));
        let document = json!({"id": given, "mime": mime, "envelope": {"to": ["c@d.example"]}});
        let job = wire::decode(document.to_string().as_bytes(), None, &JobLimits::DEFAULT).unwrap();
        String::from_utf8(compose(&job, NOW.parse().unwrap()).unwrap().message).unwrap()
    };
    let (id, date) = (format!("Message-ID: <{given}@b.example>\r\n"), "Date: Mon, 23 Nov 2026 10:57:22 +0000\r\n");
    let rest = "From: a@b.example\r\n\r\nt\r\n";
    assert_eq!(composed(""), format!("{id}{date}{rest}"));
    assert_eq!(composed(date), format!("{id}{date}{rest}"));
    assert_eq!(composed("message-id: <1@b.example>\r\n"), format!("{date}message-id: <1@b.example>\r\n{rest}"));
}

#[test]
fn html_escapes_what_variables_bring() {
    let sources = json!({"html": "<p>{{ x }}</p>", "text": "{{ x }}"});
    let job = job(json!({"text": null, "template": sources, "variables": {"x": "<script>&"}}));
    assert_says(&composed(&job), &job, "Hello", Some("<script>&"), Some("<p>&lt;script&gt;&amp;</p>"));
}

#[track_caller]
fn refused(text: &str, variables: &Value) -> (Option<usize>, String) {
    match compose(&template("s", text, variables.clone()), NOW.parse().unwrap()) {
        Err(ComposeError::Template { part: "text", line, reason }) => (line, reason),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn a_missing_variable_is_named_and_no_value_is_shown() {
    let variables = &json!({"order": {"number": "SECRET"}, "name": "SECRET"});
    let missing = |name: &str| format!("missing from the variables: {name}");
    assert_eq!(refused("a\n{{ nobody }}", variables), (Some(2), missing("`nobody`")));
    assert_eq!(refused("{{ range(2) }}{{ order.price }}", variables), (Some(1), missing("`order.price`")));
    assert_eq!(refused("{% if nobody %}{% endif %}", variables).1, missing("`nobody`"));
    for text in
        ["{{ name + 1 }}", "{{ name|int }}", "{% for x in 5 %}{% endfor %}", "{{ name.x.y }}", "{% include name %}"]
    {
        let (_, reason) = refused(text, variables);
        assert!(!reason.contains("SECRET"), "{reason}");
    }
    assert!(refused("a\nb {{ name ", variables).1.starts_with("syntax error: "));
    assert!(refused("{{ name|nofilter }}", variables).1.contains("nofilter"));
}

#[test]
fn an_endless_template_is_stopped() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    for source in [endless, "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"] {
        let result = compose(&template("s", source, json!({"x": 1})), NOW.parse().unwrap());
        assert!(matches!(result, Err(ComposeError::Limit { part: Some("text"), .. })), "{source}");
    }
    let job = template("s", "{% for a in range(99) %}{{ x }}{% endfor %}", json!({"x": "y".repeat(200_000)}));
    assert!(matches!(compose(&job, NOW.parse().unwrap()), Err(ComposeError::TooLarge { part: "text", .. })));
}

#[test]
fn long_texts_of_short_lines_take_time_in_proportion() {
    let job = job(json!({"text": "a\n".repeat(2_000_000)}));
    let started = std::time::Instant::now();
    let composed = compose(&job, NOW.parse().unwrap()).unwrap();
    // Lettre's own conversion of line ends moves the rest of the text for each of them: minutes.
    assert!(started.elapsed().as_secs() < 20 && composed.message.len() > 6_000_000);
}

fn one_line() -> impl Strategy<Value = String> {
    "\\PC{0,120}".prop_map(|text| text.chars().filter(|c| !c.is_control()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_reads_back_as_it_was(
        subject in one_line(), name in one_line(), other in "[ -~]{0,80}", header in one_line(),
        text in any::<String>(), html in "[a-zé= \t\r\n.]{0,2000}",
    ) {
        let free = format!("x{header}x");
        let job = job(json!({
            "subject": subject, "text": text, "html": html,
            "from": {"address": "a@shop.example", "name": name},
            "to": [{"address": "b@shop.example", "name": other}, "c@shop.example"],
            "headers": [{"name": "X-Free", "value": free}],
        }));
        let composed = compose(&job, NOW.parse().unwrap()).unwrap();
        assert_wire_form(&composed);
        let mail = parsed(&composed);
        prop_assert_eq!(mail.subject().unwrap_or_default(), &subject);
        prop_assert_eq!(addresses(mail.from()), expected(std::slice::from_ref(job.from())));
        prop_assert_eq!(addresses(mail.to()), expected(job.to()));
        let values = mail.header_as("X-Free", HeaderForm::Text);
        prop_assert_eq!(values[0].as_text(), Some(free.as_str()));
        prop_assert_eq!(text_of(&mail.parts[1]), one_line_end(&text));
        prop_assert_eq!(text_of(&mail.parts[2]), one_line_end(&html));
    }

    #[test]
    fn any_file_name_reads_back_as_it_was(name in prop_oneof!["[^/\\\\\\pC]{1,60}", "[ -.0-\\[\\]-~]{1,250}"]) {
        let file = json!({"filename": name, "content_type": "text/csv; header=present", "content": "AAECAw=="});
        let job = job(json!({"attachments": [file]}));
        let composed = compose(&job, NOW.parse().unwrap()).unwrap();
        assert_wire_form(&composed);
        let mail = parsed(&composed);
        prop_assert_eq!(mail.attachment(0).unwrap().attachment_name(), Some(name.as_str()));
        prop_assert_eq!(mail.attachment(0).unwrap().contents(), &[0, 1, 2, 3]);
    }
}
