//! Tries the transports of a route in the job's order until one of them ends the attempt. Which outcome leads to the next one is decided in
//! [`crate::decide::failover`]; what follows from the end is not decided here.

mod refusals;

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use postrider_schemas::{EventType, event::PassedOver, meta::Pin};
use tokio::time::{Instant, sleep};

use self::refusals::{circuit_open, crowded, nobody, not_asked, passed_over, paused};
use crate::{
    announce::{may_submit, renew, withdraw},
    attempt::{Right, Task, World, emit},
    circuits::Permit,
    compose::letter::{Letter, indices},
    decide::{
        capabilities::Needs,
        due::is_over,
        failover::{Then, leaves_crowd, then},
        limits::{
            admit::{Admission, Ask},
            line::Who,
        },
        retry::spread,
        route::OnLimit,
        settle::dice,
    },
    dns::Domains,
    limiter::{
        AtPlace, Permission, Subject, Token,
        recipients::{nobody_left, with_unreachable},
        slot::{Slot, Why},
    },
    outcome::{Answer, Mark, Outcome, Refusal, Stage},
    telemetry::{attempts, metrics},
    transport::{NoPlace, Transport, cannot_be_made, crowd::Comer},
};

/// How the attempt ended, and where.
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// The transport that it is about.
    pub transport: String,
    /// The ones before it, and why they did not take the job.
    pub passed_over: Vec<PassedOver>,
    /// The call, where it can be repeated.
    pub pin: Option<Pin>,
    /// The answer to this job's own message opened a circuit.
    pub tripped: bool,
}

impl Ended {
    /// Of a job that was tried nowhere.
    pub fn nowhere() -> Self {
        Self::at("", Outcome::LostClaim)
    }

    fn at(transport: &str, outcome: Outcome) -> Self {
        Self { outcome, transport: transport.to_owned(), passed_over: Vec::new(), pin: None, tripped: false }
    }
}

/// What came of sending.
pub(crate) enum Sent {
    /// An attempt that ended.
    Ended(Ended),
    /// Nothing was tried: a limit, or a transport for which too many wait, makes the job wait until its slot.
    Waits(Slot),
    /// Nothing was taken: the job is too late, or would be after the wait that a limit makes it wait.
    TooLate(Option<Refusal>),
    /// Nothing was tried: the store is away, and the job is not to go without it.
    Away,
    /// Nothing was taken: the worker stops, and the job was only waiting.
    Stopped,
}

/// A question to the limits that is asked with the claim of a job.
pub(crate) struct Question {
    /// About this transport, by its position.
    transport: usize,
    /// The question, which may have to be asked again.
    pub(crate) ask: Ask,
    /// What was known of the recipients' domains: the groups in it are by this.
    domains: Domains,
}

/// What was asked when the job was claimed, with the answer where there was one.
pub(crate) struct Asked {
    pub(crate) question: Question,
    pub(crate) answer: Option<Admission>,
}

/// The question to ask with the claim of a job. Nothing for what goes another way than straight to the first transport, or has to wait for DNS.
pub(crate) fn question(world: &World, task: &Task<'_>) -> Option<Question> {
    if task.meta.pin.is_some() {
        return None;
    }
    let indices = indices(task.job, task.meta.pending.as_deref());
    let domains = world.limiter.domains_at_hand(task.job, &indices)?;
    // Those who are left out change the groups, and may leave nobody.
    if !world.limiter.unreachable(task.job, &indices, &domains).is_empty() {
        return None;
    }
    let groups = world.limiter.groups(task.job, &indices, &domains);
    let transport = task.route.order(task.job.id()).first().copied()?;
    // No token for a transport that would be passed over.
    let is_passed_over = world.transports[transport].capabilities.lack(&Needs::of(task.job)).is_some();
    // And none that would be late when there is a connection.
    let is_crowded = world.transports[transport].is_crowded(task.job.lane());
    if is_passed_over || is_crowded || !world.circuits.is_closed(transport) {
        return None;
    }
    let fresh = task.meta.generation == 0;
    let hold = task.seat.may_hold();
    let subject = Subject { job: task.job, transport, groups: &groups, domains: &domains, fresh, hold };
    let ask = world.limiter.question(subject, task.route.on_limit == OnLimit::Wait)?;
    Some(Question { transport, ask, domains })
}

/// Delivers by the first transport that takes the job, with the claim kept alive meanwhile.
pub(crate) async fn send(world: &World, task: &Task<'_>, right: &Right, asked: Option<Asked>) -> Sent {
    tokio::select! {
        sent = through(world, task, right, asked) => sent,
        never = renew(world, right) => match never {},
    }
}

async fn through(world: &World, task: &Task<'_>, right: &Right, asked: Option<Asked>) -> Sent {
    let now = Timestamp::now();
    let order = match &task.meta.pin {
        None => task.route.order(task.job.id()),
        Some(pin) => {
            let known = world.transports.iter().position(|one| one.name == pin.transport);
            let Some(transport) = known.filter(|_| pin.until > now) else {
                let answer = Answer::local(Stage::Call, "the call can no longer be repeated");
                return Sent::Ended(Ended::at(&pin.transport, Outcome::Unknown(answer)));
            };
            vec![transport]
        }
    };
    // A call that is repeated must be the same to the last byte.
    let dated = task.meta.pin.as_ref().map_or(now, |pin| pin.since);
    let letter = Letter::new(task.job, task.meta.pending.as_deref(), task.meta.part, dated);
    let mut letter = match letter {
        Ok(letter) if task.meta.pin.is_some() => letter.repeated(),
        Ok(letter) => letter,
        Err(error) => return Sent::Ended(Ended::at(&world.transports[order[0]].name, cannot_be_made(&error))),
    };
    // A call that may have been taken goes to whom it went to.
    let checks = task.meta.pin.is_none();
    let (domains, answer) = if let Some(Asked { question: Question { transport, ask, domains }, answer }) = asked {
        (domains, answer.map(|answer| (transport, ask, answer)))
    } else {
        let domains = task.seat.hold_while(world.limiter.domains(task.job, &letter.indices, checks));
        let Some(domains) = task.stop.run_until_cancelled(domains).await else { return Sent::Stopped };
        (domains, None)
    };
    let unreachable = if checks { world.limiter.unreachable(task.job, &letter.indices, &domains) } else { Vec::new() };
    if !unreachable.is_empty() {
        letter.indices.retain(|index| !unreachable.iter().any(|one| one.index == *index));
        if letter.indices.is_empty()
            && let Some(outcome) = nobody_left(unreachable.clone())
        {
            return Sent::Ended(Ended::at(&world.transports[order[0]].name, outcome));
        }
    }
    let groups = world.limiter.groups(task.job, &letter.indices, &domains);
    // Those left out are found by DNS, which may say something else next time: such a call cannot be made again as it was.
    let is_repeatable = unreachable.is_empty();
    let tripped = AtomicBool::new(false);
    let tries =
        Tries { world, task, right, letter: &letter, groups: &groups, domains: &domains, is_repeatable, tripped };
    let mut sent = tries.in_order(&order, answer).await;
    if let Sent::Ended(ended) = &mut sent
        && !unreachable.is_empty()
    {
        let outcome = std::mem::replace(&mut ended.outcome, Outcome::LostClaim);
        ended.outcome = with_unreachable(outcome, unreachable);
    }
    sent
}

/// What is the same for every transport of an attempt.
struct Tries<'a> {
    world: &'a World,
    task: &'a Task<'a>,
    right: &'a Right,
    letter: &'a Letter<'a>,
    groups: &'a [String],
    domains: &'a Domains,
    is_repeatable: bool,
    /// An answer to this job's message opened a circuit.
    tripped: AtomicBool,
}

/// What came of one transport.
enum Try {
    /// The attempt ended here.
    Ended(Ended),
    /// It certainly did not take the job; the next one may.
    Refused(Refusal),
    /// It was paused before anything was said to it.
    Paused,
}

/// Why a transport is not tried now.
enum NotNow {
    /// The job has a slot.
    Waits(Slot),
    /// It has to wait, and is in no line.
    Full(Refusal),
    /// Too many wait for it: the job would be put away until then.
    Crowded(Slot),
    /// The store is away, and the job is not to go without it.
    Away,
    /// Its time was over when there was a connection.
    TooLate,
    /// The worker stops.
    Stopped,
}

/// Why a job gives its connection back unused, or does not wait for one.
enum Back {
    /// Its token is late, and another one is not there yet.
    Token(AtPlace),
    /// Its time is over.
    TooLate,
    /// Too many wait before it: for so long it is put away.
    Crowd(Duration),
    /// The worker stops.
    Stopped,
}

/// A worker that stops leaves so long to a job that has a connection, at most, until the message itself is on its way.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// So often a job gives its place back to wait for another token; then it goes.
const ROUNDS_MAX: u32 = 3;

impl Tries<'_> {
    /// `asked` is what the limits said before of a transport, by its position.
    async fn in_order(&self, order: &[usize], mut asked: Option<(usize, Ask, Admission)>) -> Sent {
        let needs = Needs::of(self.task.job);
        let mut refusals: Vec<(usize, Refusal)> = Vec::new();
        let (mut limited, mut crowd) = (None, None);
        for n in order.iter().copied() {
            if let Some(refusal) = not_asked(self.world, n, &needs) {
                refusals.push((n, refusal));
                continue;
            }
            let queue = self.on_limit() == OnLimit::Wait;
            let answer = asked.take_if(|(transport, ..)| *transport == n).map(|(_, ask, answer)| (ask, answer));
            let tried = match self.when_admitted(n, queue, answer, &refusals, None).await {
                Ok(tried) => tried,
                Err(NotNow::Waits(slot)) => return Sent::Waits(slot),
                Err(NotNow::Away) => return Sent::Away,
                Err(NotNow::TooLate) => return Sent::TooLate(None),
                Err(NotNow::Stopped) => return Sent::Stopped,
                Err(NotNow::Full(refusal)) if self.on_limit() == OnLimit::Expire => {
                    return Sent::TooLate(Some(refusal));
                }
                Err(NotNow::Full(refusal)) => {
                    limited = limited.or(Some(n));
                    refusals.push((n, refusal));
                    continue;
                }
                Err(NotNow::Crowded(slot)) => {
                    let is_silent = self.world.transports[n].is_silent(self.task.job.lane());
                    if !leaves_crowd(self.on_limit(), is_silent) {
                        return Sent::Waits(slot);
                    }
                    crowd = crowd.or(Some(slot));
                    refusals.push((n, crowded()));
                    continue;
                }
            };
            match tried {
                Try::Ended(ended) => return Sent::Ended(ended),
                Try::Refused(refusal) => refusals.push((n, refusal)),
                Try::Paused => match self.on_limit() {
                    OnLimit::Next => limited = limited.or(Some(n)),
                    OnLimit::Expire => return Sent::TooLate(Some(paused())),
                    OnLimit::Wait => {
                        limited = Some(n);
                        break;
                    }
                },
            }
        }
        // Nobody else took it: the job waits for its turn at the first one where too many did, or for the first one that only a limit kept it from.
        if let Some(slot) = crowd {
            return Sent::Waits(slot);
        }
        if let Some(n) = limited {
            let others: Vec<_> = refusals.iter().filter(|(one, _)| *one != n).cloned().collect();
            match self.when_admitted(n, true, None, &others, Some(Instant::now())).await {
                Err(NotNow::Waits(slot) | NotNow::Crowded(slot)) => return Sent::Waits(slot),
                Err(NotNow::Away) => return Sent::Away,
                Err(NotNow::TooLate) => return Sent::TooLate(None),
                Err(NotNow::Stopped) => return Sent::Stopped,
                Err(NotNow::Full(_)) => {}
                Ok(tried) => {
                    refusals = others;
                    match tried {
                        Try::Ended(ended) => return Sent::Ended(ended),
                        Try::Refused(refusal) => refusals.push((n, refusal)),
                        Try::Paused => refusals.push((n, paused())),
                    }
                }
            }
        }
        Sent::Ended(Ended { tripped: self.tripped.load(Ordering::Relaxed), ..nobody(self.world, refusals) })
    }

    /// What the route says. A call that may have been taken waits in any case: it goes nowhere else, and what became of it is not known yet.
    fn on_limit(&self) -> OnLimit {
        if self.task.meta.pin.is_some() { OnLimit::Wait } else { self.task.route.on_limit }
    }

    fn subject(&self, transport: usize) -> Subject<'_> {
        let fresh = self.task.meta.generation == 0;
        let hold = self.task.seat.may_hold();
        Subject { job: self.task.job, transport, groups: self.groups, domains: self.domains, fresh, hold }
    }

    /// The job as one of those who wait for a transport, where it may be put away instead: not what is finished where it was begun, nor the probe of a
    /// circuit.
    fn comer(&self, n: usize) -> Option<Comer<'_>> {
        let Self { world, task, .. } = *self;
        if task.meta.pin.is_some() || !world.circuits.is_closed(n) {
            return None;
        }
        let who = Who { tenant: task.job.tenant().as_str(), weight: world.limiter.weight(task.job.tenant()) };
        let dice = spread(dice(task.job), task.meta.parks);
        Some(Comer { who, is_fresh: task.meta.generation == 0, seats: task.seat.in_hand()?, dice })
    }

    /// Resolves when the worker stops: at once for who waits for a connection or a call. Who has one is done in a moment, unless nobody answers.
    async fn stopped(&self, has_place: &AtomicBool) {
        self.task.stop.cancelled().await;
        if has_place.load(Ordering::Relaxed) {
            sleep(FINISH_MAX.min(self.world.config.worker.drain / 2)).await;
        }
    }

    fn away(&self, n: usize, wait: Duration) -> NotNow {
        NotNow::Crowded(Slot::after(wait, Why::Crowd(self.world.transports[n].name.clone())))
    }

    /// One transport, once the limits let the job go there. `answer` is what they said before, where they were asked. What was heard of a pause
    /// before `since` is older than what they will say.
    async fn when_admitted(
        &self,
        n: usize,
        queue: bool,
        answer: Option<(Ask, Admission)>,
        refusals: &[(usize, Refusal)],
        since: Option<Instant>,
    ) -> Result<Try, NotNow> {
        let Self { world, task, .. } = *self;
        let mut answer = answer;
        let mut round = 0;
        loop {
            // Where connections are scarce the token is asked for with one at hand: it would be late when there is one. A probe needs it before, and
            // who will be told to wait need not wait for that.
            let is_scarce = world.transports[n].is_crowded(task.job.lane()) && world.circuits.is_closed(n);
            let permission = if answer.is_none() && is_scarce && !world.limiter.is_paused(self.subject(n)) {
                let comer = self.comer(n);
                if let Some(wait) = comer.and_then(|one| world.transports[n].put_away(task.job.lane(), &one)) {
                    return Err(self.away(n, wait));
                }
                Permission::Go(Token::NONE)
            } else {
                let admitted = world.limiter.admit(self.subject(n), queue, task.seat, answer.take());
                task.stop.run_until_cancelled(admitted).await.ok_or(NotNow::Stopped)?
            };
            let token = match permission {
                Permission::Go(token) => token,
                Permission::Park(slot) => return Err(NotNow::Waits(slot)),
                Permission::Full(refusal) => return Err(NotNow::Full(refusal)),
                Permission::Away => return Err(NotNow::Away),
            };
            match self.by(n, refusals, token, queue, round, since).await {
                Ok(tried) => return Ok(tried),
                Err(Back::Token(AtPlace::Later(ask, admission))) => answer = Some((ask, admission)),
                Err(Back::Token(_)) => return Err(NotNow::Away),
                Err(Back::TooLate) => return Err(NotNow::TooLate),
                Err(Back::Crowd(wait)) => return Err(self.away(n, wait)),
                Err(Back::Stopped) => return Err(NotNow::Stopped),
            }
            round += 1;
        }
    }

    /// One transport. Where the token's time is long past when there is a connection, another one is asked for; an error where that has to wait.
    async fn by(
        &self,
        n: usize,
        refusals: &[(usize, Refusal)],
        token: Token,
        queue: bool,
        round: u32,
        since: Option<Instant>,
    ) -> Result<Try, Back> {
        let Self { world, task, right, letter, is_repeatable, .. } = *self;
        let transport = &world.transports[n];
        if let Permit::Open(wait, reason) = world.circuits.ask(n).await {
            return Ok(Try::Refused(circuit_open(wait, &reason)));
        }
        let is_probe = !world.circuits.is_closed(n);
        let comer = self.comer(n);
        let call = task.meta.pin.clone().or_else(|| repeatable(transport, letter).filter(|_| is_repeatable));
        let (has_place, submitted) = (AtomicBool::new(false), AtomicBool::new(false));
        let group = self.groups.first().map_or("", String::as_str);
        if round == 0 {
            metrics::begun(task.job, &transport.name, group);
        }
        let (step, begun) = (attempts::deliver_step(transport), Instant::now());
        let outcome = {
            // By reference: by value it would be a part of every future below it.
            let may_submit = pin!(may_submit(world, task, right, transport, call.as_ref(), &submitted));
            let mut delivery = pin!(async {
                let place = match transport.place(letter, comer.as_ref()).await {
                    Ok(place) => place,
                    Err(NoPlace::Outcome(outcome)) => return Ok(outcome),
                    Err(NoPlace::Crowd(wait)) => return Err(Back::Crowd(wait)),
                };
                has_place.store(true, Ordering::Relaxed);
                let now = Instant::now();
                // What waited for others on purpose did not do so because of a stall.
                let without_linger = now.checked_sub(transport.lingered(&place)).unwrap_or(now);
                if !is_probe && round < ROUNDS_MAX && token.is_late(without_linger) {
                    // Who had its turn before does not go to the end of its line.
                    let fresh = self.subject(n).fresh && token == Token::NONE;
                    let subject = Subject { fresh, ..self.subject(n) };
                    match world.limiter.at_place(subject, queue, round > 0).await {
                        AtPlace::Go => {}
                        later => return Err(Back::Token(later)),
                    }
                }
                // It may have waited long by now. A call that may have been taken is finished all the same.
                if task.meta.pin.is_none() && is_over(task.job, Timestamp::now()) {
                    return Err(Back::TooLate);
                }
                Ok(transport.deliver_at(place, letter, may_submit).await)
            });
            tokio::select! {
                biased;
                outcome = &mut delivery => outcome?,
                // Who is in the middle of it goes on.
                () = world.limiter.paused(self.subject(n), since) => {
                    if !submitted.load(Ordering::Relaxed) {
                        return Ok(Try::Paused);
                    }
                    delivery.await?
                }
                () = self.stopped(&has_place) => {
                    if !submitted.load(Ordering::Relaxed) {
                        return Err(Back::Stopped);
                    }
                    delivery.await?
                }
            }
        };
        attempts::note_outcome(&step, &outcome);
        drop(step);
        metrics::ended(task.job, &transport.name, group, &outcome, begun.elapsed());
        transport.heard(&outcome);
        let outcome = world.circuits.doubted(n, outcome, task.job).await;
        if let Some(event) = world.circuits.heard(n, &outcome).await {
            if event.kind == EventType::CircuitOpened && is_own(&outcome) {
                self.tripped.store(true, Ordering::Relaxed);
            }
            emit(world, &[event]).await;
        }
        world.limiter.heard(self.subject(n), &outcome).await;
        if let Some(until) = transport.used_up_until() {
            world.limiter.rest(n, until).await;
        }
        let refusal = match (then(&outcome, self.on_limit()), outcome) {
            (Then::Next, Outcome::Refused { refusal, .. }) => refusal,
            (_, outcome) => {
                let passed_over = passed_over(world, refusals, None);
                let (transport, tripped) = (transport.name.clone(), self.tripped.load(Ordering::Relaxed));
                return Ok(Try::Ended(Ended { outcome, transport, passed_over, pin: call, tripped }));
            }
        };
        if submitted.load(Ordering::Relaxed) && !withdraw(world, task, right).await {
            return Ok(Try::Ended(Ended::at(&transport.name, Outcome::LostClaim)));
        }
        Ok(Try::Refused(refusal))
    }
}

/// Whether an answer was given to one message, and not at the door.
fn is_own(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { refusal, .. } if refusal.answer.stage.is_of_a_message() && refusal.answer.mark != Mark::Pause)
}

/// The call that is about to be made, where the transport will recognise it.
fn repeatable(transport: &Transport, letter: &Letter<'_>) -> Option<Pin> {
    let until = letter.dated.checked_add(transport.repeatable_for(letter)?).ok()?;
    Some(Pin { transport: transport.name.clone(), since: letter.dated, until })
}
