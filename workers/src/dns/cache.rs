//! What is remembered of domains, which of them somebody is asked about, and whether the resolver speaks. Asks nobody; the time is an argument.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::DnsAnswer;

/// Domains that are remembered.
const KEPT_MAX: usize = 50_000;
/// How long nobody waits again for a domain whose answer did not come, once its question is given up.
const KEPT_MISS: Duration = Duration::from_secs(5);
/// So many answers in a row that did not come are a reason to find out whether the resolver speaks at all.
pub(super) const SILENT_AFTER: u32 = 5;

/// What came of a question: nothing yet, else the answer; `Unknown` as well while it is late.
pub(super) type PendingAnswer = watch::Receiver<Option<DnsAnswer>>;

/// The memory.
#[derive(Default)]
pub(super) struct CachedAnswers {
    answers: HashMap<String, (DnsAnswer, Instant)>,
    asked: HashMap<String, PendingAnswer>,
    pub(super) silence: SilenceWatch,
}

/// What can be said of a domain.
pub(super) enum CachedState {
    /// This, without asking.
    Known(DnsAnswer),
    /// Somebody asked already, and the answer may still be in time.
    Asked(PendingAnswer),
    /// Nothing before it is asked about.
    Open,
}

impl CachedAnswers {
    /// What can be said of a domain now.
    pub(super) fn state(&self, domain: &str, now: Instant) -> CachedState {
        if let Some((answer, _)) = self.answers.get(domain).filter(|(_, until)| *until > now) {
            return CachedState::Known(answer.clone());
        }
        if self.silence.is_silent() {
            return CachedState::Known(DnsAnswer::Unknown);
        }
        let Some(heard) = self.asked.get(domain) else { return CachedState::Open };
        // One that is late holds nobody.
        let answer = heard.borrow().clone();
        answer.map_or_else(|| CachedState::Asked(heard.clone()), CachedState::Known)
    }

    /// Somebody is asked about a domain.
    pub(super) fn asks(&mut self, domain: &str, heard: PendingAnswer) {
        self.asked.insert(domain.to_owned(), heard);
    }

    /// The question about a domain is over: with an answer and its life, or without one.
    pub(super) fn hear(&mut self, domain: &str, found: Option<(DnsAnswer, Duration)>, now: Instant) {
        self.asked.remove(domain);
        if self.answers.len() >= KEPT_MAX {
            self.answers.retain(|_, (_, until)| *until > now);
        }
        if self.answers.len() >= KEPT_MAX {
            // More domains than fit within their life: begin anew rather than grow.
            self.answers.clear();
        }
        let (answer, life) = found.unwrap_or((DnsAnswer::Unknown, KEPT_MISS));
        self.answers.insert(domain.to_owned(), (answer, now + life));
    }
}

/// Whether the resolver speaks. A domain whose own servers do not answer may leave a question without an answer; only a resolver that says
/// nothing about what it knows by itself is silent.
#[derive(Debug, Default)]
pub(super) struct SilenceWatch {
    /// Answers in a row that did not come.
    missed: u32,
    /// The search for its voice that is under way, by its number.
    search: Option<u32>,
    searches: u32,
    is_silent: bool,
}

/// What came of a look at the resolver itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SilenceFinding {
    /// It speaks: answers were missed for other reasons.
    Speaks,
    /// It has been silent, and speaks.
    SpeaksAgain,
    /// It is silent, which was not known.
    IsSilent,
    /// It is silent as before.
    StillSilent,
    /// Somebody else knows by now.
    Outdated,
}

impl SilenceWatch {
    /// Nobody waits for it.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Somebody is finding out whether it speaks.
    #[cfg(test)]
    pub(super) fn is_searched(&self) -> bool {
        self.search.is_some()
    }

    /// An answer did not come in time. The number of the search for its voice, where one is to begin.
    pub(super) fn missed(&mut self) -> Option<u32> {
        self.missed = self.missed.saturating_add(1);
        if self.missed < SILENT_AFTER || self.search.is_some() {
            return None;
        }
        self.searches = self.searches.wrapping_add(1);
        self.search = Some(self.searches);
        self.search
    }

    /// An answer came. Whether it has been silent.
    pub(super) fn spoke(&mut self) -> bool {
        let was_silent = self.is_silent;
        (self.missed, self.search, self.is_silent) = (0, None, false);
        was_silent
    }

    /// What a search found. It goes on while the resolver is silent.
    pub(super) fn searched(&mut self, search: u32, speaks: bool) -> SilenceFinding {
        if self.search != Some(search) {
            return SilenceFinding::Outdated;
        }
        match (speaks, self.is_silent) {
            (true, true) => {
                self.spoke();
                SilenceFinding::SpeaksAgain
            }
            (true, false) => {
                self.spoke();
                SilenceFinding::Speaks
            }
            (false, true) => SilenceFinding::StillSilent,
            (false, false) => {
                self.is_silent = true;
                SilenceFinding::IsSilent
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `m` is an answer that is missed, `a` one that comes; `+` and `-` what the search finds that began last. `!` where a search begins.
    #[track_caller]
    fn check(events: &str, begun: &str, is_silent: bool) {
        let mut silence = SilenceWatch::default();
        let mut number = 0;
        let seen: String = events
            .chars()
            .map(|event| match event {
                'm' => silence.missed().map_or('.', |search| {
                    number = search;
                    '!'
                }),
                'a' => {
                    silence.spoke();
                    '.'
                }
                speaks => {
                    silence.searched(number, speaks == '+');
                    '.'
                }
            })
            .collect();
        assert_eq!((seen.as_str(), silence.is_silent()), (begun, is_silent));
    }

    #[test]
    fn answers_that_are_missed_say_nothing_of_a_resolver_that_speaks() {
        check("mmmm", "....", false);
        check("mmmmm", "....!", false);
        check("mmmmm-", "....!.", true);
        check("mmmmm+", "....!.", false);
        check("mmmmmmmmm", "....!....", false);
        check("mmmmm+mmmmm", "....!.....!", false);
        check("mmmammmm", "........", false);
    }

    #[test]
    fn any_answer_ends_the_silence_and_what_an_older_search_finds() {
        check("mmmmm-a", "....!..", false);
        check("mmmmm-+", "....!..", false);
        check("mmmmm--", "....!..", true);
        check("mmmmma-", "....!..", false);
        check("mmmmm-ammmmm", "....!......!", false);
    }

    #[test]
    fn a_question_that_is_late_holds_nobody_and_its_answer_counts_when_it_comes() {
        let mut known = CachedAnswers::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let is_unknown = |state: CachedState| matches!(state, CachedState::Known(DnsAnswer::Unknown));
        assert!(matches!(known.state("slow.example", at(0)), CachedState::Open));
        let (tell, heard) = watch::channel(None);
        known.asks("slow.example", heard);
        assert!(matches!(known.state("slow.example", at(0)), CachedState::Asked(_)));
        tell.send_replace(Some(DnsAnswer::Unknown));
        assert!(is_unknown(known.state("slow.example", at(1))));
        known.hear("slow.example", Some((DnsAnswer::NoSuchDomain, Duration::from_secs(60))), at(2));
        assert!(matches!(known.state("slow.example", at(61)), CachedState::Known(DnsAnswer::NoSuchDomain)));
        assert!(matches!(known.state("slow.example", at(62)), CachedState::Open));
        known.hear("slow.example", None, at(70));
        assert!(is_unknown(known.state("slow.example", at(74))));
        assert!(matches!(known.state("slow.example", at(75)), CachedState::Open));
    }

    #[test]
    fn while_the_resolver_is_silent_nobody_waits_and_what_is_remembered_counts() {
        let mut known = CachedAnswers::default();
        let now = Instant::now();
        known.hear("known.example", Some((DnsAnswer::TakesNoMail, Duration::from_secs(60))), now);
        known.silence.is_silent = true;
        assert!(matches!(known.state("known.example", now), CachedState::Known(DnsAnswer::TakesNoMail)));
        assert!(matches!(known.state("new.example", now), CachedState::Known(DnsAnswer::Unknown)));
    }
}
