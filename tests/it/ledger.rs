//! The ledger keeps its word: one contract for every store, and what only real servers can show.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use postrider_producer::embedded::Db;
use postrider_schemas::{
    fields::{IdempotencyKey, JobId, Tenant},
    job::Identity,
    payload_hash::PayloadHash,
};
use postrider_tests::{deadline::wait_for_async, redis::Database};
use postrider_workers::store::{
    Cancelled, Claim, ClaimRequest, Final, Finished, Lease, LedgerKey, Postponed, RecordState, Reopened, Store,
    StoreOptions,
};
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const LONG: Duration = Duration::from_mins(1);
/// A lease that has ended by the time anybody else asks.
const SHORT: Duration = Duration::from_millis(1);

pub(crate) fn options(lease: Duration) -> StoreOptions {
    StoreOptions { lease, retention: Duration::from_hours(1), holder: "test".to_owned(), create: true, ca_file: None }
}

/// Two workers at one store: leases of the second end at once, as if it were killed after each call.
struct Two {
    well: Store,
    dying: Store,
    place: Place,
}

/// Where a store keeps its records until the test is over.
enum Place {
    Redis(Database),
    File(TempDir),
}

impl Place {
    fn redis() -> Result<Self> {
        Ok(Self::Redis(Database::fresh()?))
    }

    fn file() -> Result<Self> {
        Ok(Self::File(tempfile::tempdir()?))
    }

    fn url(&self) -> String {
        match self {
            Self::Redis(database) => database.url(),
            Self::File(folder) => format!("embedded:{}", folder.path().join("ledger.db").display()),
        }
    }

    /// Makes it forget everything, its epoch too.
    async fn empty(&self) -> Result<()> {
        match self {
            Self::Redis(database) => database.flush(),
            Self::File(folder) => {
                let db = Db::open(folder.path().join("ledger.db"))?;
                Ok(db.call(|db| Ok(db.execute_batch("DELETE FROM ledger; DELETE FROM ledger_epoch")?)).await?)
            }
        }
    }

    /// Leaves its leases as a clock does that was a day ahead and is set right.
    async fn set_clock_back(&self) -> Result<()> {
        let script = "for _, key in ipairs(redis.call('KEYS', 'postrider:*}:i:*')) do
            local head, fields, ends, tail = string.match(redis.call('GET', key), '^(%u|%d*|%d*|)([^|]*|)(%d+)(|.*)$')
            redis.call('SET', key, head .. fields .. string.format('%.0f', ends + 86400000) .. tail)
        end";
        match self {
            Self::Redis(database) => database.cli(&["EVAL", script, "0"]).map(drop),
            Self::File(folder) => {
                let db = Db::open(folder.path().join("ledger.db"))?;
                let later = "UPDATE ledger SET lease_end_ms = lease_end_ms + 86400000";
                Ok(db.call(move |db| Ok(db.execute_batch(later)?)).await?)
            }
        }
    }

    async fn two(self) -> Result<Two> {
        Ok(Two {
            well: Store::connect(&self.url(), options(LONG)).await?,
            dying: Store::connect(&self.url(), options(SHORT)).await?,
            place: self,
        })
    }
}

/// The contract: each of these once for each kind of store.
macro_rules! for_every_store {
    ($($name:ident,)+) => {
        mod in_redis {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(super::Place::redis()?.two().await?).await
            })+
        }
        mod in_a_file {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name(super::Place::file()?.two().await?).await
            })+
        }
    };
}

for_every_store! {
    a_job_that_somebody_attempts_is_busy_for_everybody_else,
    a_claim_whose_owner_died_is_taken_over_and_the_old_owner_is_fenced,
    an_owner_that_outlives_its_lease_keeps_the_right_until_somebody_takes_it,
    a_crash_while_submitting_is_unknown_again_and_again_and_never_the_end,
    a_crash_after_a_withdrawal_is_no_unknown,
    a_late_yes_wins_over_every_state,
    a_second_yes_is_reported_as_a_duplicate,
    a_note_for_people_is_kept_where_a_job_waits_or_ended_and_decides_nothing,
    an_older_generation_is_stale_and_a_newer_one_ends_the_older,
    the_same_identity_with_another_payload_is_a_conflict_also_after_the_end,
    a_decision_waits_for_its_owner_and_is_finished_by_the_next_one,
    a_released_claim_may_be_taken_at_once,
    a_held_or_dead_job_runs_again_only_when_it_is_reopened,
    a_reopening_that_the_store_lost_loses_no_mail,
    a_job_can_be_cancelled_until_bytes_are_under_way,
    a_job_that_waits_can_be_postponed_and_then_runs,
    a_note_of_a_gateway_stays_as_it_was_first_written,
    cancelling_by_id_finds_a_job_with_a_key_whichever_comes_first,
    the_same_id_and_key_of_another_tenant_is_another_job,
    after_the_store_was_emptied_only_what_may_have_been_sent_is_unknown,
    a_mark_made_without_a_claim_counts,
    a_lease_from_before_the_clock_was_set_back_is_cut_and_stays_its_owners,
}

pub(crate) fn fresh() -> ClaimRequest {
    ClaimRequest {
        key: LedgerKey::of(&Identity::of_id(&Tenant::default(), JobId(uuid::Uuid::now_v7()))),
        payload_hash: PayloadHash::default(),
        generation: 0,
        redelivered: false,
        published_at: None,
    }
}

fn at(request: &ClaimRequest, generation: u32) -> ClaimRequest {
    ClaimRequest { generation, ..request.clone() }
}

pub(crate) async fn go(store: &Store, request: &ClaimRequest) -> Result<Lease> {
    match store.claim(request).await? {
        Claim::Go(lease) => Ok(lease),
        other => bail!("not Go but {other:?}"),
    }
}

async fn a_lease_from_before_the_clock_was_set_back_is_cut_and_stays_its_owners(on: Two) -> Result<()> {
    let job = fresh();
    let lease = go(&on.dying, &job).await?;
    on.place.set_clock_back().await?;
    for _ in 0..2 {
        let Claim::Busy { retry_in } = on.well.claim(&job).await? else { bail!("not busy") };
        assert!(retry_in <= Duration::from_mins(10) && retry_in > Duration::from_mins(9), "{retry_in:?}");
    }
    assert!(on.dying.submitting(&lease, "relay").await?);
    Ok(())
}

/// Asks until the lease of a dead owner has ended.
async fn after_the_lease(store: &Store, request: &ClaimRequest) -> Result<Claim> {
    wait_for_async("the end of a lease", LIMIT, async || match store.claim(request).await {
        Ok(Claim::Busy { .. }) => None,
        other => Some(other),
    })
    .await?
    .map_err(Into::into)
}

async fn state(store: &Store, request: &ClaimRequest) -> Result<RecordState> {
    Ok(store.get(&request.key).await?.context("no record")?.state)
}

#[track_caller]
pub(crate) fn says(claim: &Claim, word: &str) {
    let text = format!("{claim:?}");
    assert!(text.starts_with(word), "{text} is not {word}");
}

/// Not the one of [`fresh`].
fn another_hash() -> PayloadHash {
    let example = postrider_schemas::examples::ALL[0].1.as_bytes();
    postrider_schemas::wire::decode(example, None, &postrider_schemas::limits::JobLimits::default())
        .unwrap()
        .payload_hash()
}

async fn a_job_that_somebody_attempts_is_busy_for_everybody_else(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let job = fresh();
    let lease = go(&well, &job).await?;
    match well.claim(&job).await? {
        Claim::Busy { retry_in } => assert!(retry_in > Duration::ZERO && retry_in <= LONG),
        other => bail!("{other:?}"),
    }
    assert!(well.submitting(&lease, "").await? && well.submitting(&lease, "").await?);
    says(&well.claim(&job).await?, "Busy");
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    says(&well.claim(&job).await?, "Settled(Sent)");
    says(&well.claim(&at(&job, 4)).await?, "Settled(Sent)");
    Ok(())
}

async fn a_claim_whose_owner_died_is_taken_over_and_the_old_owner_is_fenced(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    let job = fresh();
    let zombie = go(&dying, &job).await?;
    let Claim::Go(lease) = after_the_lease(&well, &job).await? else { bail!("not taken over") };
    assert!(
        !dying.submitting(&zombie, "").await? && !dying.renew(&zombie).await? && !dying.decide(&zombie, "x").await?
    );
    assert_eq!(dying.finish(zombie, Final::Rejected).await?, Finished::LostLease);
    assert!(well.submitting(&lease, "").await?);
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    Ok(())
}

async fn an_owner_that_outlives_its_lease_keeps_the_right_until_somebody_takes_it(two: Two) -> Result<()> {
    let Two { dying, .. } = two;
    let lease = go(&dying, &fresh()).await?;
    assert!(dying.renew(&lease).await? && dying.submitting(&lease, "").await?);
    Ok(())
}

async fn a_crash_while_submitting_is_unknown_again_and_again_and_never_the_end(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    let job = fresh();
    let lease = go(&dying, &job).await?;
    assert!(dying.submitting(&lease, "a call").await?);
    let Claim::Unknown { lease: second, call } = after_the_lease(&dying, &job).await? else { bail!("not unknown") };
    assert_eq!(call, "a call");
    let Claim::Unknown { lease: third, call } = after_the_lease(&well, &job).await? else { bail!("not unknown again") };
    assert_eq!(call, "a call");
    says(&well.claim(&job).await?, "Busy");
    assert!(!dying.decide(&second, "resend").await?);
    assert!(well.decide(&third, "resend").await?);
    well.parked(third, "").await?;
    says(&well.claim(&job).await?, "Stale");
    let lease = go(&well, &at(&job, 1)).await?;
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    Ok(())
}

async fn a_crash_after_a_withdrawal_is_no_unknown(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    let job = fresh();
    let lease = go(&dying, &job).await?;
    assert!(dying.submitting(&lease, "first").await? && dying.withdraw(&lease).await?);
    assert_eq!(state(&well, &job).await?, RecordState::Claimed);
    says(&after_the_lease(&well, &job).await?, "Go");
    assert!(!dying.withdraw(&lease).await?, "somebody else has it now");
    Ok(())
}

async fn a_late_yes_wins_over_every_state(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    for before in ["taken over", "unknown", "parked", "held", "dead", "cancelled"] {
        let job = fresh();
        let late = go(&dying, &job).await?;
        match before {
            "cancelled" => assert_eq!(well_cancel(&well, &job).await?, Cancelled::Now),
            "unknown" => {
                assert!(dying.submitting(&late, "").await?);
                says(&after_the_lease(&well, &job).await?, "Unknown");
            }
            _ => {
                let Claim::Go(other) = after_the_lease(&well, &job).await? else { bail!("not taken over") };
                match before {
                    "parked" => well.parked(other, "").await?,
                    "held" => assert_eq!(well.finish(other, Final::Held).await?, Finished::Recorded),
                    "dead" => assert_eq!(well.finish(other, Final::Dead).await?, Finished::Recorded),
                    _ => {}
                }
            }
        }
        assert_eq!(dying.finish(late, Final::Sent).await?, Finished::Recorded, "{before}");
        says(&well.claim(&at(&job, 1)).await?, "Settled(Sent)");
    }
    Ok(())
}

async fn well_cancel(store: &Store, request: &ClaimRequest) -> Result<Cancelled> {
    let id = request.key.as_str().strip_prefix("i:default:").context("a key of an id")?.parse::<uuid::Uuid>()?;
    Ok(store.cancel(&Identity::of_id(&Tenant::default(), JobId(id))).await?)
}

async fn a_note_for_people_is_kept_where_a_job_waits_or_ended_and_decides_nothing(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let note = async |job: &ClaimRequest| anyhow::Ok(well.get(&job.key).await?.context("a record")?.note);
    let job = fresh();
    well.parked(go(&well, &job).await?, "until noon | because of x").await?;
    assert_eq!(note(&job).await?, "until noon | because of x");
    let lease = go(&well, &at(&job, 1)).await?;
    assert_eq!(well.finish_with(lease, Final::Dead, "rcpt: 550 no | more").await?, Finished::Recorded);
    assert_eq!(
        (state(&well, &job).await?, note(&job).await?),
        (RecordState::Final(Final::Dead), "rcpt: 550 no | more".to_owned())
    );
    says(&well.claim(&at(&job, 1)).await?, "Settled(Dead)");
    assert_eq!(well.reopen(&job.key, 1).await?, Reopened::Go);
    let lease = go(&well, &at(&job, 2)).await?;
    assert_eq!(well.finish_with(lease, Final::Rejected, &"long ".repeat(1000)).await?, Finished::Recorded);
    assert!(note(&job).await?.len() <= 512);
    says(&well.claim(&at(&job, 2)).await?, "Settled(Rejected)");
    Ok(())
}

async fn a_second_yes_is_reported_as_a_duplicate(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    let job = fresh();
    let first = go(&dying, &job).await?;
    let Claim::Go(second) = after_the_lease(&well, &job).await? else { bail!("not taken over") };
    assert_eq!(dying.finish(first, Final::Sent).await?, Finished::Recorded);
    assert_eq!(well.finish(second, Final::Sent).await?, Finished::WasSentBefore);
    Ok(())
}

async fn an_older_generation_is_stale_and_a_newer_one_ends_the_older(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let job = fresh();
    let old = go(&well, &at(&job, 3)).await?;
    says(&well.claim(&at(&job, 2)).await?, "Stale");
    // The call `parked` was lost; the copy arrives and proves it.
    let lease = go(&well, &at(&job, 4)).await?;
    assert!(!well.submitting(&old, "").await?);
    well.parked(old, "").await?;
    assert!(well.submitting(&lease, "").await?);
    Ok(())
}

async fn the_same_identity_with_another_payload_is_a_conflict_also_after_the_end(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let job = fresh();
    let other = ClaimRequest { payload_hash: another_hash(), ..job.clone() };
    let lease = go(&well, &job).await?;
    says(&well.claim(&other).await?, "Conflict");
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    says(&well.claim(&other).await?, "Conflict");
    says(&well.claim(&job).await?, "Settled(Sent)");
    Ok(())
}

async fn a_decision_waits_for_its_owner_and_is_finished_by_the_next_one(two: Two) -> Result<()> {
    let Two { well, dying, .. } = two;
    let job = fresh();
    let lease = go(&well, &job).await?;
    assert!(well.submitting(&lease, "").await?);
    assert!(well.decide(&lease, "again \u{e9} at noon").await? && !well.submitting(&lease, "").await?);
    says(&well.claim(&job).await?, "Busy");
    assert!(dying.renew(&lease).await?, "cut the lease short");
    let Claim::Decided { lease: next, decision } = after_the_lease(&well, &job).await? else { bail!("not decided") };
    assert_eq!(decision, "again \u{e9} at noon");
    assert!(well.decide(&next, &"x".repeat(2049)).await.is_err());
    well.parked(next, "").await?;
    well.parked(lease, "").await?;
    go(&well, &at(&job, 1)).await?;
    Ok(())
}

async fn a_released_claim_may_be_taken_at_once(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let job = fresh();
    let lease = go(&well, &job).await?;
    well.release(lease).await?;
    let lease = go(&well, &job).await?;
    assert!(well.submitting(&lease, "").await?);
    well.release(lease).await?;
    says(&well.claim(&job).await?, "Unknown");
    Ok(())
}

async fn a_held_or_dead_job_runs_again_only_when_it_is_reopened(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    for end in [Final::Held, Final::Dead] {
        let job = at(&fresh(), 2);
        let lease = go(&well, &job).await?;
        assert!(well.decide(&lease, "rest").await?);
        assert_eq!(well.finish(lease, end).await?, Finished::Recorded);
        says(&well.claim(&job).await?, "Settled");
        assert_eq!(well.reopen(&job.key, 2).await?, Reopened::Go);
        assert_eq!(well.reopen(&job.key, 2).await?, Reopened::Go, "the answer was lost and the call repeated");
        says(&well.claim(&job).await?, "Stale");
        let lease = go(&well, &at(&job, 3)).await?;
        assert_eq!(well.reopen(&job.key, 2).await?, Reopened::Other);
        assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
        assert_eq!(well.reopen(&job.key, 3).await?, Reopened::AlreadySent);
    }
    let forgotten = fresh();
    assert_eq!(well.reopen(&forgotten.key, 0).await?, Reopened::Go);
    go(&well, &at(&forgotten, 1)).await?;
    Ok(())
}

async fn a_reopening_that_the_store_lost_loses_no_mail(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    for end in [Final::Held, Final::Dead] {
        let job = fresh();
        let lease = go(&well, &job).await?;
        assert_eq!(well.finish(lease, end).await?, Finished::Recorded);
        go(&well, &at(&job, 1)).await?;
    }
    Ok(())
}

async fn a_job_can_be_cancelled_until_bytes_are_under_way(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let unseen = fresh();
    assert_eq!(well_cancel(&well, &unseen).await?, Cancelled::Now);
    assert_eq!(well_cancel(&well, &unseen).await?, Cancelled::AlreadyFinal(Final::Cancelled));
    says(&well.claim(&unseen).await?, "Settled(Cancelled)");
    says(&well.claim(&at(&unseen, 1)).await?, "Settled(Cancelled)");
    assert_eq!(well.reopen(&unseen.key, 0).await?, Reopened::Cancelled);

    let claimed = fresh();
    let lease = go(&well, &claimed).await?;
    assert_eq!(well_cancel(&well, &claimed).await?, Cancelled::Now);
    assert!(!well.submitting(&lease, "").await?);

    let parked = fresh();
    let lease = go(&well, &parked).await?;
    well.parked(lease, "").await?;
    assert_eq!(well_cancel(&well, &parked).await?, Cancelled::Now);
    says(&well.claim(&at(&parked, 1)).await?, "Settled(Cancelled)");

    let decided = fresh();
    let lease = go(&well, &decided).await?;
    assert!(well.decide(&lease, "again").await?);
    assert_eq!(well_cancel(&well, &decided).await?, Cancelled::Now);
    well.parked(lease, "").await?;
    says(&well.claim(&at(&decided, 1)).await?, "Settled(Cancelled)");

    let sending = fresh();
    let lease = go(&well, &sending).await?;
    assert!(well.submitting(&lease, "").await?);
    assert_eq!(well_cancel(&well, &sending).await?, Cancelled::BeingSent);
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    assert_eq!(well_cancel(&well, &sending).await?, Cancelled::AlreadySent);

    for end in [Final::Held, Final::Dead, Final::Rejected, Final::Expired] {
        let job = fresh();
        let lease = go(&well, &job).await?;
        assert_eq!(well.finish(lease, end).await?, Finished::Recorded);
        assert_eq!(well_cancel(&well, &job).await?, Cancelled::AlreadyFinal(end));
        assert_eq!(state(&well, &job).await?, RecordState::Final(end));
    }
    Ok(())
}

async fn a_job_that_waits_can_be_postponed_and_then_runs(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let far = Timestamp::now() + Duration::from_hours(24 * 20);
    let unseen = fresh();
    assert_eq!(well.postpone(&unseen.key, far, "send_at").await?, Postponed::Done);
    let Claim::Busy { retry_in } = well.claim(&unseen).await? else { bail!("not busy") };
    assert!(retry_in > Duration::from_hours(24 * 19), "not cut to a lease: {retry_in:?}");
    let record = well.get(&unseen.key).await?.context("no record")?;
    assert_eq!((record.state, record.note.as_str()), (RecordState::Parked, "send_at"));
    assert_eq!(well_cancel(&well, &unseen).await?, Cancelled::Now);
    assert_eq!(well.postpone(&unseen.key, far, "").await?, Postponed::Over(Final::Cancelled));

    let parked = fresh();
    let lease = go(&well, &parked).await?;
    assert_eq!(well.postpone(&parked.key, far, "").await?, Postponed::InHand);
    well.parked(lease, "").await?;
    let soon = Timestamp::now() + Duration::from_millis(300);
    assert_eq!(well.postpone(&parked.key, soon, "").await?, Postponed::Done);
    says(&well.claim(&at(&parked, 1)).await?, "Busy");
    says(&after_the_lease(&well, &at(&parked, 1)).await?, "Go");

    let id = JobId(uuid::Uuid::now_v7());
    let keyed = fresh();
    assert_eq!(well.alias(&Tenant::default(), id, &keyed.key).await?, None);
    let by_id = LedgerKey::of(&Identity::of_id(&Tenant::default(), id));
    assert_eq!(well.postpone(&by_id, far, "").await?, Postponed::Done);
    says(&well.claim(&keyed).await?, "Busy");
    Ok(())
}

async fn a_note_of_a_gateway_stays_as_it_was_first_written(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let [shop, news] = [Tenant::parse("shop")?, Tenant::parse("news")?];
    let note = |name: &str, text: &str| vec![(name.to_owned(), text.to_owned())];
    assert_eq!(well.note(&shop, note("a", "first"), LONG).await?, ["first"]);
    let two = [note("a", "second"), note("b", "other")].concat();
    assert_eq!(well.note(&shop, two, LONG).await?, ["first", "other"]);
    assert_eq!(well.noted(&shop, "a").await?.as_deref(), Some("first"));
    assert_eq!(well.noted(&news, "a").await?, None);
    well.note(&news, note("a", "short"), SHORT).await?;
    wait_for_async("the end of a note", LIMIT, async || {
        well.noted(&news, "a").await.is_ok_and(|one| one.is_none()).then_some(())
    })
    .await?;
    Ok(())
}

async fn cancelling_by_id_finds_a_job_with_a_key_whichever_comes_first(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let tenant = Tenant::parse("default")?;
    let key = IdempotencyKey::parse("order-1")?;
    let job = ClaimRequest { key: LedgerKey::of(&Identity::of_key(&tenant, &key)), ..fresh() };
    let id = JobId(uuid::Uuid::now_v7());
    for _ in 0..2 {
        assert_eq!(well.alias(&tenant, id, &job.key).await?, None);
    }
    assert_eq!(well.cancel(&Identity::of_id(&Tenant::default(), id)).await?, Cancelled::Now);
    says(&well.claim(&job).await?, "Settled(Cancelled)");

    let early = JobId(uuid::Uuid::now_v7());
    assert_eq!(well.cancel(&Identity::of_id(&Tenant::default(), early)).await?, Cancelled::Now);
    assert_eq!(well.alias(&tenant, early, &job.key).await?, Some(Final::Cancelled));
    Ok(())
}

async fn the_same_id_and_key_of_another_tenant_is_another_job(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let [shop, news] = [Tenant::parse("shop")?, Tenant::parse("news")?];
    let (id, key) = (JobId(uuid::Uuid::now_v7()), IdempotencyKey::parse("order-1")?);
    for by_key in [false, true] {
        let identity =
            |tenant: &Tenant| if by_key { Identity::of_key(tenant, &key) } else { Identity::of_id(tenant, id) };
        let request = |tenant: &Tenant| ClaimRequest { key: LedgerKey::of(&identity(tenant)), ..fresh() };
        let (first, second) = (request(&shop), ClaimRequest { payload_hash: another_hash(), ..request(&news) });
        let lease = go(&well, &first).await?;
        assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
        // Neither settled nor in conflict.
        let lease = go(&well, &second).await?;
        well.release(lease).await?;
        let part = LedgerKey::of_message(&identity(&shop), Some(1));
        assert_ne!(part, LedgerKey::of_message(&identity(&news), Some(1)));
        assert_eq!(well.cancel(&identity(&news)).await?, Cancelled::Now);
        assert_eq!(well.cancel(&identity(&shop)).await?, Cancelled::AlreadySent);
    }
    // An alias belongs to its tenant too.
    let (id, target) = (JobId(uuid::Uuid::now_v7()), fresh().key);
    assert_eq!(well.alias(&shop, id, &target).await?, None);
    assert_eq!(well.cancel(&Identity::of_id(&news, id)).await?, Cancelled::Now);
    assert_eq!(well.get(&target).await?, None);
    Ok(())
}

async fn after_the_store_was_emptied_only_what_may_have_been_sent_is_unknown(two: Two) -> Result<()> {
    let Two { well, place, .. } = two;
    let now = Timestamp::now();
    let redelivered = |published_at| ClaimRequest { redelivered: true, published_at, ..fresh() };
    let job = redelivered(Some(now));
    let lease = go(&well, &ClaimRequest { redelivered: false, ..job.clone() }).await?;
    assert!(well.submitting(&lease, "").await?);
    place.empty().await?;
    says(&well.claim(&job).await?, "Unknown");
    says(&well.claim(&redelivered(None)).await?, "Unknown");
    go(&well, &redelivered(Some(now + Duration::from_mins(1)))).await?;
    go(&well, &ClaimRequest { generation: 2, ..fresh() }).await?;
    // The owner whose record is gone is still the owner of its truth.
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    says(&well.claim(&job).await?, "Settled(Sent)");

    let other = fresh();
    let lease = go(&well, &other).await?;
    place.empty().await?;
    assert!(well.submitting(&lease, "").await?);
    assert_eq!(state(&well, &other).await?, RecordState::Submitting);
    Ok(())
}

async fn a_mark_made_without_a_claim_counts(two: Two) -> Result<()> {
    let Two { well, .. } = two;
    let job = fresh();
    let lease = well.lease_while_down(&job);
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::Recorded);
    let lease = well.lease_while_down(&job);
    assert_eq!(well.finish(lease, Final::Sent).await?, Finished::WasSentBefore);
    says(&well.claim(&job).await?, "Settled(Sent)");
    Ok(())
}
