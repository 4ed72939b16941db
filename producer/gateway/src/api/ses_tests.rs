use bytes::Bytes;
use http::HeaderMap;
use postrider_schemas::{JobId, JobLimits};

use super::*;

fn document() -> Value {
    json!({
        "FromEmailAddress": "Shop <a@shop.example>",
        "Destination": {"ToAddresses": ["c@d.example"], "BccAddresses": ["e@d.example"]},
        "ReplyToAddresses": ["help@shop.example"],
        "Content": {"Simple": {
            "Subject": {"Data": "s", "Charset": "UTF-8"},
            "Body": {"Text": {"Data": "t"}, "Html": {"Data": "<p>h</p>"}},
            "Headers": [{"Name": "X-Order", "Value": "1"}],
            "Attachments": [
                {"FileName": "a.png", "RawContent": "aGk=", "ContentDisposition": "INLINE", "ContentId": "a"},
            ],
        }},
        "EmailTags": [{"Name": "order", "Value": "1"}],
        "ConfigurationSetName": "main",
        "ConfigurationOverrides": {"Tracking": {"OpenTrackingEnabled": "ENABLED"}},
    })
}

fn ask(operation: Operation, document: &Value) -> Result<Submission, Problem> {
    let mut headers = HeaderMap::new();
    headers.insert(INVOCATION, "7d1f".parse().unwrap());
    let request = Request {
        operation,
        parameters: &[],
        query: "",
        headers: &headers,
        body: &Bytes::from(document.to_string()),
        now: "2026-12-01T10:00:00Z".parse().unwrap(),
        limits: &JobLimits::DEFAULT,
    };
    match read(&request)? {
        Call::Send(submission) => Ok(submission),
        _ => panic!("nothing is to be sent"),
    }
}

fn one(document: &Value) -> Result<JobV1, Problem> {
    ask(Operation::SesSend, document)?.jobs.remove(0).map(|draft| draft.job)
}

#[test]
fn every_field_of_a_mail_reaches_the_job_and_a_call_is_its_own_key() {
    let submission = ask(Operation::SesSend, &document()).ok().unwrap();
    assert_eq!(submission.key.as_deref(), Some("aws:7d1f"));
    let job = one(&document()).ok().unwrap().parse(&JobLimits::DEFAULT).unwrap();
    assert_eq!((job.to().len(), job.bcc().len(), job.reply_to().len(), job.metadata().len()), (1, 1, 1, 2));
    assert_eq!(job.attachments()[0].content_id.as_deref(), Some("a"));
    assert!(job.tracking().opens && !job.tracking().clicks);
}

#[test]
fn a_whole_message_is_taken_as_it_is() {
    // From a@shop.example, To c@d.example.
    let data = "RnJvbTogYUBzaG9wLmV4YW1wbGUNClRvOiBjQGQuZXhhbXBsZQ0KU3ViamVjdDogcw0KDQp0DQo=";
    let mut whole = json!({"Content": {"Raw": {"Data": data}}, "EmailTags": [{"Name": "order", "Value": "1"}]});
    let job = one(&whole).ok().unwrap().parse(&JobLimits::DEFAULT).unwrap();
    assert_eq!((job.recipients().len(), job.metadata().len()), (1, 1));
    whole["FromEmailAddress"] = json!("Bounces <b@shop.example>");
    whole["Destination"] = json!({"ToAddresses": ["x@d.example"], "BccAddresses": ["y@d.example"]});
    let job = one(&whole).ok().unwrap().parse(&JobLimits::DEFAULT).unwrap();
    assert_eq!((job.recipients().len(), job.sender().unwrap().to_string().as_str()), (2, "b@shop.example"));
    // The client of Node's nodemailer asks so whether it can send.
    whole["FromEmailAddress"] = json!("invalid@invalid");
    whole["Destination"] = json!({"ToAddresses": ["invalid@invalid"]});
    assert_eq!(one(&whole).err().unwrap().kind, Kind::Invalid);
    whole["FromEmailAddress"] = Value::Null;
    whole["Content"]["Raw"]["Data"] = json!("%%%");
    whole.as_object_mut().unwrap().remove("Destination");
    assert_eq!(one(&whole).err().unwrap().kind, Kind::Invalid);
}

#[test]
fn a_template_with_its_sources_is_ours_where_it_holds_plain_names() {
    let content = |text: &str| json!({"TemplateContent": {"Subject": "Hello {{name}}", "Text": text}, "TemplateData": "{\"name\": \"Ada\"}"});
    let with = |template: Value| {
        let mut document = document();
        document["Content"] = json!({ "Template": template });
        one(&document)
    };
    let job = with(content("Dear {{ name }}")).ok().unwrap();
    assert_eq!((job.subject.as_str(), job.variables["name"].as_str()), ("Hello {{name}}", Some("Ada")));
    job.parse(&JobLimits::DEFAULT).unwrap();
    let wrong = |template: Value| with(template).err().unwrap().fields[0].pointer.clone();
    assert_eq!(wrong(content("{{#each items}}{{this}}{{/each}}")), "/Content/Template/TemplateContent/Text");
    assert_eq!(wrong(content("{{{name}}}")), "/Content/Template/TemplateContent/Text");
    assert_eq!(wrong(json!({"TemplateName": "welcome"})), "/Content/Template/TemplateName");
    let mut no_object = content("x");
    no_object["TemplateData"] = json!("[1]");
    assert_eq!(wrong(no_object), "/Content/Template/TemplateData");
}

#[test]
fn a_bulk_request_has_a_job_and_a_result_for_each_entry() {
    let entry = |to: &str, name: &str| {
        json!({"Destination": {"ToAddresses": [to]}, "ReplacementTags": [{"Name": "n", "Value": name}],
            "ReplacementEmailContent": {"ReplacementTemplate": {"ReplacementTemplateData": format!("{{\"name\": \"{name}\"}}")}}})
    };
    let document = json!({
        "FromEmailAddress": "a@shop.example",
        "DefaultEmailTags": [{"Name": "order", "Value": "1"}],
        "DefaultContent": {"Template": {
            "TemplateContent": {"Subject": "{{name}} {{shop}}", "Html": "<p>{{name}}</p>"},
            "TemplateData": "{\"name\": \"you\", \"shop\": \"S\"}",
        }},
        "BulkEmailEntries": [entry("c@d.example", "Ada"), {"Destination": 7}, entry("e@d.example", "Bob")],
    });
    let submission = ask(Operation::SesBulk, &document).ok().unwrap();
    assert!(!submission.is_atomic);
    let jobs: Vec<_> = submission.jobs.iter().map(|job| job.as_ref().ok().map(|draft| &draft.job)).collect();
    assert_eq!(jobs.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    let last = jobs[2].unwrap();
    assert_eq!(
        (&last.variables["name"], &last.variables["shop"], last.metadata.len()),
        (&json!("Bob"), &json!("S"), 2)
    );
    let problem = || Problem::new(Kind::Invalid, "wrong");
    let answer = bulk_sent(&vec![Ok(JobId::generate()), Err(problem())]);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let statuses: Vec<_> = (0..2).map(|n| body["BulkEmailEntryResults"][n]["Status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["SUCCESS", "INVALID_PARAMETER"]);
    let away = || Problem::new(Kind::Unavailable, "away");
    assert_eq!(bulk_sent(&vec![Err(away()), Err(away())]).status.as_u16(), 503);
}

#[test]
fn what_has_no_counterpart_is_refused_by_name() {
    for (name, value) in [
        ("ListManagementOptions", json!({"ContactListName": "x"})),
        ("TenantName", json!("x")),
        ("Colour", json!("red")),
    ] {
        let mut document = document();
        document[name] = value;
        let problem = one(&document).err().unwrap();
        assert_eq!((problem.kind, problem.fields[0].pointer.clone()), (Kind::Unsupported, format!("/{name}")));
    }
    let mut document = document();
    document["Content"] = json!({"Other": {}});
    assert_eq!(one(&document).err().unwrap().fields[0].pointer, "/Content/Simple");
}

#[test]
fn errors_are_named_in_the_header_and_the_body() {
    let answer = refuse(&Problem::new(Kind::RateLimited, "too fast"));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status.as_u16(), &body["__type"]), (429, &json!("TooManyRequestsException")));
    assert!(answer.headers.iter().any(|(name, value)| name == ERROR_TYPE && value == "TooManyRequestsException"));
}
