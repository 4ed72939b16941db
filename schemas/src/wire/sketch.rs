//! What can be read of bytes that are no job: whose they are, as far as that can be told, so that somebody hears of them.

use std::collections::BTreeMap;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::decode::{unpacked, utf8};
use crate::{
    fields::{self, IdempotencyKey, JobId, Tenant},
    limits::JobLimits,
};

/// The fields of a job that name it and its sender, each where it is sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sketch {
    /// The identity.
    pub id: Option<JobId>,
    /// The sender's own identity.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Whose it is.
    pub tenant: Option<Tenant>,
    /// Its labels.
    pub tags: Vec<String>,
    /// Its data.
    pub metadata: BTreeMap<String, String>,
}

/// Reads what can be read. A document that is broken is read up to there.
pub fn sketch(bytes: &[u8], limits: &JobLimits) -> Sketch {
    let mut sketch = Sketch::default();
    let Ok(inside) = unpacked(bytes, limits.bytes_max) else { return sketch };
    if inside.len() > limits.bytes_max {
        return sketch;
    }
    if let Ok(document) = utf8(&inside) {
        // An error ends the reading; what came before it stands.
        let _ = Reader(&mut sketch, limits).deserialize(&mut serde_json::Deserializer::from_slice(&document));
    }
    sketch
}

struct Reader<'a>(&'a mut Sketch, &'a JobLimits);

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(sketch, limits) = self;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "id" => sketch.id = text(&map.next_value()?).and_then(|id| id.parse().ok()),
                "idempotency_key" => {
                    sketch.idempotency_key = text(&map.next_value()?).and_then(|key| IdempotencyKey::parse(&key).ok());
                }
                "tenant" => sketch.tenant = text(&map.next_value()?).and_then(|name| Tenant::parse(&name).ok()),
                "tags" => {
                    let Value::Array(list) = map.next_value()? else { continue };
                    let sound = list.iter().filter_map(text).filter(|tag| fields::check_tag(tag).is_ok());
                    sketch.tags = sound.take(limits.tags_max).collect();
                }
                "metadata" => {
                    let Value::Object(entries) = map.next_value()? else { continue };
                    let sound = entries.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?)));
                    let sound = sound.filter(|(key, value)| fields::check_metadata(key, value).is_ok());
                    sketch.metadata = sound.take(limits.metadata_max).collect();
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_job_is_read_whatever_else_is_wrong() {
        let read = |text: &str| sketch(text.as_bytes(), &JobLimits::DEFAULT);
        let broken = r#"{"id":"0190a5c0-7a10-7c3e-9d51-000000000001","to":7,"tenant":"shop","tags":["a",7,""],
            "metadata":{"order":"4711","n":1,"bad key":"x"},"idempotency_key":"order:1","subject":"cut he"#;
        let found = read(broken);
        assert_eq!(found.id.unwrap().to_string(), "0190a5c0-7a10-7c3e-9d51-000000000001");
        assert_eq!(found.tenant.unwrap().as_str(), "shop");
        assert_eq!(found.idempotency_key.unwrap().as_str(), "order:1");
        assert_eq!((found.tags, found.metadata.len()), (vec!["a".to_owned()], 1));
        for nothing in
            ["", "[]", "7", "{", r#"{"id":7,"tenant":"Not One","tags":{},"metadata":[],"idempotency_key":null}"#]
        {
            assert_eq!(read(nothing), Sketch::default(), "{nothing}");
        }
    }
}
