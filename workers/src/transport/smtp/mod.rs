//! SMTP relay.
