//! Which mailbox provider a domain belongs to: an explicit list, then the names of its mail exchangers, else the domain itself.

/// A configured group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxProvider {
    /// Its name in logs, metrics and buckets.
    pub name: String,
    /// Domains; one that begins with a dot stands for everything below it.
    pub domains: Vec<String>,
    /// Ends of names of mail exchangers, such as `.google.com`.
    pub mx: Vec<String>,
}

/// What is known of a domain's mail exchangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MxHosts<'a> {
    /// Nothing: DNS is not asked, or does not answer.
    Unknown,
    /// Their names, the preferred one first.
    Names(&'a [String]),
}

/// The groups, in the order in which they are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailboxProviders(pub Vec<MailboxProvider>);

impl MailboxProviders {
    /// The group of a domain in lower case; nothing where no configured one takes it, and the domain is its own group.
    pub fn find(&self, domain: &str, exchangers: MxHosts<'_>) -> Option<&MailboxProvider> {
        let by_domain = |group: &&MailboxProvider| group.domains.iter().any(|one| is_domain(one, domain));
        if let Some(group) = self.0.iter().find(by_domain) {
            return Some(group);
        }
        let MxHosts::Names(names) = exchangers else { return None };
        // The preferred exchanger speaks for the domain: a backup elsewhere does not make it another provider's.
        let preferred = names.first()?.trim_end_matches('.').to_ascii_lowercase();
        self.0.iter().find(|group| group.mx.iter().any(|one| is_exchanger(one, &preferred)))
    }

    /// Whether asking DNS about a domain may change its group.
    pub fn needs_exchangers(&self, domain: &str) -> bool {
        self.0.iter().any(|group| !group.mx.is_empty()) && self.find(domain, MxHosts::Unknown).is_none()
    }
}

/// As in the conditions of routes: a leading dot stands for everything below, and not for the domain itself.
fn is_domain(pattern: &str, name: &str) -> bool {
    if pattern.starts_with('.') { name.ends_with(pattern) } else { name == pattern }
}

/// The end of a name, or the whole of it.
fn is_exchanger(pattern: &str, name: &str) -> bool {
    is_domain(pattern, name) || pattern.strip_prefix('.') == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(domain: &str, exchangers: &[&str], expected: Option<&str>) {
        let text = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let group = |name: &str, domains: &[&str], mx: &[&str]| MailboxProvider {
            name: name.to_owned(),
            domains: text(domains),
            mx: text(mx),
        };
        let groups = MailboxProviders(vec![
            group("google", &["gmail.com", "googlemail.com"], &[".google.com", ".googlemail.com"]),
            group("yahoo", &["yahoo.com", ".yahoo.example"], &[".yahoodns.net"]),
        ]);
        let names = text(exchangers);
        let known = if names.is_empty() { MxHosts::Unknown } else { MxHosts::Names(&names) };
        assert_eq!(groups.find(domain, known).map(|group| group.name.as_str()), expected);
    }

    #[test]
    fn a_list_comes_before_exchangers_and_exchangers_before_the_domain() {
        check("gmail.com", &["mta7.am0.yahoodns.net."], Some("google"));
        check("shop.example", &["ASPMX.L.GOOGLE.COM.", "mx.backup.example."], Some("google"));
        check("shop.example", &["mx.shop.example.", "aspmx.l.google.com."], None);
        check("shop.example", &[], None);
    }

    #[test]
    fn a_leading_dot_stands_for_everything_below() {
        check("mail.yahoo.example", &[], Some("yahoo"));
        check("yahoo.example", &[], None);
        check("notyahoo.example", &[], None);
        check("mail.gmail.com", &[], None);
        check("shop.example", &["notgoogle.com."], None);
    }
}
