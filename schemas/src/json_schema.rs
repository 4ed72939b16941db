//! The JSON Schemas of the wire forms, made from the types. `schemas/json/` holds them for other languages; a test keeps them true.

use schemars::{JsonSchema, generate::SchemaSettings};

use crate::{event::Event, wire::JobV1};

/// The JSON Schema of a job (draft 2020-12), pretty-printed.
pub fn job_v1() -> String {
    pretty::<JobV1>("https://postrider.dev/schemas/job.v1.schema.json", &["id"])
}

/// The JSON Schema of an event (draft 2020-12), pretty-printed.
pub fn event_v1() -> String {
    pretty::<Event>("https://postrider.dev/schemas/event.v1.schema.json", &[])
}

/// `required`: fields that the wire needs although the Rust type can do without.
fn pretty<T: JsonSchema>(id: &str, required: &[&str]) -> String {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), id.into());
    if let Some(list) = schema.get_mut("required").and_then(|list| list.as_array_mut()) {
        list.extend(required.iter().map(|field| (*field).into()));
    }
    let mut text = serde_json::to_string_pretty(schema.as_value()).unwrap_or_default();
    text.push('\n');
    text
}
