//! Job content -> subject and bodies, through MiniJinja where the job brings templates. Strict: a name that is missing is an error. Bounded: in
//! instructions, in nesting and in output. Sources include nothing and reach no file. Error texts quote the source at most, never a variable.

use std::{borrow::Cow, io, sync::LazyLock};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, value::Serde};
use postrider_schemas::{
    fields,
    job::{Content, Job},
    limits::JobLimits,
};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::ComposeError;

/// Instructions one template may run: a table of some ten thousand rows. Not all that takes time counts, so that time itself is bounded as well.
const FUEL: u64 = 500_000;
/// How deep blocks and macros may nest.
const RECURSION_MAX: usize = 64;
/// Largest rendered body, in octets.
const BODY_OCTETS_MAX: usize = JobLimits::DEFAULT.bytes_max;
/// Longest rendered subject, in octets.
const SUBJECT_OCTETS_MAX: usize = JobLimits::DEFAULT.field_octets_max;
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
#[derive(PartialEq, Eq)]
pub struct Rendered<'a> {
    pub(crate) subject: Cow<'a, str>,
    pub(crate) text: Option<Cow<'a, str>>,
    pub(crate) html: Option<Cow<'a, str>>,
}

impl Rendered<'_> {
    /// The same, with nothing borrowed.
    pub(crate) fn owned(&self) -> Rendered<'static> {
        let body = |body: &Option<Cow<'_, str>>| body.as_deref().map(|body| Cow::Owned(body.to_owned()));
        Rendered {
            subject: Cow::Owned(self.subject.clone().into_owned()),
            text: body(&self.text),
            html: body(&self.html),
        }
    }
}

/// The sources of a job's texts.
pub(crate) struct Sources<'a> {
    pub(crate) subject: &'a str,
    pub(crate) text: Option<&'a str>,
    pub(crate) html: Option<&'a str>,
}

/// What they make.
#[derive(PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) subject: String,
    pub(crate) text: Option<String>,
    pub(crate) html: Option<String>,
}

/// A source of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    Subject,
    Text,
    Html,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Text => "text",
            Self::Html => "html",
        }
    }
}

/// Why a template makes no text. Holds nothing of the variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It is wrong, or names what is missing.
    Source { part: Part, line: Option<usize>, reason: String },
    /// It makes more than a mail may hold.
    TooLarge { part: Part, max: usize },
    /// It takes more than it may.
    Limit { part: Option<Part>, reason: String },
}

impl From<Fault> for ComposeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Source { part, line, reason } => Self::Template { part: part.as_str(), line, reason },
            Fault::TooLarge { part, max } => Self::TooLarge { part: part.as_str(), max },
            Fault::Limit { part, reason } => Self::Limit { part: part.map(Part::as_str), reason },
        }
    }
}

/// Renders subject and bodies of a job, here and now. Finished bodies are borrowed. A template that is not plain may take this process down: what others
/// wrote goes through [`crate::render`].
pub(crate) fn render(job: &Job) -> Result<Rendered<'_>, ComposeError> {
    match job.content() {
        Content::Bodies { text, html } => Ok(Rendered {
            subject: Cow::Borrowed(job.subject()),
            text: text.as_deref().map(Cow::Borrowed),
            html: html.as_deref().map(Cow::Borrowed),
        }),
        Content::Raw(_) => Ok(Rendered { subject: Cow::Borrowed(""), text: None, html: None }),
        Content::Template { text, html, variables } => {
            let sources = Sources { subject: job.subject(), text: text.as_deref(), html: html.as_deref() };
            finished(texts(&sources, variables)?)
        }
    }
}

/// The texts as a mail may have them.
pub(crate) fn finished(texts: Texts) -> Result<Rendered<'static>, ComposeError> {
    // A line break that came in with a variable would start a header of the sender's customer's choice.
    let subject = fields::clean_subject(&texts.subject, SUBJECT_OCTETS_MAX).map_err(ComposeError::Subject)?;
    Ok(Rendered {
        subject: Cow::Owned(subject.into_owned()),
        text: texts.text.map(Cow::Owned),
        html: texts.html.map(Cow::Owned),
    })
}

/// Renders sources.
pub(crate) fn texts(sources: &Sources<'_>, variables: &Map<String, serde_json::Value>) -> Result<Texts, Fault> {
    let values = Value::from(Serde(variables));
    let body = |part, source: Option<&str>| {
        source.map(|source| one(part, source, variables, &values, BODY_OCTETS_MAX)).transpose()
    };
    Ok(Texts {
        subject: one(Part::Subject, sources.subject, variables, &values, SUBJECT_OCTETS_MAX)?,
        text: body(Part::Text, sources.text)?,
        html: body(Part::Html, sources.html)?,
    })
}

fn one(
    part: Part,
    source: &str,
    variables: &Map<String, serde_json::Value>,
    values: &Value,
    max: usize,
) -> Result<String, Fault> {
    let failed = |error: &Error, reason: String| Fault::Source { part, line: error.line(), reason };
    let template = ENVIRONMENT
        .template_from_named_str(part.as_str(), source)
        .map_err(|error| failed(&error, source_fault(&error)))?;
    let mut out = Bounded { octets: Vec::with_capacity(source.len() + source.len() / 4), max };
    template.render_captured_to(values.clone(), &mut out).map_err(|error| match error.kind() {
        ErrorKind::WriteFailure => Fault::TooLarge { part, max },
        ErrorKind::OutOfFuel => {
            Fault::Limit { part: Some(part), reason: format!("it runs longer than {FUEL} instructions") }
        }
        _ if error.detail().is_some_and(|detail| detail.contains("recursion limit")) => {
            Fault::Limit { part: Some(part), reason: format!("it nests deeper than {RECURSION_MAX} while it runs") }
        }
        ErrorKind::UndefinedError => failed(&error, missing(template.undeclared_variables(true), variables)),
        _ => failed(&error, source_fault(&error)),
    })?;
    let broken = |_| Fault::Source { part, line: None, reason: "makes broken UTF-8".to_owned() };
    String::from_utf8(out.octets).map_err(broken)
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
