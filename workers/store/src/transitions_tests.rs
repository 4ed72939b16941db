use super::*;

const NOW: u64 = 100_000;
const LEASE: u64 = 60_000;
const EPOCH: u64 = 50_000;

fn ask() -> ClaimInput<'static> {
    ClaimInput {
        payload_hash: "aa",
        generation: 3,
        redelivered: false,
        published_ms: None,
        holder: "me",
        lease_ms: LEASE,
    }
}

fn owner() -> LeaseFacts {
    LeaseFacts { holder: "me".to_owned(), fence: 7, generation: 3, payload_hash: "aa".to_owned() }
}

/// Generation 3, fence 7, of `holder`, whose lease ends at `lease_end_ms`.
fn held_by(holder: &str, lease_end_ms: u64, state: RecordState) -> Record {
    let note = if state == RecordState::Decided { "later" } else { "" };
    Record {
        state,
        generation: 3,
        fence: 7,
        holder: holder.to_owned(),
        lease_end_ms,
        payload_hash: "aa".to_owned(),
        note: note.to_owned(),
    }
}

fn live(state: RecordState) -> Record {
    held_by("other", NOW + 5, state)
}

fn lapsed(state: RecordState) -> Record {
    held_by("other", NOW, state)
}

fn mine(state: RecordState) -> Record {
    held_by("me", NOW - 1, state)
}

fn idle(state: RecordState) -> Record {
    held_by("", 0, state)
}

/// What is written: state, generation, fence.
type Written = Option<(RecordState, u32, u64)>;

fn outline(record: Option<&Record>) -> Written {
    record.map(|record| (record.state, record.generation, record.fence))
}

/// A claim of generation 3 by "me", changed by `ask`, against `record`.
#[track_caller]
fn check(record: impl Into<Option<Record>>, question: ClaimInput<'_>, verdict: ClaimVerdict, written: Written) {
    let (change, answer) = claim(record.into().as_ref(), &question, EPOCH, NOW);
    assert_eq!((answer, outline(change.as_ref())), (verdict, written));
    let Some(change) = change else { return };
    assert_eq!((change.holder.as_str(), change.lease_end_ms), ("me", NOW + LEASE));
    assert_eq!(change.payload_hash, "aa");
    // The answer was lost and the call repeated: it gives the same right.
    let (again, _) = claim(Some(&change), &question, EPOCH, NOW + 1);
    assert_eq!(outline(again.as_ref()), written);
}

#[track_caller]
fn check_step(record: impl Into<Option<Record>>, what: LedgerStep<'_>, answer: LedgerStepResult, written: Written) {
    let (change, stepped) = step(record.into().as_ref(), &owner(), what, LEASE, NOW);
    assert_eq!((stepped, outline(change.as_ref())), (answer, written));
    let Some(change) = change else { return };
    assert_eq!(change.holder.is_empty(), change.lease_end_ms == 0);
    assert_eq!(change.payload_hash, "aa");
}

#[track_caller]
fn check_cancel(record: impl Into<Option<Record>>, answer: Cancelled, written: Written) {
    let (change, cancelling) = cancel(record.into().as_ref());
    assert_eq!((cancelling, outline(change.as_ref())), (CancelTransition::Answer(answer), written));
}

#[track_caller]
fn check_reopen(record: impl Into<Option<Record>>, answer: Reopened, written: Written) {
    let (change, reopened) = reopen(record.into().as_ref(), 3, NOW);
    assert_eq!((reopened, outline(change.as_ref())), (answer, written));
}

macro_rules! table {
    ($check:ident: $($name:ident($($argument:expr),+ $(,)?);)+) => {
        $(#[test]
        fn $name() {
            $check($($argument),+);
        })+
    };
}

const NOTHING: Option<Record> = None;
const CLAIMED: RecordState = RecordState::Claimed;
const SUBMITTING: RecordState = RecordState::Submitting;
const DECIDED: RecordState = RecordState::Decided;
const PARKED: RecordState = RecordState::Parked;
const SENT: RecordState = RecordState::Final(Final::Sent);
const HELD: RecordState = RecordState::Final(Final::Held);
const DEAD: RecordState = RecordState::Final(Final::Dead);
const CANCELLED: RecordState = RecordState::Final(Final::Cancelled);

fn generation(generation: u32) -> ClaimInput<'static> {
    ClaimInput { generation, ..ask() }
}

fn redelivered(published_ms: Option<u64>) -> ClaimInput<'static> {
    ClaimInput { redelivered: true, published_ms, ..ask() }
}

fn later() -> ClaimVerdict {
    ClaimVerdict::Decided("later".to_owned())
}

#[test]
fn a_lease_from_before_the_clock_was_set_back_ends_after_the_longest_one() {
    let far = held_by("other", NOW + 86_400_000, SUBMITTING);
    let (cut, verdict) = claim(Some(&far), &ask(), EPOCH, NOW);
    assert_eq!(verdict, ClaimVerdict::Busy(LEASE_MAX_MS));
    let cut = cut.unwrap();
    assert_eq!(cut, Record { lease_end_ms: NOW + LEASE_MAX_MS, ..far }, "its owner keeps its right until then");
    let (_, verdict) = claim(Some(&cut), &ask(), EPOCH, NOW + LEASE_MAX_MS);
    assert_eq!(verdict, ClaimVerdict::Unknown(String::new()));
}

table! { check:
    a_fresh_job_goes(NOTHING, ask(), ClaimVerdict::Go, Some((CLAIMED, 3, NOW)));
    a_live_claim_is_busy(live(CLAIMED), ask(), ClaimVerdict::Busy(5), None);
    a_live_submission_is_busy(live(SUBMITTING), ask(), ClaimVerdict::Busy(5), None);
    a_live_decision_is_busy(live(DECIDED), ask(), ClaimVerdict::Busy(5), None);
    a_lapsed_claim_is_taken_over(lapsed(CLAIMED), ask(), ClaimVerdict::Go, Some((CLAIMED, 3, 8)));
    a_lapsed_submission_is_unknown(lapsed(SUBMITTING), ask(), ClaimVerdict::Unknown(String::new()), Some((SUBMITTING, 3, 8)));
    a_lapsed_decision_is_finished_by_the_next(lapsed(DECIDED), ask(), later(), Some((DECIDED, 3, 8)));
    ones_own_claim_again_is_the_same_right(mine(CLAIMED), ask(), ClaimVerdict::Go, Some((CLAIMED, 3, 7)));
    what_was_given_back_goes(idle(PARKED), ask(), ClaimVerdict::Go, Some((CLAIMED, 3, 8)));
    a_submission_that_was_given_back_is_unknown(idle(SUBMITTING), ask(), ClaimVerdict::Unknown(String::new()), Some((SUBMITTING, 3, 8)));
    an_older_generation_is_stale(live(CLAIMED), generation(2), ClaimVerdict::Stale, None);
    an_older_generation_is_stale_after_parking(idle(PARKED), generation(2), ClaimVerdict::Stale, None);
    a_newer_generation_ends_a_live_claim(live(CLAIMED), generation(4), ClaimVerdict::Go, Some((CLAIMED, 4, 8)));
    a_newer_generation_ends_a_live_submission(live(SUBMITTING), generation(4), ClaimVerdict::Go, Some((CLAIMED, 4, 8)));
    what_was_sent_is_settled_for_every_generation(idle(SENT), generation(9), ClaimVerdict::Settled(Final::Sent), None);
    what_was_cancelled_is_settled_for_every_generation(
        idle(CANCELLED), generation(9), ClaimVerdict::Settled(Final::Cancelled), None,
    );
    what_is_held_is_settled_for_its_generation(idle(HELD), ask(), ClaimVerdict::Settled(Final::Held), None);
    what_was_held_goes_with_a_newer_generation(idle(HELD), generation(4), ClaimVerdict::Go, Some((CLAIMED, 4, 8)));
    what_is_dead_is_stale_for_an_older_generation(idle(DEAD), generation(2), ClaimVerdict::Stale, None);
    another_payload_is_a_conflict(live(CLAIMED), ClaimInput { payload_hash: "bb", ..ask() }, ClaimVerdict::Conflict, None);
    another_payload_is_a_conflict_after_the_end(
        idle(SENT), ClaimInput { payload_hash: "bb", ..ask() }, ClaimVerdict::Conflict, None,
    );
    an_alias_is_no_job(idle(RecordState::Alias), ask(), ClaimVerdict::Conflict, None);
    redelivered_and_forgotten_is_unknown(NOTHING, redelivered(None), ClaimVerdict::Unknown(String::new()), Some((SUBMITTING, 3, NOW)));
    redelivered_and_older_than_the_store_is_unknown(
        NOTHING, redelivered(Some(EPOCH)), ClaimVerdict::Unknown(String::new()), Some((SUBMITTING, 3, NOW)),
    );
    within_the_skew_of_the_clocks_is_unknown(
        NOTHING, redelivered(Some(EPOCH + SKEW_MS)), ClaimVerdict::Unknown(String::new()), Some((SUBMITTING, 3, NOW)),
    );
    redelivered_and_younger_than_the_store_goes(
        NOTHING, redelivered(Some(EPOCH + SKEW_MS + 1)), ClaimVerdict::Go, Some((CLAIMED, 3, NOW)),
    );
    a_first_delivery_goes_however_old(
        NOTHING, ClaimInput { published_ms: Some(1), ..ask() }, ClaimVerdict::Go, Some((CLAIMED, 3, NOW)),
    );
}

table! { check_step:
    an_owner_submits(mine(CLAIMED), LedgerStep::Submitting(""), LedgerStepResult::Done, Some((SUBMITTING, 3, 7)));
    a_submission_is_withdrawn(mine(SUBMITTING), LedgerStep::Withdraw, LedgerStepResult::Done, Some((CLAIMED, 3, 7)));
    nothing_to_withdraw_changes_nothing(mine(CLAIMED), LedgerStep::Withdraw, LedgerStepResult::Done, Some((CLAIMED, 3, 7)));
    another_owner_withdraws_nothing(live(SUBMITTING), LedgerStep::Withdraw, LedgerStepResult::Lost, None);
    nothing_is_withdrawn_after_a_decision(mine(DECIDED), LedgerStep::Withdraw, LedgerStepResult::Lost, None);
    a_lost_record_stays_careful(NOTHING, LedgerStep::Withdraw, LedgerStepResult::Done, Some((SUBMITTING, 3, 7)));
    another_owner_does_not(live(CLAIMED), LedgerStep::Submitting(""), LedgerStepResult::Lost, None);
    nothing_is_submitted_after_a_decision(mine(DECIDED), LedgerStep::Submitting(""), LedgerStepResult::Lost, None);
    a_renewal_keeps_the_state(mine(DECIDED), LedgerStep::Renew, LedgerStepResult::Done, Some((DECIDED, 3, 7)));
    a_decision_is_noted(mine(SUBMITTING), LedgerStep::Decide("x"), LedgerStepResult::Done, Some((DECIDED, 3, 7)));
    a_confirmed_copy_is_one_generation_on(mine(DECIDED), LedgerStep::Parked(""), LedgerStepResult::Done, Some((PARKED, 4, 7)));
    a_claim_is_given_back(mine(CLAIMED), LedgerStep::Release, LedgerStepResult::Done, Some((PARKED, 3, 7)));
    a_submission_is_given_back_as_it_is(mine(SUBMITTING), LedgerStep::Release, LedgerStepResult::Done, Some((SUBMITTING, 3, 7)));
    what_was_sent_names_no_generation(mine(SUBMITTING), LedgerStep::Finish(Final::Sent, ""), LedgerStepResult::Done, Some((SENT, 0, 7)));
    a_yes_wins_over_another_owner(live(CLAIMED), LedgerStep::Finish(Final::Sent, ""), LedgerStepResult::Done, Some((SENT, 0, 7)));
    a_yes_wins_over_a_cancellation(idle(CANCELLED), LedgerStep::Finish(Final::Sent, ""), LedgerStepResult::Done, Some((SENT, 0, 7)));
    the_same_yes_again_changes_nothing(idle(SENT), LedgerStep::Finish(Final::Sent, ""), LedgerStepResult::Done, None);
    a_no_after_a_yes_is_told(idle(SENT), LedgerStep::Finish(Final::Rejected, ""), LedgerStepResult::SentBefore, None);
    a_no_of_a_former_owner_is_lost(live(CLAIMED), LedgerStep::Finish(Final::Rejected, ""), LedgerStepResult::Lost, None);
    the_same_end_again_changes_nothing(idle(HELD), LedgerStep::Finish(Final::Held, ""), LedgerStepResult::Done, None);
    another_end_is_lost(idle(HELD), LedgerStep::Finish(Final::Dead, ""), LedgerStepResult::Lost, None);
    a_lost_record_may_have_been_sent(NOTHING, LedgerStep::Renew, LedgerStepResult::Done, Some((SUBMITTING, 3, 7)));
    a_lost_record_is_not_given_back(NOTHING, LedgerStep::Release, LedgerStepResult::Lost, None);
    a_lost_record_takes_its_end(NOTHING, LedgerStep::Finish(Final::Sent, ""), LedgerStepResult::Done, Some((SENT, 0, 7)));
}

table! { check_cancel:
    what_nobody_saw_is_cancelled(NOTHING, Cancelled::Now, Some((CANCELLED, 0, 0)));
    a_claim_is_cancelled(live(CLAIMED), Cancelled::Now, Some((CANCELLED, 3, 7)));
    what_is_parked_is_cancelled(idle(PARKED), Cancelled::Now, Some((CANCELLED, 3, 7)));
    a_submission_is_not(lapsed(SUBMITTING), Cancelled::BeingSent, None);
    what_was_sent_is_not(idle(SENT), Cancelled::AlreadySent, None);
    what_is_held_stays_held(idle(HELD), Cancelled::AlreadyFinal(Final::Held), None);
}

#[track_caller]
fn check_postpone(record: impl Into<Option<Record>>, answer: Postponed, written: Written) {
    let (change, answered) = postpone(record.into().as_ref(), NOW + 500, "until noon", NOW);
    assert_eq!((answered, outline(change.as_ref())), (PostponeTransition::Answer(answer), written));
    let Some(change) = change else { return };
    for generation in [change.generation, change.generation + 1] {
        let question = ClaimInput { generation, ..ask() };
        assert_eq!(claim(Some(&change), &question, EPOCH, NOW), (None, ClaimVerdict::Busy(500)));
        assert_eq!(claim(Some(&change), &question, EPOCH, NOW + 500).1, ClaimVerdict::Go);
    }
}

table! { check_postpone:
    what_nobody_saw_is_postponed(NOTHING, Postponed::Done, Some((PARKED, 0, NOW)));
    what_is_parked_is_postponed(idle(PARKED), Postponed::Done, Some((PARKED, 3, 7)));
    what_a_worker_has_is_not(live(CLAIMED), Postponed::InHand, None);
    what_may_be_under_way_is_not(lapsed(SUBMITTING), Postponed::InHand, None);
    what_is_over_is_not(idle(CANCELLED), Postponed::Over(Final::Cancelled), None);
}

table! { check_reopen:
    what_is_held_runs_again(idle(HELD), Reopened::Go, Some((PARKED, 4, 7)));
    what_is_dead_runs_again(idle(DEAD), Reopened::Go, Some((PARKED, 4, 7)));
    what_was_forgotten_runs_again(NOTHING, Reopened::Go, Some((PARKED, 4, 0)));
    what_somebody_works_on_does_not(live(SUBMITTING), Reopened::Other, None);
    what_its_owner_left_does(lapsed(SUBMITTING), Reopened::Go, Some((PARKED, 4, 7)));
    what_was_sent_never_does(idle(SENT), Reopened::AlreadySent, None);
    what_was_cancelled_never_does(idle(CANCELLED), Reopened::Cancelled, None);
    what_was_given_back_is_not_at_rest(idle(PARKED), Reopened::Other, None);
}

#[test]
fn an_alias_is_followed_written_again_and_never_over_a_job() {
    let (written, before) = alias(None, "k:default/1");
    assert_eq!((outline(written.as_ref()), before), (Some((RecordState::Alias, 0, 0)), None));
    assert_eq!(cancel(written.as_ref()), (None, CancelTransition::Follow("k:default/1".to_owned())));
    assert_eq!(alias(written.as_ref(), "k:default/1"), (written.clone(), None));
    assert_eq!(alias(Some(&live(CLAIMED)), "k:default/1"), (None, None));
    assert_eq!(alias(Some(&idle(CANCELLED)), "k:default/1"), (None, Some(Final::Cancelled)));
}

#[test]
fn whoever_finds_a_submission_learns_which_call_it_was() {
    let (submitted, _) = step(Some(&mine(CLAIMED)), &owner(), LedgerStep::Submitting("a call"), LEASE, NOW);
    let late = ClaimInput { holder: "other", ..ask() };
    let (taken, verdict) = claim(submitted.as_ref(), &late, EPOCH, NOW + LEASE);
    assert_eq!(verdict, ClaimVerdict::Unknown("a call".to_owned()));
    let (_, verdict) = claim(taken.as_ref(), &ClaimInput { holder: "third", ..ask() }, EPOCH, NOW + 2 * LEASE);
    assert_eq!(verdict, ClaimVerdict::Unknown("a call".to_owned()), "and so does the next one");
}

#[test]
fn what_an_owner_notes_for_people_stays_until_the_next_claim() {
    let (parked, _) = step(Some(&mine(DECIDED)), &owner(), LedgerStep::Parked("until noon"), LEASE, NOW);
    assert_eq!(parked.as_ref().map(|record| record.note.as_str()), Some("until noon"));
    let (taken, _) = claim(parked.as_ref(), &generation(4), EPOCH, NOW);
    assert_eq!(taken.map(|record| record.note), Some(String::new()));
    let note = |end| {
        step(Some(&mine(SUBMITTING)), &owner(), LedgerStep::Finish(end, "550 no"), LEASE, NOW)
            .0
            .map(|record| record.note)
    };
    assert_eq!([note(Final::Rejected), note(Final::Sent)], [Some("550 no".to_owned()), Some(String::new())]);
}
