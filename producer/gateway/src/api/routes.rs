//! Every path of the gateway. The router, the `OpenAPI` document and the names in metrics are made from this one table.

use crate::keys::Scope;

/// Whose form a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Our own.
    Native,
    /// That of Resend.
    Resend,
    /// That of SendGrid.
    SendGrid,
    /// That of Postmark.
    Postmark,
    /// That of Amazon SES, version 2.
    Ses,
    /// That of Amazon SES, version 1.
    SesQuery,
    /// That of Mailgun.
    Mailgun,
}

impl Api {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Resend => "resend",
            Self::SendGrid => "sendgrid",
            Self::Postmark => "postmark",
            Self::Ses | Self::SesQuery => "ses",
            Self::Mailgun => "mailgun",
        }
    }
}

/// What a path and method ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table below says what each of them is")]
pub enum Operation {
    SendJob,
    SendBatch,
    Healthz,
    Readyz,
    ResendSend,
    ResendBatch,
    SendGridSend,
    PostmarkSend,
    PostmarkBatch,
    OpenApi,
    GetJob,
    PatchJob,
    DeleteJob,
    CancelJob,
    ResendGet,
    ResendPatch,
    ResendCancel,
    SesSend,
    SesBulk,
    SesQuery,
    MailgunSend,
    MailgunMime,
}

impl Operation {
    /// Its row.
    pub fn route(self) -> &'static Route {
        &ROUTES[self as usize]
    }

    /// Whose form its requests have.
    pub fn api(self) -> Api {
        self.route().api
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Route {
    /// What it is.
    pub operation: Operation,
    /// The word in metrics and the `OpenAPI` document.
    pub name: &'static str,
    /// Whose form it has.
    pub api: Api,
    /// The method.
    pub method: &'static str,
    /// The path; `{name}` stands for one part.
    pub path: &'static str,
    /// What the API key must allow; nothing where everybody may ask.
    pub scope: Option<Scope>,
    /// One line for people.
    pub summary: &'static str,
}

/// All of them, in the order of [`Operation`].
pub const ROUTES: &[Route] = &[
    Route {
        operation: Operation::SendJob,
        name: "sendJob",
        api: Api::Native,
        method: "POST",
        path: "/v1/jobs",
        scope: Some(Scope::Send),
        summary: "Hand over one job",
    },
    Route {
        operation: Operation::SendBatch,
        name: "sendJobs",
        api: Api::Native,
        method: "POST",
        path: "/v1/jobs:batch",
        scope: Some(Scope::Send),
        summary: "Hand over up to 1,000 jobs, as a JSON array or one on each line",
    },
    Route {
        operation: Operation::Healthz,
        name: "health",
        api: Api::Native,
        method: "GET",
        path: "/healthz",
        scope: None,
        summary: "Whether the process works",
    },
    Route {
        operation: Operation::Readyz,
        name: "readiness",
        api: Api::Native,
        method: "GET",
        path: "/readyz",
        scope: None,
        summary: "Whether jobs can be taken now",
    },
    Route {
        operation: Operation::ResendSend,
        name: "resendSend",
        api: Api::Resend,
        method: "POST",
        path: "/emails",
        scope: Some(Scope::Send),
        summary: "Resend: send one mail",
    },
    Route {
        operation: Operation::ResendBatch,
        name: "resendBatch",
        api: Api::Resend,
        method: "POST",
        path: "/emails/batch",
        scope: Some(Scope::Send),
        summary: "Resend: send up to 100 mails",
    },
    Route {
        operation: Operation::SendGridSend,
        name: "sendgridSend",
        api: Api::SendGrid,
        method: "POST",
        path: "/v3/mail/send",
        scope: Some(Scope::Send),
        summary: "SendGrid: send a mail for each personalization",
    },
    Route {
        operation: Operation::PostmarkSend,
        name: "postmarkSend",
        api: Api::Postmark,
        method: "POST",
        path: "/email",
        scope: Some(Scope::Send),
        summary: "Postmark: send one mail",
    },
    Route {
        operation: Operation::PostmarkBatch,
        name: "postmarkBatch",
        api: Api::Postmark,
        method: "POST",
        path: "/email/batch",
        scope: Some(Scope::Send),
        summary: "Postmark: send up to 500 mails",
    },
    Route {
        operation: Operation::OpenApi,
        name: "openapi",
        api: Api::Native,
        method: "GET",
        path: "/openapi.json",
        scope: None,
        summary: "This document",
    },
    Route {
        operation: Operation::GetJob,
        name: "getJob",
        api: Api::Native,
        method: "GET",
        path: "/v1/jobs/{id}",
        scope: Some(Scope::Read),
        summary: "What became of a job",
    },
    Route {
        operation: Operation::PatchJob,
        name: "patchJob",
        api: Api::Native,
        method: "PATCH",
        path: "/v1/jobs/{id}",
        scope: Some(Scope::Cancel),
        summary: "Move a scheduled job to a later time",
    },
    Route {
        operation: Operation::DeleteJob,
        name: "deleteJob",
        api: Api::Native,
        method: "DELETE",
        path: "/v1/jobs/{id}",
        scope: Some(Scope::Cancel),
        summary: "Call a job back",
    },
    Route {
        operation: Operation::CancelJob,
        name: "cancelJob",
        api: Api::Native,
        method: "POST",
        path: "/v1/jobs/{id}/cancel",
        scope: Some(Scope::Cancel),
        summary: "Call a job back",
    },
    Route {
        operation: Operation::ResendGet,
        name: "resendGet",
        api: Api::Resend,
        method: "GET",
        path: "/emails/{id}",
        scope: Some(Scope::Read),
        summary: "Resend: what became of a mail",
    },
    Route {
        operation: Operation::ResendPatch,
        name: "resendPatch",
        api: Api::Resend,
        method: "PATCH",
        path: "/emails/{id}",
        scope: Some(Scope::Cancel),
        summary: "Resend: move a scheduled mail to a later time",
    },
    Route {
        operation: Operation::ResendCancel,
        name: "resendCancel",
        api: Api::Resend,
        method: "POST",
        path: "/emails/{id}/cancel",
        scope: Some(Scope::Cancel),
        summary: "Resend: call a mail back",
    },
    Route {
        operation: Operation::SesSend,
        name: "sesSend",
        api: Api::Ses,
        method: "POST",
        path: "/v2/email/outbound-emails",
        scope: Some(Scope::Send),
        summary: "Amazon SES, version 2: send one mail",
    },
    Route {
        operation: Operation::SesBulk,
        name: "sesBulk",
        api: Api::Ses,
        method: "POST",
        path: "/v2/email/outbound-bulk-emails",
        scope: Some(Scope::Send),
        summary: "Amazon SES, version 2: send a template to up to 50",
    },
    Route {
        operation: Operation::SesQuery,
        name: "sesQuery",
        api: Api::SesQuery,
        method: "POST",
        path: "/",
        scope: Some(Scope::Send),
        summary: "Amazon SES, version 1: SendEmail and SendRawEmail",
    },
    Route {
        operation: Operation::MailgunSend,
        name: "mailgunSend",
        api: Api::Mailgun,
        method: "POST",
        path: "/v3/{domain}/messages",
        scope: Some(Scope::Send),
        summary: "Mailgun: send a mail, or one to each recipient with variables",
    },
    Route {
        operation: Operation::MailgunMime,
        name: "mailgunMime",
        api: Api::Mailgun,
        method: "POST",
        path: "/v3/{domain}/messages.mime",
        scope: Some(Scope::Send),
        summary: "Mailgun: send a whole message",
    },
];

/// Where a request leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// To an operation, with the variable parts of its path.
    Operation(Operation, Vec<String>),
    /// To a path that knows other methods.
    OtherMethods(Api, Vec<&'static str>),
    /// To nothing.
    Nothing,
}

/// Finds the operation. Empty parts count for nothing: clients join addresses carelessly (`//v1/jobs`, `/v1/jobs/`).
pub fn find(method: &str, path: &str) -> Found {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut others = (Api::Native, Vec::new());
    for route in ROUTES {
        let Some(parameters) = matched(route.path, &parts) else { continue };
        if route.method == method {
            return Found::Operation(route.operation, parameters);
        }
        others.0 = route.api;
        others.1.push(route.method);
    }
    if others.1.is_empty() { Found::Nothing } else { Found::OtherMethods(others.0, others.1) }
}

fn matched(pattern: &str, parts: &[&str]) -> Option<Vec<String>> {
    let pattern: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    if pattern.len() != parts.len() {
        return None;
    }
    let mut parameters = Vec::new();
    for (wanted, part) in pattern.into_iter().zip(parts) {
        if wanted.starts_with('{') {
            let decoded = percent_encoding::percent_decode_str(part).decode_utf8().ok()?;
            parameters.push(decoded.into_owned());
        } else if wanted != *part {
            return None;
        }
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_in_order_and_no_two_rows_are_for_the_same_request() {
        for (n, route) in ROUTES.iter().enumerate() {
            assert_eq!(route.operation as usize, n, "{}", route.name);
            let variables = route.path.matches('{').count();
            let concrete = route.path.replace(['{', '}'], "");
            match find(route.method, &concrete) {
                Found::Operation(operation, parameters) => {
                    assert_eq!((operation, parameters.len()), (route.operation, variables), "{concrete}");
                }
                other => panic!("{concrete}: {other:?}"),
            }
        }
        let names: BTreeSet<_> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len());
    }

    #[test]
    fn paths_lead_where_they_say_and_nowhere_else() {
        for path in ["/v1/jobs", "//v1//jobs", "/v1/jobs/"] {
            assert_eq!(find("POST", path), Found::Operation(Operation::SendJob, Vec::new()), "{path}");
        }
        for path in ["/v1", "/v1/jobs/../jobs", "/V1/jobs", "/v1%2Fjobs", "/v1/jobs;x", "/../../etc/passwd"] {
            assert_eq!(find("POST", path), Found::Nothing, "{path}");
        }
        assert_eq!(find("DELETE", "/v1/jobs"), Found::OtherMethods(Api::Native, vec!["POST"]));
    }
}
