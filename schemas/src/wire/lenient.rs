//! Reads job documents as other languages write them: `null` for what is absent, one mailbox where a list may stand, headers as a map, times of "never"
//! and "not set". A list where an object belongs is refused: serde would take it for the fields in their order.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use jiff::{Timestamp, civil::DateTime};
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{HeaderV1, MailboxPartsV1, MailboxV1};

/// `null` counts as absent.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A map of texts; entries that are `null` count as absent.
pub(crate) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map: BTreeMap<String, Option<String>> = or_default(from)?;
    Ok(map.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

/// An object, or nothing.
pub(crate) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    from.deserialize_any(Shape::<Option<T>>::new("an object", |_| None))
}

/// An object; `null` counts as an empty one.
pub(crate) fn object_or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(object(from)?.unwrap_or_default())
}

/// A list of objects, or nothing.
pub(crate) fn objects<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let list: Vec<Object<T>> = or_default(from)?;
    Ok(list.into_iter().map(|one| one.0).collect())
}

/// One mailbox or a list of mailboxes.
pub(crate) fn mailboxes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<MailboxV1>, D::Error> {
    struct Mailboxes;
    impl<'de> Visitor<'de> for Mailboxes {
        type Value = Vec<MailboxV1>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of addresses")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![MailboxV1::Text(text.to_owned())])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            let list: Vec<Option<MailboxV1>> = Vec::deserialize(SeqAccessDeserializer::new(list))?;
            Ok(list.into_iter().map(Option::unwrap_or_default).collect())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![MailboxV1::Parts(MailboxPartsV1::deserialize(MapAccessDeserializer::new(map))?)])
        }
    }
    from.deserialize_any(Mailboxes)
}

impl<'de> Deserialize<'de> for MailboxV1 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Mailbox;
        impl<'de> Visitor<'de> for Mailbox {
            type Value = MailboxV1;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"Ada <ada@example.org>\", or an object of address and name")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(MailboxV1::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ok(MailboxV1::Parts(MailboxPartsV1::deserialize(MapAccessDeserializer::new(map))?))
            }
        }
        from.deserialize_any(Mailbox)
    }
}

/// A list of names and values, or a map of them. A name of the map may have several values.
pub(crate) fn headers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<HeaderV1>, D::Error> {
    struct Headers;
    impl<'de> Visitor<'de> for Headers {
        type Value = Vec<HeaderV1>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of headers, or an object of names and values")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            let list: Vec<Object<HeaderV1>> = Vec::deserialize(SeqAccessDeserializer::new(list))?;
            Ok(list.into_iter().map(|one| one.0).collect())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut headers = Vec::new();
            while let Some((name, values)) = map.next_entry::<String, Option<OneOrMore>>()? {
                let values = values.map(|values| values.0).unwrap_or_default();
                headers.extend(values.into_iter().map(|value| HeaderV1 { name: name.clone(), value }));
            }
            Ok(headers)
        }
    }
    from.deserialize_any(Headers)
}

/// A text or a list of texts.
struct OneOrMore(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMore)
            }
        }
        from.deserialize_any(Texts)
    }
}

/// A time of RFC 3339. The first moment of year 1 is how Go and .NET write "not set"; what lies behind the last time that can be told is that time,
/// because the end of year 9999 means "never".
pub(crate) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    from.deserialize_any(Shape::<Option<Time>>::new("a time such as 2026-12-01T10:00:00Z", |text| {
        Some(Time(text.to_owned()))
    }))?
    .map_or(Ok(None), |Time(text)| {
        let shown = on_the_clock(&text);
        match text.parse::<Timestamp>() {
            _ if shown == Some(DateTime::constant(1, 1, 1, 0, 0, 0, 0)) => Ok(None),
            Ok(time) => Ok(Some(time)),
            Err(_) if shown >= Some(DateTime::constant(9999, 12, 30, 0, 0, 0, 0)) => Ok(Some(Timestamp::MAX)),
            Err(_) => Err(D::Error::custom(EXPECTED_TIME)),
        }
    })
}

/// Date and time as they are written, whatever zone follows.
fn on_the_clock(text: &str) -> Option<DateTime> {
    let zone = text.trim_end_matches(['Z', 'z']);
    let at = zone.len().checked_sub(6).filter(|at| zone.is_char_boundary(*at) && zone[*at..].starts_with(['+', '-']));
    let zone_fits = |at: &usize| zone[at + 1..].bytes().all(|c| c.is_ascii_digit() || c == b':');
    let text = at.filter(zone_fits).map_or(zone, |at| &zone[..at]);
    text.get(10..11).filter(|between| matches!(*between, "T" | "t" | " "))?;
    text.parse().ok()
}

/// What the error about a time says.
pub(crate) const EXPECTED_TIME: &str = "expected a time such as 2026-12-01T10:00:00Z";

#[derive(Deserialize)]
#[serde(transparent)]
struct Time(String);

/// An object, and no list.
struct Object<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        object(from)?.map(Self).ok_or_else(|| D::Error::custom("expected an object"))
    }
}

/// Reads an object, a text where `from_text` takes one, or `null`.
struct Shape<T> {
    expected: &'static str,
    from_text: fn(&str) -> T,
    of: PhantomData<T>,
}

impl<T> Shape<T> {
    fn new(expected: &'static str, from_text: fn(&str) -> T) -> Self {
        Self { expected, from_text, of: PhantomData }
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Shape<Option<T>> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        match (self.from_text)(text) {
            Some(value) => Ok(Some(value)),
            None => Err(E::invalid_type(serde::de::Unexpected::Str(""), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}
