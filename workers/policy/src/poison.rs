//! Messages under whose hands workers are lost. Decoding may be what kills, so nothing here looks into a body.

use jiff::Timestamp;
use postrider_schemas::Meta;

use super::{decision::rest_reason, settlement::Settlement};

/// A message that workers did not survive goes to quarantine, and from there to `dead` when as many again were lost. Nothing for a message
/// that may be tried.
///
/// `lost` is [`losses`]; `poison_after` is how many lost workers make a message suspect.
pub fn poison(meta: &Meta, lost: u32, in_quarantine: bool, poison_after: u32, now: Timestamp) -> Option<Settlement> {
    if lost < poison_after.saturating_mul(if in_quarantine { 2 } else { 1 }) {
        return None;
    }
    let mut meta = Meta { losses: lost, ..meta.clone() };
    if !in_quarantine {
        return Some(Settlement::Quarantine(meta));
    }
    meta.generation = meta.generation.saturating_add(1);
    let detail = format!("{lost} workers ended while they had this message in hand");
    meta.rest = Some(rest_reason("crash-poison", &detail, &meta, now));
    Some(Settlement::DeadLetter(meta))
}

/// Workers that were lost with a message in hand, at most: those that its copies before this one carry, and the deliveries of this one.
pub fn losses(meta: &Meta, deliveries: u32) -> u32 {
    meta.losses.saturating_add(deliveries)
}

/// Workers that were lost while they worked on a message. Of its deliveries those count that began, which the store was told; the first one of a
/// message with no past is not told to it, and counts. In the others it waited in hand for its turn, when something else ended the worker.
pub fn losses_begun(meta: &Meta, deliveries: u32, begun: u32) -> u32 {
    let first = u32::from(meta.losses == 0);
    losses(meta, deliveries.min(begun.saturating_add(first)))
}

/// The headers of the copy that stands for a message which nobody began. That it was delivered before goes along as a loss: the queue marks no copy.
pub fn handed_back(meta: &Meta, redelivered: bool, lost: u32) -> Meta {
    Meta { losses: lost.max(redelivered.into()), ..meta.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: u32, deliveries: u32, in_quarantine: bool, expected: &str) {
        let meta = Meta { generation: 4, losses: before, ..Meta::default() };
        let lost = losses(&meta, deliveries);
        let shown = match poison(&meta, lost, in_quarantine, 3, Timestamp::UNIX_EPOCH) {
            None => "try".to_owned(),
            Some(Settlement::Quarantine(meta)) => format!("quarantine {} {}", meta.generation, meta.losses),
            Some(Settlement::DeadLetter(meta)) => {
                format!("dead_letter {} {}", meta.generation, meta.rest.unwrap().reason)
            }
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_third_lost_worker_makes_a_message_suspect_however_its_copies_were_made() {
        check(0, 0, false, "try");
        check(0, 2, false, "try");
        check(0, 3, false, "quarantine 4 3");
        check(2, 1, false, "quarantine 4 3");
        check(5, 0, false, "quarantine 4 5");
    }

    #[test]
    fn a_message_that_is_handed_back_has_lost_no_more_workers_than_before() {
        let back = |losses, redelivered, deliveries| {
            let meta = Meta { losses, generation: 4, ..Meta::default() };
            handed_back(&meta, redelivered, self::losses(&meta, deliveries))
        };
        assert_eq!(back(0, false, 0), Meta { generation: 4, ..Meta::default() });
        assert_eq!([back(0, true, 2).losses, back(1, true, 1).losses, back(2, false, 0).losses], [2, 2, 2]);
        assert_eq!(back(0, true, 0).losses, 1, "a broker that does not count returns");
    }

    #[test]
    fn deliveries_in_which_a_message_only_waited_do_not_count() {
        let lost = |losses, deliveries, begun| losses_begun(&Meta { losses, ..Meta::default() }, deliveries, begun);
        assert_eq!(
            [lost(0, 0, 0), lost(0, 1, 0), lost(0, 80, 0)],
            [0, 1, 1],
            "it waited each time but perhaps the first"
        );
        assert_eq!(
            [lost(0, 2, 1), lost(0, 3, 2), lost(0, 9, 3)],
            [2, 3, 4],
            "it was worked on each time but the first"
        );
        assert_eq!(
            [lost(3, 0, 2), lost(3, 9, 0), lost(3, 3, 3)],
            [3, 3, 6],
            "copies are told of from their first delivery on"
        );
    }

    #[test]
    fn in_quarantine_it_takes_as_many_again() {
        check(3, 0, true, "try");
        check(4, 1, true, "try");
        check(3, 3, true, "dead_letter 5 crash-poison");
        check(6, 0, true, "dead_letter 5 crash-poison");
    }
}
