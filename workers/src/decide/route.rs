//! Which rule takes a job, and by which transports.

use postrider_schemas::{Job, Lane, Tenant};

/// One rule. The first one that matches a job decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name in logs, events and `explain`.
    pub name: String,
    /// Which jobs it takes.
    pub when: When,
    /// The transport it sends by: position in the configuration's list.
    pub transport: usize,
    /// What follows when an attempt ends as unknown; by lane where absent.
    pub on_unknown: Option<OnUnknown>,
}

/// Conditions; all that are present must hold. Without any the rule takes every job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct When {
    /// The job's lane.
    pub lane: Option<Lane>,
    /// The job's tenant is one of these; any where empty.
    pub tenants: Vec<Tenant>,
}

impl When {
    /// True where the rule takes every job.
    pub fn is_catch_all(&self) -> bool {
        *self == Self::default()
    }

    fn holds(&self, job: &Job) -> bool {
        self.lane.is_none_or(|lane| lane == job.lane())
            && (self.tenants.is_empty() || self.tenants.contains(job.tenant()))
    }
}

/// What follows an attempt that may have sent the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// A person decides: never a duplicate, perhaps a delay.
    Hold,
    /// Send again: never a loss, perhaps a duplicate.
    Resend,
}

impl OnUnknown {
    /// The policy where a route names none: somebody waits for transactional mail, nobody wants a newsletter twice.
    pub fn by_lane(lane: Lane) -> Self {
        match lane {
            Lane::Transactional => Self::Resend,
            Lane::Bulk => Self::Hold,
        }
    }
}

impl Route {
    /// The policy for this job.
    pub fn on_unknown(&self, job: &Job) -> OnUnknown {
        self.on_unknown.unwrap_or_else(|| OnUnknown::by_lane(job.lane()))
    }
}

/// The first rule that matches. A checked configuration ends with a catch-all, so there always is one; without rules there is none.
pub fn route<'a>(routes: &'a [Route], job: &Job) -> Option<&'a Route> {
    routes.iter().find(|route| route.when.holds(job))
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, JobV1};

    use super::*;

    #[track_caller]
    fn check(lane: Lane, tenant: &str, expected: &str) {
        let rule = |name: &str, lane: Option<Lane>, tenants: &[&str]| Route {
            name: name.to_owned(),
            when: When { lane, tenants: tenants.iter().map(|name| Tenant::parse(name).unwrap()).collect() },
            transport: 0,
            on_unknown: None,
        };
        let routes = [
            rule("bulk of a or b", Some(Lane::Bulk), &["a", "b"]),
            rule("all of a", None, &["a"]),
            rule("bulk", Some(Lane::Bulk), &[]),
            rule("rest", None, &[]),
        ];
        let job = JobV1 {
            from: "a@shop.example".into(),
            to: vec!["b@dest.example".into()],
            text: Some(String::new()),
            lane,
            tenant: Some(tenant.to_owned()),
            ..JobV1::default()
        };
        let job = job.parse(&JobLimits::DEFAULT).unwrap();
        assert_eq!(route(&routes, &job).map(|route| route.name.as_str()), Some(expected));
    }

    #[test]
    fn the_first_rule_whose_conditions_all_hold_decides() {
        check(Lane::Bulk, "b", "bulk of a or b");
        check(Lane::Transactional, "a", "all of a");
        check(Lane::Bulk, "c", "bulk");
        check(Lane::Transactional, "b", "rest");
    }
}
