//! A client session with an SMTP server: it connects, encrypts, logs in and hands messages over, one transaction after the other.
//!
//! A transaction tells what each recipient's reply was and what is known about the message: taken, certainly not taken, or unknown because
//! the final dot may have left and no answer came. What that means, and whether anything is tried again, is decided by the caller.
//!
//! ```no_run
//! # async fn send() -> Result<(), Box<dyn std::error::Error>> {
//! use postrider_schemas::EmailAddress;
//! use postrider_smtp::{Client, Mail, Settings};
//!
//! let client = Client::new(Settings::new("localhost", 25))?;
//! let mut session = client.connect(()).await?;
//! let to = EmailAddress::parse("ada@example.com")?;
//! let mail = Mail { from: None, recipients: &[&to], message: b"Subject: Hello\r\n\r\nHello Ada\r\n" };
//! let (delivery, _after) = session.send(mail).await;
//! println!("{:?}", delivery.state());
//! session.quit(std::time::Duration::from_secs(2)).await;
//! # Ok(())
//! # }
//! ```
//!
//! Dropping a session, or a future of it, closes the connection: what is left of an abandoned transaction can never be taken for the answer
//! of another one.

mod auth;
mod body;
mod ehlo_capabilities;
mod failure;
mod observer;
mod reply;
mod result;
mod session;
mod settings;
mod submit_permission;
mod tls;
mod transaction;
mod wire;

pub use self::{
    body::has_eight_bit_header,
    ehlo_capabilities::EhloCapabilities,
    failure::{Cause, Failure, Stage},
    observer::{Observer, Span, Step},
    reply::{EnhancedCode, Garbage, Reply},
    result::{After, Cut, Delivery, Mail, MessageState, RecipientReply},
    session::{Client, Session},
    settings::{Auth, AuthMechanism, Settings, SettingsError, StageLimits, TlsMode},
    submit_permission::SubmitPermission,
};
