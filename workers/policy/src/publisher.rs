//! For whom a user of the broker may publish. The broker vouches for the user of a message; who may send for which tenant is a setting.

use std::collections::BTreeMap;

use postrider_schemas::Tenant;

/// The tenants that one user may publish for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenants {
    /// Every one.
    Any,
    /// These.
    Listed(Vec<Tenant>),
}

/// The users that may publish, with their tenants. Nothing where the setting is absent: then everybody may publish for everybody.
pub type Publishers = Option<BTreeMap<String, Tenants>>;

/// Why a job may not be sent; nothing where it may. `publisher` is as in [`postrider_schemas::Meta::publisher`]: nothing for a job that was judged
/// before.
pub fn refusal(publishers: &Publishers, publisher: Option<&str>, tenant: &Tenant) -> Option<String> {
    let (publishers, publisher) = (publishers.as_ref()?, publisher?);
    if publisher.is_empty() {
        return Some("it was published without a user_id, which the setting queue.tenants asks for".to_owned());
    }
    match publishers.get(publisher) {
        Some(Tenants::Any) => None,
        Some(Tenants::Listed(list)) if list.contains(tenant) => None,
        // A name of the broker's, of which anything may be a part: shown without what could harm a terminal.
        _ => Some(format!(
            "the setting queue.tenants does not let the broker's user {} publish for this tenant",
            publisher.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    #[test]
    fn a_user_publishes_for_its_own_tenants() {
        let publishers = Some(BTreeMap::from([
            ("shop-api".to_owned(), Tenants::Listed(vec![tenant("shop"), tenant("news")])),
            ("platform".to_owned(), Tenants::Any),
        ]));
        let check = |publisher: Option<&str>, of: &str, expected: Option<&str>| {
            let found = refusal(&publishers, publisher, &tenant(of));
            assert_eq!(found.is_some(), expected.is_some(), "{publisher:?} {of}: {found:?}");
            assert!(found.is_none_or(|found| found.contains(expected.unwrap())), "{publisher:?} {of}");
        };
        check(Some("shop-api"), "shop", None);
        check(Some("shop-api"), "news", None);
        check(Some("shop-api"), "bank", Some("shop-api"));
        check(Some("platform"), "bank", None);
        check(Some("guest"), "shop", Some("guest"));
        check(Some("\u{1b}[2J"), "shop", Some("\\u{1b}"));
        check(Some(""), "shop", Some("user_id"));
        // Judged when it was fresh.
        check(None, "bank", None);
    }

    #[test]
    fn without_the_setting_everybody_publishes_for_everybody() {
        assert_eq!(refusal(&None, Some(""), &tenant("shop")), None);
        assert_eq!(refusal(&None, Some("guest"), &tenant("shop")), None);
    }
}
