//! The `OpenAPI` 3.1 document: paths from the table of routes, the form of a job from its type.

use std::sync::OnceLock;

use bytes::Bytes;
use postrider_schemas::json_schema;
use serde_json::{Map, Value, json};

use super::routes::{Api, Operation, ROUTES, Route};
use crate::keys::Scope;

/// The document, made once.
pub fn document() -> Bytes {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    TEXT.get_or_init(|| Bytes::from(make().to_string())).clone()
}

fn make() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    let mut schemas = job_schemas();
    schemas.insert("Problem".to_owned(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Postrider gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Takes e-mail jobs and answers when the queue has them on disk.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// The schema of a job and those that it names, under the names that the document gives them. Here the id may be left out.
fn job_schemas() -> Map<String, Value> {
    let text = json_schema::job_v1().replace("#/$defs/", "#/components/schemas/");
    let mut job: Value = serde_json::from_str(&text).unwrap_or_default();
    let mut schemas = match job.as_object_mut().and_then(|job| job.remove("$defs")) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    if let Some(job) = job.as_object_mut() {
        job.remove("$schema");
        job.remove("$id");
        if let Some(required) = job.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|field| field != "id");
        }
    }
    schemas.insert("Job".to_owned(), job);
    schemas
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "format": "uri" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": { "pointer": { "type": "string" }, "detail": { "type": "string" } },
                },
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.api.as_str()],
        "responses": responses(route),
    });
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if route.scope == Some(Scope::Send) {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same for each repetition of a request: its jobs are then sent once.",
            "schema": { "type": "string", "maxLength": 256 },
        }));
    }
    if !parameters.is_empty() {
        operation["parameters"] = Value::from(parameters);
    }
    if route.scope.is_some() {
        operation["security"] = json!([{ "key": [] }]);
    }
    if let Some(body) = request_body(route) {
        operation["requestBody"] = body;
    }
    operation
}

fn request_body(route: &Route) -> Option<Value> {
    let job = json!({ "$ref": "#/components/schemas/Job" });
    let content = match (route.api, route.operation) {
        (_, Operation::SendJob) => json!({ "application/json": { "schema": job } }),
        (_, Operation::SendBatch) => json!({
            "application/json": { "schema": { "type": "array", "minItems": 1, "maxItems": 1000, "items": job } },
            "application/x-ndjson": { "schema": { "type": "string" } },
        }),
        (_, Operation::PatchJob) => json!({ "application/json": { "schema": {
            "type": "object",
            "required": ["send_at"],
            "properties": { "send_at": { "type": "string", "format": "date-time" } },
        } } }),
        (Api::Native, _) | (_, Operation::ResendGet | Operation::ResendCancel) => return None,
        (Api::SesQuery, _) => json!({ "application/x-www-form-urlencoded": { "schema": {} } }),
        (Api::Mailgun, _) => json!({
            "multipart/form-data": { "schema": {} },
            "application/x-www-form-urlencoded": { "schema": {} },
        }),
        // Their vendors' documents describe them.
        _ => json!({ "application/json": { "schema": {} } }),
    };
    Some(json!({ "required": true, "content": content }))
}

fn responses(route: &Route) -> Value {
    if route.api != Api::Native {
        return json!({ "default": { "description": "As the vendor answers" } });
    }
    let success = match route.operation {
        Operation::SendJob => json!({ "202": { "description": "The queue has the job on disk" } }),
        Operation::SendBatch => json!({ "200": { "description": "A result for each job" } }),
        _ => json!({ "200": { "description": "Done" } }),
    };
    let mut responses = success;
    responses["default"] = json!({
        "description": "What is wrong",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    responses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_the_routes_of_the_table_and_no_others() {
        let document: Value = serde_json::from_slice(&super::document()).unwrap();
        let mut told = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                told.insert((
                    method.to_uppercase(),
                    path.clone(),
                    operation["operationId"].as_str().unwrap().to_owned(),
                ));
            }
        }
        let table: BTreeSet<_> =
            ROUTES.iter().map(|one| (one.method.to_owned(), one.path.to_owned(), one.name.to_owned())).collect();
        assert_eq!(told, table);
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_a_job_needs_no_id() {
        let document = make();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 5, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let required = &document["components"]["schemas"]["Job"]["required"];
        assert!(required.as_array().unwrap().iter().all(|field| field != "id"), "{required}");
        assert!(document["components"]["schemas"]["Job"]["properties"]["subject"].is_object());
    }
}
