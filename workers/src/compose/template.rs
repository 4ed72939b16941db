//! Job content -> subject and bodies, through MiniJinja where the job brings templates. Strict: a name that is missing is an error. Bounded: in
//! instructions, in nesting and in output. Sources include nothing and reach no file. Error texts quote the source at most, never a variable.

use std::{borrow::Cow, io, sync::LazyLock};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, value::Serde};
use postrider_schemas::{
    fields,
    job::{Content, Job},
    limits::JobLimits,
};
use serde_json::Map;

use super::ComposeError;

/// Instructions one template may run: a table of some ten thousand rows. An endless template is stopped within a tenth of a second.
const FUEL: u64 = 500_000;
/// How deep blocks and macros may nest.
const RECURSION_MAX: usize = 64;
/// Largest rendered body, in octets.
const BODY_OCTETS_MAX: usize = JobLimits::DEFAULT.bytes_max;
/// Longest rendered subject, in octets.
const SUBJECT_OCTETS_MAX: usize = JobLimits::DEFAULT.line_octets_max;
/// How many missing names an error lists.
const NAMES_MAX: usize = 5;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|part| if part == "html" { AutoEscape::Html } else { AutoEscape::None });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    // Prints every variable into the mail: of no use to its reader.
    environment.remove_global("debug");
    environment
});

/// What a mail says, finished.
pub(super) struct Rendered<'a> {
    pub(super) subject: Cow<'a, str>,
    pub(super) text: Option<Cow<'a, str>>,
    pub(super) html: Option<Cow<'a, str>>,
}

/// Renders subject and bodies of a job. Finished bodies are borrowed.
pub(super) fn render(job: &Job) -> Result<Rendered<'_>, ComposeError> {
    match job.content() {
        Content::Bodies { text, html } => Ok(Rendered {
            subject: Cow::Borrowed(job.subject()),
            text: text.as_deref().map(Cow::Borrowed),
            html: html.as_deref().map(Cow::Borrowed),
        }),
        Content::Template { text, html, variables } => {
            let values = Value::from(Serde(variables));
            let body = |part, source: &Option<String>| {
                let source = source.as_deref();
                source.map(|source| one(part, source, variables, &values, BODY_OCTETS_MAX).map(Cow::Owned)).transpose()
            };
            let subject = one("subject", job.subject(), variables, &values, SUBJECT_OCTETS_MAX)?;
            // A line break that came in with a variable would start a header of the sender's customer's choice.
            fields::check_subject(&subject, SUBJECT_OCTETS_MAX).map_err(ComposeError::Subject)?;
            Ok(Rendered { subject: Cow::Owned(subject), text: body("text", text)?, html: body("html", html)? })
        }
    }
}

fn one(
    part: &'static str,
    source: &str,
    variables: &Map<String, serde_json::Value>,
    values: &Value,
    max: usize,
) -> Result<String, ComposeError> {
    let failed = |error: &Error, reason: String| ComposeError::Template { part, line: error.line(), reason };
    let template =
        ENVIRONMENT.template_from_named_str(part, source).map_err(|error| failed(&error, source_fault(&error)))?;
    let mut out = Bounded { octets: Vec::with_capacity(source.len() + source.len() / 4), max };
    template.render_captured_to(values.clone(), &mut out).map_err(|error| match error.kind() {
        ErrorKind::WriteFailure => ComposeError::TooLarge { part, max },
        ErrorKind::OutOfFuel => failed(&error, format!("runs longer than {FUEL} instructions")),
        ErrorKind::UndefinedError => failed(&error, missing(template.undeclared_variables(true), variables)),
        _ => failed(&error, source_fault(&error)),
    })?;
    String::from_utf8(out.octets).map_err(|_| ComposeError::Assemble(format!("the {part} template made broken UTF-8")))
}

/// The kind of an error, with MiniJinja's details only where these come from the source alone.
fn source_fault(error: &Error) -> String {
    let of_the_source = matches!(
        error.kind(),
        ErrorKind::SyntaxError | ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
    );
    match error.detail().filter(|_| of_the_source) {
        Some(detail) => format!("{}: {}", error.kind(), detail.chars().take(200).collect::<String>()),
        None => error.kind().to_string(),
    }
}

fn missing(paths: impl IntoIterator<Item = String>, variables: &Map<String, serde_json::Value>) -> String {
    let mut names: Vec<String> = paths
        .into_iter()
        .filter(|path| !is_there(path, variables) && !ENVIRONMENT.globals().any(|(global, _)| global == path))
        .map(|path| format!("`{}`", path.chars().take(80).collect::<String>()))
        .collect();
    names.sort_unstable();
    names.truncate(NAMES_MAX);
    if names.is_empty() {
        "a value that the template names is missing".to_owned()
    } else {
        format!("missing from the variables: {}", names.join(", "))
    }
}

/// True where `a.b.c` leads to a value.
fn is_there(path: &str, variables: &Map<String, serde_json::Value>) -> bool {
    let mut steps = path.split('.');
    let mut at = steps.next().and_then(|name| variables.get(name));
    for step in steps {
        at = match at {
            Some(serde_json::Value::Object(map)) => map.get(step),
            // What stands behind a list or a number is beyond this look-up; it did not cause the error by being absent here.
            other => return other.is_some(),
        };
    }
    at.is_some()
}

/// A buffer that takes at most `max` octets.
struct Bounded {
    octets: Vec<u8>,
    max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.octets.len() + chunk.len() > self.max {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.octets.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
