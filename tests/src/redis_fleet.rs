//! Redis in numbers: a cluster of three masters, and a master with a replica under Sentinel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::deadline::wait_for;
use crate::folder::Folder;
use crate::ports;
use crate::process::{self, Process, Spec};
use crate::redis::{Redis, answers, cli};

const LIMIT: Duration = Duration::from_mins(1);
/// The name that the sentinels give to the master they watch.
pub const MASTER: &str = "postrider";

/// Three masters that share the slots, no replicas.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes and waits until every one sees all slots served.
    pub fn start() -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let bus = ports::free()?.to_string();
            // A cluster node has one database only; the last word on the command line wins.
            nodes.push(Redis::start_with(&[
                "--databases",
                "1",
                "--appendonly",
                "no",
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "2000",
            ])?);
        }
        let mut args = vec!["--cluster".to_owned(), "create".to_owned()];
        args.extend(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        args.extend(["--cluster-replicas", "0", "--cluster-yes"].map(str::to_owned));
        process::run("redis-cli", args, &[], LIMIT)?;
        wait_for("a complete Redis cluster", LIMIT, || {
            let whole =
                |node: &Redis| node.cli(&["CLUSTER", "INFO"]).is_ok_and(|info| info.contains("cluster_state:ok"));
            nodes.iter().all(whole).then_some(())
        })?;
        Ok(Self { nodes })
    }

    /// `redis+cluster://host:port,host:port,host:port`
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The masters.
    pub fn nodes(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }
}

/// A master and a replica, both watched.
#[derive(Debug)]
pub struct RedisSentinel {
    sentinels: Vec<Process>,
    servers: [Redis; 2],
    ports: Vec<u16>,
    folder: Folder,
}

impl RedisSentinel {
    /// Starts all of it with `count` sentinels (1 to 3, a majority decides) and waits until they know the replica and one another.
    pub fn start(count: usize) -> Result<Self> {
        let master = Redis::start()?;
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()])?;
        let folder = Folder::new("sentinel")?;
        let mut fleet = Self { sentinels: Vec::new(), servers: [master, replica], ports: Vec::new(), folder };
        for number in 0..count {
            fleet.add_sentinel(number, count / 2 + 1)?;
        }
        let others = (count - 1).to_string();
        wait_for("sentinels that know everyone", LIMIT, || {
            let knows = |port: &u16| {
                let Ok(answer) = cli(*port, &["SENTINEL", "MASTER", MASTER]) else { return false };
                field(&answer, "num-slaves") == Some("1")
                    && field(&answer, "num-other-sentinels") == Some(others.as_str())
            };
            fleet.ports.iter().all(knows).then_some(())
        })?;
        let in_step =
            || fleet.servers[1].cli(&["INFO", "replication"]).ok()?.contains("master_link_status:up").then_some(());
        wait_for("a replica in step with its master", LIMIT, in_step)?;
        Ok(fleet)
    }

    fn add_sentinel(&mut self, number: usize, quorum: usize) -> Result<()> {
        let port = ports::free()?;
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {folder}\n\
             sentinel monitor {MASTER} 127.0.0.1 {master} {quorum}\n\
             sentinel down-after-milliseconds {MASTER} 700\nsentinel failover-timeout {MASTER} 5000\n",
            folder = self.folder.path().display(),
            master = self.servers[0].port(),
        );
        let file = self.folder.write(&format!("sentinel{number}.conf"), &config)?;
        let spec =
            Spec::new(&format!("sentinel{number}"), "redis-server", self.folder.path())?.arg(file).arg("--sentinel");
        self.sentinels.push(Process::start_ready(spec, LIMIT, || answers(port))?);
        self.ports.push(port);
        Ok(())
    }

    /// `redis+sentinel://host:port,host:port/MASTER/0`
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}/0", self.sentinels().join(","))
    }

    /// `host:port` of every sentinel.
    pub fn sentinels(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Port of the master, as the first sentinel sees it.
    pub fn master_port(&self) -> Result<u16> {
        let port = self.ports.first().context("no sentinel")?;
        let answer = cli(*port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER])?;
        answer.lines().nth(1).and_then(|line| line.trim().parse().ok()).context("the sentinel names no master")
    }

    /// The server that is master now.
    pub fn master(&mut self) -> Result<&mut Redis> {
        let port = self.master_port()?;
        self.servers.iter_mut().find(|server| server.port() == port).context("a master that nobody started")
    }

    /// Kills the master; returns when the replica has taken over and accepts writes.
    pub fn failover(&mut self) -> Result<()> {
        let old = self.master_port()?;
        self.master()?.kill9()?;
        wait_for("a failover by Sentinel", LIMIT, || {
            let now = self.master_port().ok().filter(|port| *port != old)?;
            cli(now, &["ROLE"]).ok()?.starts_with("master").then_some(())
        })
    }

    /// Folders of everything that runs here.
    pub fn folders(&self) -> Vec<&Path> {
        self.servers.iter().map(Redis::folder).chain([self.folder.path()]).collect()
    }
}

/// The value after `key` in an answer that alternates keys and values, a line each.
fn field<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = answer.lines();
    lines.find(|line| *line == key)?;
    lines.next()
}
