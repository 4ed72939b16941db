//! A running `postrider gateway` with an API key.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    deadline, ports,
    postrider::Postrider,
    story::{ROUTE, SOON},
};

/// A gateway and what is needed to ask it.
#[derive(Debug)]
pub struct Gateway {
    /// The program.
    pub program: Postrider,
    port: u16,
    admin: u16,
    key: String,
}

/// An answer of HTTP.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as a document.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{} {}", self.head, self.body))
    }
}

/// Makes a key of tenant `shop` in `keys.toml` of a folder.
pub fn new_key(folder: &Path, more: &[&str]) -> Result<String> {
    new_key_of("shop", folder, more)
}

/// The same of any tenant.
pub fn new_key_of(tenant: &str, folder: &Path, more: &[&str]) -> Result<String> {
    let file = folder.join("keys.toml").display().to_string();
    let arguments = [&["keys", "new", "--tenant", tenant, "--keys", &file], more].concat();
    let done = Postrider::command(arguments).run(SOON)?;
    ensure!(done.status.success(), "{}", done.stderr);
    Ok(done.stdout.trim().to_owned())
}

/// The access key id and the secret access key of an API key, with this setting of the section `gateway`.
pub fn aws_keys(folder: &Path, key: &str, setting: &str) -> Result<[String; 2]> {
    let id = key.split('_').nth(1).context("no key")?;
    let file = folder.join("keys.toml").display().to_string();
    let config = format!(
        "[queue]\nurl = \"amqp://localhost\"\n[gateway]\n{setting}\n\
         [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\n{ROUTE}"
    );
    let done = Postrider::command(["keys", "aws", "--keys", &file, "--format", "json", id]).config(config).run(SOON)?;
    ensure!(done.status.success(), "{}", done.stderr);
    let shown: serde_json::Value = serde_json::from_str(&done.stdout)?;
    let text = |name: &str| shown[name].as_str().map(str::to_owned).with_context(|| name.to_owned());
    Ok([text("access_key_id")?, text("secret_access_key")?])
}

impl Gateway {
    /// Starts one with the keys of this folder, which belong to it and others, and waits until it takes jobs.
    pub fn start(queue: &str, store: &str, folder: &Path, key: &str, more: &str) -> Result<Self> {
        let mut gateway = Self::start_only(queue, store, folder, key, more)?;
        let port = gateway.port;
        deadline::wait_for("a gateway that is ready", SOON, || {
            gateway.ask("GET", "/readyz", &[], "").ok().filter(|answer| answer.status == 200)
        })
        .with_context(|| format!("port {port}: {}", gateway.program.stderr()))?;
        gateway.program.wait_for_port(gateway.admin, SOON)?;
        Ok(gateway)
    }

    /// Starts one and waits until it listens.
    pub fn start_only(queue: &str, store: &str, folder: &Path, key: &str, more: &str) -> Result<Self> {
        let (port, admin) = (ports::free()?, ports::free()?);
        let keys = folder.join("keys.toml");
        let config = format!(
            "[queue]\nurl = \"{queue}\"\n[store]\nurl = \"{store}\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n[gateway]\nlisten = \"127.0.0.1:{port}\"\nkeys = \"{}\"\n{more}\n\
             [transport.relay]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\ntls = \"none\"\n{ROUTE}",
            keys.display()
        );
        let mut program = Postrider::command(["gateway"]).config(config).start()?;
        program.wait_for_port(port, SOON)?;
        Ok(Self { program, port, admin, key: key.to_owned() })
    }

    /// Its port for HTTP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The Prometheus page.
    pub fn metrics(&self) -> Result<String> {
        Ok(call(self.admin, "GET", "/metrics", &[], "")?.body)
    }

    /// One request with the gateway's key.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
        let bearer = format!("Bearer {}", self.key);
        call(self.port, method, path, &[&[("authorization", bearer.as_str())], headers].concat(), body)
    }

    /// Hands a job over under an idempotency key.
    pub fn send(&self, key: &str, job: &str) -> Result<Answer> {
        let headers = [("idempotency-key", key), ("content-type", "application/json")];
        self.ask("POST", "/v1/jobs", &headers, job)
    }

    /// The head of a request and the first half of its body, and what is to be sent to complete it.
    pub fn begin(&self, job: &str) -> Result<(TcpStream, String)> {
        let mut stream = connect(self.port)?;
        let (first, rest) = job.split_at(job.len() / 2);
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{first}",
            self.key,
            job.len()
        );
        stream.write_all(head.as_bytes())?;
        Ok((stream, rest.to_owned()))
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// One request on a connection of its own.
pub fn call(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let mut stream = connect(port)?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head = head + name + ": " + value + "\r\n";
    }
    stream.write_all((head + "\r\n" + body).as_bytes())?;
    answer(stream)
}

/// Reads an answer up to the end of its connection.
pub fn answer(mut stream: TcpStream) -> Result<Answer> {
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
