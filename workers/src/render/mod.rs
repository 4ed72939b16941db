//! Renders templates where they can be stopped. What is plain is rendered here; every other template in a process of its own kind that has little memory
//! and little time, of which a worker keeps a few. A template that breaks a limit takes its process with it, and nothing else: the job is over at once,
//! its copies are not tried, and a tenant whose templates take long has half of the processes at most.

mod child;
mod refused;
pub mod serve;
mod wire;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use postrider_schemas::{
    Content, Job,
    template::{survey, weight},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tracing::{info, warn};

use self::{
    child::{Child, Lost},
    refused::{Key, Refused},
};
use crate::message::{
    ComposeError,
    template::{self, Fault, Rendered, Texts},
};

/// Processes of a worker.
const PROCESSES: usize = 2;
/// A job that has not had its turn after this is deferred: what a tenant's slow templates keep waiting is not to keep others from being fetched.
const TURN_MAX: Duration = Duration::from_secs(1);
/// How often a job is tried when processes are ended from outside.
const TRIES: usize = 2;
/// Most tags, and the largest variables, of a template that is rendered here: a process would cost more.
const PLAIN_TAGS_MAX: usize = 256;
const PLAIN_VARIABLES_MAX: usize = 64 * 1024;

/// The processes of a worker, started when there is work for them.
pub struct Renderer {
    program: PathBuf,
    idle: Mutex<Vec<Child>>,
    places: Arc<Semaphore>,
    /// Tenants that have a process or wait for one.
    tenants: Mutex<HashMap<String, Arc<Semaphore>>>,
    processes: usize,
    refused: Mutex<Refused>,
}

/// Why a job has no texts.
#[derive(Debug, PartialEq, Eq)]
pub enum NotRendered {
    /// It never will.
    Never(ComposeError),
    /// There was no turn for it, or no process that answered. The job is as good as before.
    NotNow,
}

/// The right to a process.
struct Turn<'a> {
    renderer: &'a Renderer,
    tenant: &'a str,
    of_tenant: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Renderer {
    /// `program` is a `postrider`, which is started as `postrider render`.
    pub fn new(program: PathBuf) -> Self {
        Self::with_processes(program, PROCESSES)
    }

    /// With so many processes at most, at least one.
    pub fn with_processes(program: PathBuf, processes: usize) -> Self {
        let processes = processes.max(1);
        Self {
            program,
            idle: Mutex::default(),
            places: Arc::new(Semaphore::new(processes)),
            tenants: Mutex::default(),
            processes,
            refused: Mutex::default(),
        }
    }

    /// Starts this very program, also where its file was replaced meanwhile.
    pub fn own() -> std::io::Result<Self> {
        let running = Path::new("/proc/self/exe");
        Ok(Self::new(if running.exists() { running.to_owned() } else { std::env::current_exe()? }))
    }

    /// The texts of a job that takes no process: finished bodies, and plain templates.
    pub fn at_once<'a>(&self, job: &'a Job) -> Option<Result<Rendered<'a>, ComposeError>> {
        is_plain(job).then(|| template::render(job))
    }

    /// The texts of a job.
    pub async fn render<'a>(&self, job: &'a Job) -> Result<Rendered<'a>, NotRendered> {
        if let Some(rendered) = self.at_once(job) {
            return rendered.map_err(NotRendered::Never);
        }
        let question = question(job);
        let key: Key = Sha256::digest(&question).into();
        let texts = self.asked(job, &question, key).await?;
        template::finished(texts).map_err(NotRendered::Never)
    }

    async fn asked(&self, job: &Job, question: &[u8], key: Key) -> Result<Texts, NotRendered> {
        self.check(&key)?;
        let Ok(_turn) = timeout(TURN_MAX, self.turn(job.tenant().as_str())).await else {
            return Err(NotRendered::NotNow);
        };
        // A copy of it may have been tried while this one waited.
        self.check(&key)?;
        let mut why = String::new();
        for _ in 0..TRIES {
            let mut child = match self.child().await {
                Ok(child) => child,
                Err(reason) => {
                    why = reason;
                    continue;
                }
            };
            match child.render(question).await {
                Ok(answer) => {
                    lock(&self.idle).push(child);
                    return answer.map_err(|fault| self.over(fault, key));
                }
                Err(Lost::Template(reason)) => {
                    info!(job.id = %job.id(), reason, "A render process was ended by the template of job {}", job.id());
                    return Err(self.over(serve::limit_fault(&reason), key));
                }
                Err(Lost::Elsewhere(reason)) => {
                    why = reason;
                    if lock(&self.refused).strike(key, &why) {
                        return Err(NotRendered::Never(serve::limit_fault(&why).into()));
                    }
                }
            }
        }
        warn!(job.id = %job.id(), why, "The template of job {} could not be rendered; it is tried again in some seconds", job.id());
        Err(NotRendered::NotNow)
    }

    /// Refuses what broke a limit before.
    fn check(&self, key: &Key) -> Result<(), NotRendered> {
        match lock(&self.refused).reason(key) {
            Some(reason) => Err(NotRendered::Never(serve::limit_fault(reason).into())),
            None => Ok(()),
        }
    }

    fn over(&self, fault: Fault, key: Key) -> NotRendered {
        if let Fault::Limit { reason, .. } = &fault {
            lock(&self.refused).limit(key, reason.clone());
        }
        NotRendered::Never(fault.into())
    }

    /// An idle process, or a new one.
    async fn child(&self) -> Result<Child, String> {
        loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some(mut child) => {
                    if child.is_usable() {
                        return Ok(child);
                    }
                }
                None => return Child::start(&self.program).await,
            }
        }
    }

    /// Waits for a process: first among the tenant's own jobs, then among the tenants.
    async fn turn<'a>(&'a self, tenant: &'a str) -> Turn<'a> {
        let own = {
            let mut tenants = lock(&self.tenants);
            let share = (self.processes / 2).max(1);
            Arc::clone(tenants.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(share))))
        };
        let forget = Forget { renderer: self, tenant };
        // Neither is ever closed.
        let of_tenant = own.acquire_owned().await.ok();
        let of_all = Arc::clone(&self.places).acquire_owned().await.ok();
        drop(forget);
        Turn { renderer: self, tenant, of_tenant, _of_all: of_all }
    }

    /// Forgets a tenant of whom nobody waits or has a process.
    fn forget(&self, tenant: &str) {
        let mut tenants = lock(&self.tenants);
        if tenants.get(tenant).is_some_and(|own| Arc::strong_count(own) == 1) {
            tenants.remove(tenant);
        }
    }
}

/// Who gives up waiting is forgotten as well.
struct Forget<'a> {
    renderer: &'a Renderer,
    tenant: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.renderer.forget(self.tenant);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.of_tenant.take());
        self.renderer.forget(self.tenant);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each use is one step: nothing can be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the texts of a job cost no more here than a process would.
fn is_plain(job: &Job) -> bool {
    let Content::Template { text, html, variables } = job.content() else { return true };
    let sources = [Some(job.subject()), text.as_deref(), html.as_deref()];
    let tags = sources.into_iter().flatten().try_fold(0, |tags, source| {
        let survey = survey(source).ok().filter(|survey| survey.is_plain)?;
        Some(tags + survey.tags)
    });
    tags.is_some_and(|tags| tags <= PLAIN_TAGS_MAX) && weight(variables, PLAIN_VARIABLES_MAX).is_some()
}

fn question(job: &Job) -> Vec<u8> {
    let Content::Template { text, html, variables } = job.content() else { return Vec::new() };
    // String-keyed maps of JSON values: serde_json has nothing to refuse in them.
    let variables = serde_json::to_vec(variables).unwrap_or_default();
    wire::encode([
        Some(job.subject().as_bytes()),
        text.as_deref().map(str::as_bytes),
        html.as_deref().map(str::as_bytes),
        Some(&variables),
    ])
}
