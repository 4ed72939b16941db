//! The JSON Schemas of the wire forms, made from the types. `schemas/json/` holds them for other languages; a test keeps them true.

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{event::Event, wire::JobV1};

/// The JSON Schema of a job (draft 2020-12), pretty-printed.
pub fn job_v1() -> String {
    let mut schema = schema::<JobV1>("https://postrider.dev/schemas/job.v1.schema.json");
    schema.insert("required".to_owned(), json!(["id"]));
    schema
        .insert("anyOf".to_owned(), json!([{ "required": ["from", "subject"] }, { "required": ["mime", "envelope"] }]));
    with_null(schema.as_object_mut());
    for name in ["AttachmentV1", "EnvelopeV1", "ListUnsubscribeV1", "MailboxPartsV1", "TemplateV1", "TrackingV1"] {
        with_null(schema.pointer_mut(&format!("/$defs/{name}")).and_then(Value::as_object_mut));
    }
    if let Some(entries) = schema.pointer_mut("/properties/metadata/additionalProperties") {
        *entries = json!({ "type": ["string", "null"] });
    }
    printed(&schema)
}

/// The JSON Schema of an event (draft 2020-12), pretty-printed.
pub fn event_v1() -> String {
    printed(&schema::<Event>("https://postrider.dev/schemas/event.v1.schema.json"))
}

fn schema<T: JsonSchema>(id: &str) -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), id.into());
    schema
}

fn printed(schema: &Schema) -> String {
    let mut text = serde_json::to_string_pretty(schema.as_value()).unwrap_or_default();
    text.push('\n');
    text
}

/// Lets `null` stand for whatever may be absent.
fn with_null(object: Option<&mut Map<String, Value>>) {
    let Some(object) = object else { return };
    let required = object.get("required").cloned().unwrap_or_default();
    let is_required = |name: &str| required.as_array().is_some_and(|list| list.iter().any(|one| one == name));
    let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, property) in properties {
        let Some(property) = property.as_object_mut().filter(|_| !is_required(name)) else { continue };
        let null = json!({ "type": "null" });
        if let Some(reference) = property.remove("$ref") {
            property.insert("anyOf".to_owned(), Value::Array(vec![json!({ "$ref": reference }), null]));
        } else if let Some(list) = property.get_mut("anyOf").and_then(Value::as_array_mut) {
            if !list.contains(&null) {
                list.push(null);
            }
        } else if let Some(kind) = property.get_mut("type").filter(|kind| kind.is_string()) {
            *kind = json!([kind, "null"]);
        }
    }
}
