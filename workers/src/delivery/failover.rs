//! Tries the transports of a route in the job's order until one of them ends the attempt. Which outcome leads to the next one is decided in
//! [`crate::policy::failover`]; what follows from the end is not decided here.

mod refusals;

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use postrider_schemas::{EventType, meta::Pin};
use tokio::time::{Instant, sleep};

use self::refusals::{circuit_open, no_transport_left, not_asked, passed_over, paused, transport_overloaded};
use crate::{
    circuit_breakers::BreakerPermit,
    concurrency::bulkhead::EntryRequest,
    delivery::{
        attempt::{Attempt, Authorization, FinishedAttempt},
        context::Context,
        events::tell_once,
        ledger_updates::{record_submitting, record_withdrawn, renew_lease},
        report,
    },
    dns::DomainAnswers,
    message::{
        outgoing::{OutgoingMessage, indices},
        template::Rendered,
    },
    policy::{
        capabilities::Needs,
        decision::dice,
        failover::{FailoverStep, leaves_overloaded, next_step},
        outcome::{Answer, Mark, Outcome, Refusal, Stage},
        rate_limit::admit::{Admission, AdmissionRequest},
        rejected,
        retry::spread,
        route::OnLimit,
        schedule::is_over,
    },
    rate_limit::{
        LimitAnswer, Subject, Token,
        deferral::{Deferral, Slot},
        unreachable_domains::{nobody_left, with_unreachable},
    },
    render::NotRendered,
    telemetry::metrics,
    transport::{NoPermit, Transport, cannot_be_made},
};

/// A question to the limits that is asked with the claim of a job.
pub(crate) struct LimitQuery {
    /// About this transport, by its position.
    transport: usize,
    /// The question, which may have to be asked again.
    pub(crate) ask: AdmissionRequest,
    /// What was known of the recipients' domains: the groups in it are by this.
    domains: DomainAnswers,
}

/// What was asked when the job was claimed, with the answer where there was one.
pub(crate) struct AnsweredLimitQuery {
    pub(crate) question: LimitQuery,
    pub(crate) answer: Option<Admission>,
}

/// The question to ask with the claim of a job. Nothing for what goes another way than straight to the first transport, or has to wait for DNS.
pub(crate) fn limit_query(context: &Context, attempt: &Attempt<'_>) -> Option<LimitQuery> {
    if attempt.meta.pin.is_some() {
        return None;
    }
    let indices = indices(attempt.job, attempt.meta.pending.as_deref());
    let domains = context.limiter.domains_at_hand(attempt.job, &indices)?;
    // Those who are left out change the groups, and may leave nobody.
    if !context.limiter.unreachable(attempt.job, &indices, &domains).is_empty() {
        return None;
    }
    let groups = context.limiter.mailbox_providers(attempt.job, &indices, &domains);
    let transport = attempt.route.order(attempt.job.id()).first().copied()?;
    // No token for a transport that would be passed over.
    let is_passed_over = context.transports[transport].capabilities.lack(&Needs::of(attempt.job)).is_some();
    // And none that would be late when there is a connection.
    let is_crowded = context.transports[transport].is_saturated(attempt.job.lane());
    if is_passed_over || is_crowded || !context.breakers.is_closed(transport) {
        return None;
    }
    let fresh = attempt.meta.generation == 0;
    let hold = attempt.job_slot.may_hold();
    let subject = Subject { job: attempt.job, transport, groups: &groups, domains: &domains, fresh, hold };
    let ask = context.limiter.question(subject, attempt.route.on_limit == OnLimit::Wait)?;
    Some(LimitQuery { transport, ask, domains })
}

/// Delivers by the first transport that takes the job, with the claim kept alive meanwhile.
pub(crate) async fn send(
    context: &Context,
    attempt: &Attempt<'_>,
    authorization: &Authorization,
    asked: Option<AnsweredLimitQuery>,
) -> Result<FinishedAttempt, Deferral> {
    tokio::select! {
        sent = run(context, attempt, authorization, asked) => sent,
        never = renew_lease(context, authorization) => match never {},
    }
}

async fn run(
    context: &Context,
    attempt: &Attempt<'_>,
    authorization: &Authorization,
    asked: Option<AnsweredLimitQuery>,
) -> Result<FinishedAttempt, Deferral> {
    let now = context.now();
    let order = match &attempt.meta.pin {
        None => attempt.route.order(attempt.job.id()),
        Some(pin) => {
            // Not of any transport: only of those that this job may go to.
            let mut order = attempt.route.order(attempt.job.id()).into_iter();
            let known = order.find(|n| context.transports[*n].name == pin.transport);
            let Some(transport) = known.filter(|_| pin.until > now) else {
                let answer = Answer::local(Stage::Call, "the call can no longer be repeated");
                return Ok(FinishedAttempt::at(&pin.transport, Outcome::Unknown(answer)));
            };
            vec![transport]
        }
    };
    // A call that is repeated must be the same to the last byte.
    let dated = attempt.meta.pin.as_ref().map_or(now, |pin| pin.since);
    let texts = match rendered(context, attempt).await {
        Some(Ok(texts)) => texts,
        Some(Err(NotRendered::Never(error))) => {
            return Ok(FinishedAttempt::at(&context.transports[order[0]].name, cannot_be_made(&error)));
        }
        Some(Err(NotRendered::NotNow)) => {
            return Err(Deferral::Render(Slot::after(render_wait(attempt))));
        }
        None => return Err(Deferral::Stopping),
    };
    let mut message =
        OutgoingMessage::rendered(attempt.job, attempt.meta.pending.as_deref(), attempt.meta.part, dated, texts);
    if attempt.meta.pin.is_some() {
        message = message.repeated();
    }
    // A call that may have been taken goes to whom it went to.
    let checks = attempt.meta.pin.is_none();
    let (domains, answer) =
        if let Some(AnsweredLimitQuery { question: LimitQuery { transport, ask, domains }, answer }) = asked {
            (domains, answer.map(|answer| (transport, ask, answer)))
        } else {
            let domains = attempt.job_slot.hold_while(context.limiter.domains(attempt.job, &message.indices, checks));
            let Some(domains) = attempt.stop.run_until_cancelled(domains).await else { return Err(Deferral::Stopping) };
            (domains, None)
        };
    let mut unreachable =
        if checks { context.limiter.unreachable(attempt.job, &message.indices, &domains) } else { Vec::new() };
    // Those left out are found by DNS, which may say something else next time: such a call cannot be made again as it was.
    let is_repeatable = unreachable.is_empty();
    unreachable.extend(rejected::refusals(attempt.job, attempt.meta.pending.as_deref()));
    if !unreachable.is_empty() {
        message.indices.retain(|index| !unreachable.iter().any(|one| one.index == *index));
        if message.indices.is_empty()
            && let Some(outcome) = nobody_left(unreachable.clone())
        {
            return Ok(FinishedAttempt::at(&context.transports[order[0]].name, outcome));
        }
    }
    let groups = context.limiter.mailbox_providers(attempt.job, &message.indices, &domains);
    let tripped = AtomicBool::new(false);
    let tries = FailoverRun {
        context,
        attempt,
        authorization,
        message: &message,
        groups: &groups,
        domains: &domains,
        is_repeatable,
        tripped,
    };
    let mut sent = tries.in_order(&order, answer).await;
    if let Ok(ended) = &mut sent
        && !unreachable.is_empty()
    {
        let outcome = std::mem::replace(&mut ended.outcome, Outcome::LostClaim);
        ended.outcome = with_unreachable(outcome, unreachable);
    }
    sent
}

/// The texts of the job; nothing where the worker stops meanwhile.
async fn rendered<'a>(context: &Context, attempt: &Attempt<'a>) -> Option<Result<Rendered<'a>, NotRendered>> {
    if let Some(rendered) = context.renderer.at_once(attempt.job) {
        return Some(rendered.map_err(NotRendered::Never));
    }
    let rendering = attempt.job_slot.hold_while(context.renderer.render(attempt.job));
    attempt.stop.run_until_cancelled(rendering).await
}

/// How long a job is deferred for which no process had time: each for another time.
fn render_wait(attempt: &Attempt<'_>) -> Duration {
    RENDER_WAIT.mul_f64(0.75 + spread(dice(attempt.job), attempt.meta.parks) / 2.0)
}

/// What is the same for every transport of an attempt.
struct FailoverRun<'a> {
    context: &'a Context,
    attempt: &'a Attempt<'a>,
    authorization: &'a Authorization,
    message: &'a OutgoingMessage<'a>,
    groups: &'a [String],
    domains: &'a DomainAnswers,
    is_repeatable: bool,
    /// An answer to this job's message opened a circuit.
    tripped: AtomicBool,
}

/// What came of one transport.
enum TransportResult {
    /// The attempt ended here.
    Ended(FinishedAttempt),
    /// It certainly did not take the job; the next one may.
    Refused(Refusal),
    /// It was paused before anything was said to it.
    Paused,
    /// A limit is used up there, and the job is in no line.
    Full(Refusal),
    /// The job gave its connection back: its token was late, and the limits said this of another one.
    TokenLate(AdmissionRequest, Admission),
}

/// What came of having a connection.
enum Delivered {
    /// The transport was asked, or the message could not be made.
    Outcome(Outcome),
    /// The circuit has opened meanwhile: for so long at least, because of this.
    CircuitOpen(Duration, String),
    /// The token was late.
    TokenLate((AdmissionRequest, Admission)),
}

/// How long on average a job is deferred for which no process had time.
const RENDER_WAIT: Duration = Duration::from_secs(5);

/// A worker that stops leaves so long to a job that has a connection, at most, until the message itself is on its way.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// So often a job gives its place back to wait for another token; then it goes.
const ROUNDS_MAX: u32 = 3;

impl FailoverRun<'_> {
    /// `asked` is what the limits said before of a transport, by its position.
    async fn in_order(
        &self,
        order: &[usize],
        mut asked: Option<(usize, AdmissionRequest, Admission)>,
    ) -> Result<FinishedAttempt, Deferral> {
        let needs = Needs::of(self.attempt.job);
        let mut refusals: Vec<(usize, Refusal)> = Vec::new();
        let (mut limited, mut overloaded) = (None, None);
        for n in order.iter().copied() {
            if let Some(refusal) = not_asked(self.context, n, &needs) {
                refusals.push((n, refusal));
                continue;
            }
            let queue = self.on_limit() == OnLimit::Wait;
            let answer = asked.take_if(|(transport, ..)| *transport == n).map(|(_, ask, answer)| (ask, answer));
            let refusal = match self.when_admitted(n, queue, answer, &refusals, None).await {
                Ok(TransportResult::Ended(ended)) => return Ok(ended),
                Ok(TransportResult::Refused(refusal)) => refusal,
                Ok(TransportResult::Full(refusal)) if self.on_limit() != OnLimit::Expire => {
                    limited = limited.or(Some(n));
                    refusal
                }
                Ok(TransportResult::Full(refusal)) => return Err(Deferral::Expired(Some(refusal))),
                Ok(TransportResult::Paused | TransportResult::TokenLate(..)) => match self.on_limit() {
                    OnLimit::Next => {
                        limited = limited.or(Some(n));
                        continue;
                    }
                    OnLimit::Expire => return Err(Deferral::Expired(Some(paused()))),
                    OnLimit::Wait => {
                        limited = Some(n);
                        break;
                    }
                },
                Err(deferral @ Deferral::Overloaded(..)) => {
                    let is_silent = self.context.transports[n].is_silent(self.attempt.job.lane());
                    if !leaves_overloaded(self.on_limit(), is_silent) {
                        return Err(deferral);
                    }
                    overloaded = overloaded.or(Some(deferral));
                    transport_overloaded()
                }
                Err(deferral) => return Err(deferral),
            };
            refusals.push((n, refusal));
        }
        // Nobody else took it: the job waits for its turn at the first one where too many did, or for the first one that only a limit kept it from.
        if let Some(deferral) = overloaded {
            return Err(deferral);
        }
        if let Some(n) = limited {
            let others: Vec<_> = refusals.iter().filter(|(one, _)| *one != n).cloned().collect();
            let refusal = match self.when_admitted(n, true, None, &others, Some(Instant::now())).await? {
                TransportResult::Ended(ended) => return Ok(ended),
                TransportResult::Refused(refusal) => Some(refusal),
                TransportResult::Paused => Some(paused()),
                TransportResult::Full(_) | TransportResult::TokenLate(..) => None,
            };
            if let Some(refusal) = refusal {
                refusals = others;
                refusals.push((n, refusal));
            }
        }
        Ok(FinishedAttempt {
            tripped: self.tripped.load(Ordering::Relaxed),
            ..no_transport_left(self.context, refusals)
        })
    }

    /// What the route says. A call that may have been taken waits in any case: it goes nowhere else, and what became of it is not known yet.
    fn on_limit(&self) -> OnLimit {
        if self.attempt.meta.pin.is_some() { OnLimit::Wait } else { self.attempt.route.on_limit }
    }

    fn subject(&self, transport: usize) -> Subject<'_> {
        let fresh = self.attempt.meta.generation == 0;
        let hold = self.attempt.job_slot.may_hold();
        Subject { job: self.attempt.job, transport, groups: self.groups, domains: self.domains, fresh, hold }
    }

    /// The job as one that wants to use a transport, where it may be deferred instead: not what is finished where it was begun, nor the probe of a
    /// circuit.
    fn entry_request(&self, n: usize) -> Option<EntryRequest<'_>> {
        let Self { context, attempt, .. } = *self;
        if attempt.meta.pin.is_some() || !context.breakers.is_closed(n) {
            return None;
        }
        let dice = spread(dice(attempt.job), attempt.meta.parks);
        Some(EntryRequest { tenant: attempt.job.tenant().as_str(), job_slots: attempt.job_slot.in_hand()?, dice })
    }

    /// Resolves when the worker stops: at once for who waits for a connection or a call. Who has one is done in a moment, unless nobody answers.
    async fn stopped(&self, has_place: &AtomicBool) {
        self.attempt.stop.cancelled().await;
        if has_place.load(Ordering::Relaxed) {
            sleep(FINISH_MAX.min(self.context.config.worker.drain / 2)).await;
        }
    }

    /// One transport, once the limits let the job go there. `answer` is what they said before, where they were asked. What was heard of a pause
    /// before `since` is older than what they will say.
    async fn when_admitted(
        &self,
        n: usize,
        queue: bool,
        answer: Option<(AdmissionRequest, Admission)>,
        refusals: &[(usize, Refusal)],
        since: Option<Instant>,
    ) -> Result<TransportResult, Deferral> {
        let Self { context, attempt, .. } = *self;
        let mut answer = answer;
        let mut round = 0;
        loop {
            // Where connections are scarce the token is asked for with one at hand: it would be late when there is one. A probe needs it before, and
            // who will be told to wait need not wait for that.
            let is_scarce = context.transports[n].is_saturated(attempt.job.lane()) && context.breakers.is_closed(n);
            let permission = if answer.is_none() && is_scarce && !context.limiter.is_paused(self.subject(n)) {
                LimitAnswer::Go(Token::NONE)
            } else {
                let admitted = context.limiter.admit(self.subject(n), queue, attempt.job_slot, answer.take());
                attempt.stop.run_until_cancelled(admitted).await.ok_or(Deferral::Stopping)?
            };
            let token = match permission {
                LimitAnswer::Go(token) => token,
                LimitAnswer::Defer(deferral) => return Err(deferral),
                LimitAnswer::Full(refusal) => return Ok(TransportResult::Full(refusal)),
            };
            match self.try_transport(n, refusals, token, queue, round, since).await? {
                TransportResult::TokenLate(ask, admission) => answer = Some((ask, admission)),
                result => return Ok(result),
            }
            round += 1;
        }
    }

    /// One transport. Where the token's time is long past when there is a connection, another one is asked for; an error where that has to wait.
    async fn try_transport(
        &self,
        n: usize,
        refusals: &[(usize, Refusal)],
        token: Token,
        queue: bool,
        round: u32,
        since: Option<Instant>,
    ) -> Result<TransportResult, Deferral> {
        let Self { context, attempt, authorization, message, is_repeatable, .. } = *self;
        let transport = &context.transports[n];
        // Where the attempt ends before there is an outcome, the probe is given back.
        let probe = match context.breakers.ask(n).await {
            BreakerPermit::Open(wait, reason) => return Ok(TransportResult::Refused(circuit_open(wait, &reason))),
            BreakerPermit::Probe(probe) => Some(probe),
            BreakerPermit::Go => None,
        };
        let is_probe = !context.breakers.is_closed(n);
        let entry_request = self.entry_request(n);
        let call = attempt.meta.pin.clone().or_else(|| repeatable(transport, message).filter(|_| is_repeatable));
        let (has_place, submitted) = (AtomicBool::new(false), AtomicBool::new(false));
        let group = self.groups.first().map_or("", String::as_str);
        let (step, begun) = (report::deliver_step(transport), Instant::now());
        let delivered = {
            // By reference: by value it would be a part of every future below it.
            let may_submit =
                pin!(record_submitting(context, attempt, authorization, transport, call.as_ref(), &submitted));
            let mut delivery = pin!(async {
                let place = match transport.acquire(message, entry_request.as_ref()).await {
                    Ok(place) => place,
                    Err(NoPermit::Outcome(outcome)) => {
                        metrics::attempt(attempt.job, &transport.name, group, begun).ended(&outcome);
                        return Ok(Delivered::Outcome(outcome));
                    }
                    Err(NoPermit::Overloaded(wait)) => {
                        return Err(Deferral::Overloaded(Slot::after(wait), transport.name.clone()));
                    }
                };
                // Whoever waited for a connection meanwhile does not knock once more at a door that others found closed.
                if let (false, Some((wait, reason))) = (is_probe, context.breakers.kept_away(n)) {
                    return Ok(Delivered::CircuitOpen(wait, reason));
                }
                has_place.store(true, Ordering::Relaxed);
                let now = Instant::now();
                // What waited for others on purpose did not do so because of a stall.
                let without_linger = now.checked_sub(transport.lingered(&place)).unwrap_or(now);
                if !is_probe && round < ROUNDS_MAX && token.is_late(without_linger) {
                    // Who had its turn before does not go to the end of its line.
                    let fresh = self.subject(n).fresh && token == Token::NONE;
                    let subject = Subject { fresh, ..self.subject(n) };
                    if let Some(later) = context.limiter.token_with_connection(subject, queue, round > 0).await? {
                        return Ok(Delivered::TokenLate(later));
                    }
                }
                // It may have waited long by now. A call that may have been taken is finished all the same.
                if attempt.meta.pin.is_none() && is_over(attempt.job, self.context.now()) {
                    return Err(Deferral::Expired(None));
                }
                let counted = metrics::attempt(attempt.job, &transport.name, group, begun);
                let outcome = transport.deliver_with(place, message, may_submit).await;
                counted.ended(&outcome);
                Ok(Delivered::Outcome(outcome))
            });
            tokio::select! {
                biased;
                outcome = &mut delivery => outcome?,
                // Who is in the middle of it goes on.
                () = context.limiter.paused(self.subject(n), since) => {
                    if !submitted.load(Ordering::Relaxed) {
                        return Ok(TransportResult::Paused);
                    }
                    delivery.await?
                }
                () = self.stopped(&has_place) => {
                    if !submitted.load(Ordering::Relaxed) {
                        return Err(Deferral::Stopping);
                    }
                    delivery.await?
                }
            }
        };
        let outcome = match delivered {
            Delivered::Outcome(outcome) => outcome,
            Delivered::CircuitOpen(wait, reason) => return Ok(TransportResult::Refused(circuit_open(wait, &reason))),
            Delivered::TokenLate((ask, admission)) => return Ok(TransportResult::TokenLate(ask, admission)),
        };
        report::note_outcome(&step, &outcome);
        drop(step);
        transport.heard(&outcome);
        let outcome = context.breakers.judged(n, outcome, attempt.job).await;
        if let Some(event) = context.breakers.heard(n, &outcome, probe).await {
            if event.kind == EventType::CircuitOpened && is_own(&outcome) {
                self.tripped.store(true, Ordering::Relaxed);
            }
            tell_once(context, &event).await;
        }
        context.limiter.heard(self.subject(n), &outcome).await;
        if let Some(until) = transport.used_up_until() {
            context.limiter.rest(n, until).await;
        }
        Ok(self.concluded(n, outcome, call, refusals, submitted.into_inner()).await)
    }

    /// What follows from an outcome: the job goes on to the next transport, or this was its attempt.
    async fn concluded(
        &self,
        n: usize,
        outcome: Outcome,
        call: Option<Pin>,
        refusals: &[(usize, Refusal)],
        submitted: bool,
    ) -> TransportResult {
        let Self { context, attempt, authorization, .. } = *self;
        let transport = &context.transports[n];
        let refusal = match (next_step(&outcome, self.on_limit()), outcome) {
            (FailoverStep::Next, Outcome::Refused { refusal, .. }) => refusal,
            (_, outcome) => {
                let passed_over = passed_over(context, refusals, None);
                let (transport, tripped) = (transport.name.clone(), self.tripped.load(Ordering::Relaxed));
                return TransportResult::Ended(FinishedAttempt { outcome, transport, passed_over, pin: call, tripped });
            }
        };
        if submitted && !record_withdrawn(context, attempt, authorization).await {
            return TransportResult::Ended(FinishedAttempt::at(&transport.name, Outcome::LostClaim));
        }
        TransportResult::Refused(refusal)
    }
}

/// Whether an answer was given to one message, and not at the door.
fn is_own(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused { refusal, .. } if refusal.answer.stage.is_of_a_message() && refusal.answer.mark != Mark::Unexplained)
}

/// The call that is about to be made, where the transport will recognise it.
fn repeatable(transport: &Transport, message: &OutgoingMessage<'_>) -> Option<Pin> {
    let until = message.dated.checked_add(transport.repeatable_for(message)?).ok()?;
    Some(Pin { transport: transport.name.clone(), since: message.dated, until })
}
