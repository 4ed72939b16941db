//! Realistic jobs. They document the format, and every test that needs a job takes one of them.

/// A job that brings a whole message.
pub const WHOLE_MESSAGE: (&str, &str) = ("whole-message", include_str!("../examples/whole-message.json"));

/// Name and JSON document of each example that is made of its parts.
pub const ALL: [(&str, &str); 10] = [
    ("receipt", include_str!("../examples/receipt.json")),
    ("one-time-code", include_str!("../examples/one-time-code.json")),
    ("newsletter", include_str!("../examples/newsletter.json")),
    ("international", include_str!("../examples/international.json")),
    ("inline-image", include_str!("../examples/inline-image.json")),
    ("pdf-attachment", include_str!("../examples/pdf-attachment.json")),
    ("copies", include_str!("../examples/copies.json")),
    ("scheduled", include_str!("../examples/scheduled.json")),
    ("template", include_str!("../examples/template.json")),
    ("long-lines", include_str!("../examples/long-lines.json")),
];
