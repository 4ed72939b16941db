//! What a request must hold, said a second time and in other words than the code under test.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postrider_schemas::{Job, address::Mailbox, job::Attachment};
use postrider_workers::policy::outcome::{Class, Outcome};
use serde_json::{Value, json};

use crate::{
    config, deliver, example_jobs, flag_jobs, refused,
    server::{Act, Seen, Server},
    transport_of,
};

/// Delivers each example job and each flag alone; gives the requests, by the job's name. Jobs named in `misfits` must be found out before
/// anything is sent.
pub async fn requests(kind: &str, success: Act, misfits: &[&str]) -> Vec<(&'static str, Job, Seen)> {
    let server = Server::start(move |_, _| success.clone()).await;
    let mut settings = config(kind, &format!("http://127.0.0.1:{}", server.port));
    settings.batch = false;
    let transport = transport_of(settings);
    let mut requests = Vec::new();
    for (name, job) in example_jobs().into_iter().chain(flag_jobs()) {
        let outcome = deliver(&transport, &job).await;
        let seen = server.seen();
        if misfits.contains(&name) {
            assert_eq!(refused(&outcome), Class::Unsupported, "{kind} {name}");
            assert_eq!(seen.len(), requests.len(), "{kind} {name}: something was sent");
            continue;
        }
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{kind} {name}: {outcome:?}");
        assert_eq!(seen.len(), requests.len() + 1, "{kind} {name}");
        requests.push((name, job, seen.last().unwrap().clone()));
    }
    requests
}

/// No field that the documents do not name.
#[track_caller]
pub fn assert_known(body: &Value, fields: &[&str]) {
    for field in body.as_object().unwrap().keys() {
        assert!(fields.contains(&field.as_str()), "{field}");
    }
}

/// An absent field for nobody, else the list.
#[track_caller]
pub fn assert_list(body: &Value, field: &str, list: &[Mailbox], one: impl Fn(&Mailbox) -> Value) {
    let expected = if list.is_empty() { Value::Null } else { list.iter().map(one).collect() };
    assert_eq!(body[field], expected, "{field}");
}

/// A mailbox as an object.
pub fn object(one: &Mailbox, address: &str, name: &str) -> Value {
    match one.name() {
        Some(text) => json!({ address: one.address().to_string(), name: text }),
        None => json!({ address: one.address().to_string() }),
    }
}

/// To, cc and bcc, a single blind copy being promoted where there is nobody else.
pub fn recipients(job: &Job) -> [Vec<Mailbox>; 3] {
    let [to, cc, bcc] = [job.to(), job.cc(), job.bcc()].map(<[Mailbox]>::to_vec);
    if to.is_empty() { [bcc, cc, to] } else { [to, cc, bcc] }
}

/// The extra headers of a job by name, those for unsubscribing included.
pub fn headers(job: &Job) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<String, String> =
        job.headers().iter().map(|one| (one.name().to_owned(), one.value().to_owned())).collect();
    if let Some(ways) = job.list_unsubscribe() {
        let url = format!("<{}>", ways.url.as_ref().unwrap());
        headers.insert("List-Unsubscribe".to_owned(), format!("{url}, <mailto:{}>", ways.mailto.as_ref().unwrap()));
        headers.insert("List-Unsubscribe-Post".to_owned(), "List-Unsubscribe=One-Click".to_owned());
    }
    headers
}

/// Metadata with the job's id.
pub fn metadata(job: &Job) -> Value {
    let mut object = json!(job.metadata());
    object["postrider_job_id"] = job.id().to_string().into();
    object
}

/// A field that holds a file's content.
#[track_caller]
pub fn assert_content(field: &Value, file: &Attachment) {
    assert_eq!(STANDARD.decode(field.as_str().unwrap()).unwrap(), file.content);
}

/// An empty body goes out as a blank.
pub fn filled(text: Option<&str>) -> Value {
    match text {
        Some("") => " ".into(),
        Some(text) => text.into(),
        None => Value::Null,
    }
}
