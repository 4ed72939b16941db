//! Users of a broker for one virtual host, with the permissions that `deploy/rabbitmq` ships.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::http::{Endpoint, segment};
use crate::rabbitmq::Vhost;

/// One user for each kind, deleted on drop. Their names begin with that of the virtual host.
#[derive(Debug)]
pub struct BrokerUsers {
    api: Endpoint,
    authority: String,
    vhost: String,
    names: Vec<String>,
}

impl BrokerUsers {
    /// Makes the users and gives them the shipped permissions.
    pub fn make(vhost: &Vhost) -> Result<Self> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rabbitmq/permissions.json");
        let mut shipped: Value = serde_json::from_str(&std::fs::read_to_string(file).context(file)?)?;
        let (api, authority) = (vhost.endpoint()?.clone(), vhost.host());
        let mut users = Self { api, authority, vhost: vhost.name().to_owned(), names: Vec::new() };
        for list in ["permissions", "topic_permissions"] {
            for one in shipped[list].as_array_mut().context("no permissions")? {
                let name = users.name(one["user"].as_str().context("no user")?);
                (one["user"], one["vhost"]) = (name.as_str().into(), users.vhost.as_str().into());
                if !users.names.contains(&name) {
                    let body = format!(r#"{{"password":"{name}","tags":""}}"#);
                    users.api.expect("PUT", &format!("/api/users/{}", segment(&name)), &body)?;
                    users.names.push(name);
                }
            }
        }
        users.api.expect("POST", "/api/definitions", &shipped.to_string())?;
        Ok(users)
    }

    /// The name on this broker of a user that the shipped permissions name.
    pub fn name(&self, shipped: &str) -> String {
        format!("{}-{shipped}", self.vhost)
    }

    /// The address of the virtual host for a user that the shipped permissions name.
    pub fn url(&self, shipped: &str) -> String {
        let name = self.name(shipped);
        format!("amqp://{name}:{name}@{}/{}", self.authority, self.vhost)
    }
}

impl Drop for BrokerUsers {
    fn drop(&mut self) {
        for name in &self.names {
            // The node ends with the tests anyway.
            let _ = self.api.request("DELETE", &format!("/api/users/{}", segment(name)), "");
        }
    }
}
