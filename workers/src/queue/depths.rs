//! How much waits where, for gauges and `postrider status`. Looks, and changes nothing.

use std::time::Duration;

use postrider_schemas::Lane;

use super::SourceKind;

/// What waits in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Depths {
    /// Jobs that wait to be attempted: fresh ones and ones that came back, by lane. Those in the hands of workers do not count.
    pub jobs: [u64; 2],
    /// See `jobs`.
    pub due: [u64; 2],
    /// Given up.
    pub dead: u64,
    /// Waits for a person.
    pub hold: u64,
    /// In quarantine.
    pub suspect: u64,
    /// Wanted by no queue.
    pub unroutable: u64,
    /// Events that those who listen did not take yet.
    pub events: u64,
    /// Parked, by the level of the ladder; nothing where it was not looked at.
    pub ladder: Option<[u64; 7]>,
    /// How long the oldest job of each lane waits, where the queue can tell.
    pub oldest: [Option<Duration>; 2],
}

impl Depths {
    /// Jobs of a lane that wait in a kind of queue.
    pub fn of(&self, kind: SourceKind, lane: Lane) -> u64 {
        match kind {
            SourceKind::Jobs => self.jobs[place(lane)],
            SourceKind::Due => self.due[place(lane)],
            SourceKind::Suspect => self.suspect,
        }
    }

    /// Jobs of a lane that wait to be attempted.
    pub fn waiting(&self, lane: Lane) -> u64 {
        self.jobs[place(lane)] + self.due[place(lane)]
    }

    /// Parked jobs on all levels.
    pub fn parked(&self) -> Option<u64> {
        self.ladder.map(|levels| levels.iter().sum())
    }
}

/// Where a lane stands in lists of two.
pub fn place(lane: Lane) -> usize {
    usize::from(lane == Lane::Bulk)
}
