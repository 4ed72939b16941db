//! `postrider check`: is a configuration sound.

use std::process::ExitCode;

use url::Url;

use super::{ConfigArguments, output};
use crate::{
    config::{Account, SesCredentials, TransportKind},
    transport::Transport,
};

/// Arguments of `postrider check`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
}

/// Loads the configuration, reads the certificates it names, and says what it came to. Connects to nothing.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    for one in &config.transports {
        if let Err(error) = Transport::new(one) {
            anyhow::bail!("setting `transport.{}`: {error}", one.name);
        }
        let (address, connections, credentials) = match &one.kind {
            TransportKind::Smtp(smtp) => (format!("{}:{}", smtp.host, smtp.port), smtp.connections, String::new()),
            TransportKind::Provider(provider) => {
                (shown(&provider.base_url), provider.http.connections, format!(", {}", credentials(&provider.account)))
            }
        };
        let kind = one.kind();
        output::line(&format!(
            "transport {}: {kind} {address}, at most {connections} connections{credentials}",
            one.name
        ))?;
    }
    for route in config.routes.list() {
        let names: Vec<&str> = route.transports().map(|n| config.transports[n].name.as_str()).collect();
        output::line(&format!("route {}: by {}", route.name, names.join(", ")))?;
    }
    if config.routes.is_empty() {
        output::remark("no transport is configured: commands that only publish work, `postrider worker` does not");
    }
    output::line("ok")?;
    Ok(ExitCode::SUCCESS)
}

/// Where an API is. What stands behind the host may be a secret of a webhook, and is not shown.
fn shown(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
    if is_bare { origin } else { format!("{origin}/...") }
}

/// Which credentials an account has, never what they are. Those of the configuration are there, or it would not have been loaded.
fn credentials(account: &Account) -> String {
    match account {
        Account::Ses(ses) => match &ses.credentials {
            SesCredentials::Static { session_token: None, .. } => "access key is there".to_owned(),
            SesCredentials::Static { session_token: Some(_), .. } => {
                "access key and session token are there".to_owned()
            }
            SesCredentials::WebIdentity { token_file, .. } => match std::fs::File::open(token_file) {
                Ok(_) => format!("token file {} is there", token_file.display()),
                // Often right: the file is where the workers run.
                Err(error) => format!("token file {} cannot be read here: {error}", token_file.display()),
            },
        },
        Account::Mailjet { .. } => "API key and secret key are there".to_owned(),
        Account::Webhook { .. } => "signing secret is there".to_owned(),
        Account::Sendgrid { .. }
        | Account::Mailgun { .. }
        | Account::Postmark { .. }
        | Account::Resend { .. }
        | Account::Brevo { .. }
        | Account::Sparkpost { .. } => "API key is there".to_owned(),
    }
}
