//! Prometheus: scrapes one address each half second, and answers queries about what it saw.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::folder::Folder;
use crate::http::{Endpoint, segment};
use crate::process::{self, Process, Spec, Stop};
use crate::{deadline, ports};

const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    api: Endpoint,
    _folder: Folder,
}

impl Prometheus {
    /// Where the program is, if it is installed.
    pub fn program() -> Option<PathBuf> {
        process::find("prometheus".as_ref()).ok()
    }

    /// Starts one that scrapes `target` (`host:port`) and evaluates the rules of a file.
    pub fn start(target: &str, rules: &str) -> Result<Self> {
        let (folder, port) = (Folder::new("prometheus")?, ports::free()?);
        let rules = folder.write("rules.yaml", rules)?;
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{ job_name: postrider, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n",
            rules.display()
        );
        let config = folder.write("prometheus.yaml", &config)?;
        let api = Endpoint { address: format!("127.0.0.1:{port}"), credentials: String::new() };
        let process = Process::start(
            Spec::new("prometheus", "prometheus", folder.path())?
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
                .arg(format!("--web.listen-address={}", api.address))
                .stop(Stop::Term(Duration::from_secs(10))),
        )?;
        let prometheus = Self { _process: process, api, _folder: folder };
        let is_up = || prometheus.api.expect("GET", "/-/ready", "").ok().map(drop);
        deadline::wait_for("Prometheus to be ready", START_LIMIT, is_up)?;
        Ok(prometheus)
    }

    /// The answer to an instant query: one entry for each series. An error is one of the query.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/api/v1/query?query={}", segment(query))).with_context(|| query.to_owned())?;
        Ok(answer["result"].as_array().cloned().unwrap_or_default())
    }

    /// The health of its one target and the error of the last scrape.
    pub fn target(&self) -> Result<(String, String)> {
        let answer = self.get("/api/v1/targets")?;
        let target = answer["activeTargets"].get(0).context("it has no target yet")?;
        let text = |name: &str| target[name].as_str().unwrap_or_default().to_owned();
        Ok((text("health"), text("lastError")))
    }

    /// The health and the last error of each alert.
    pub fn alerts(&self) -> Result<Vec<(String, String, String)>> {
        let answer = self.get("/api/v1/rules")?;
        let groups = answer["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let text = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Ok(rules.map(|rule| (text(&rule, "name"), text(&rule, "health"), text(&rule, "lastError"))).collect())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.api.request("GET", path, "")?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{status}: {body}"))?;
        ensure!(answer["status"] == "success", "{status}: {body}");
        Ok(answer["data"].clone())
    }
}
