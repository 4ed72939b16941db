//! Templates that would take a worker down, or never end, one of each kind.

/// A kind of bomb.
#[derive(Debug, Clone)]
pub struct Bomb {
    /// What it does.
    pub name: &'static str,
    /// The source of its text.
    pub source: String,
}

/// Chains and nests that a look at the source finds.
pub fn seen_in_the_source() -> Vec<Bomb> {
    let tag = |inner: String| format!("{{{{ {inner} }}}}");
    let chain = |link: &str, end: &str| tag(link.repeat(5000) + end);
    [
        ("a chain of signs", chain("-", "1")),
        ("a chain of not", chain("not ", "x")),
        ("a chain of sums", chain("1+", "1")),
        ("a chain of joined texts", chain("x~", "x")),
        ("a chain of filters", tag("x".to_owned() + &"|upper".repeat(3000))),
        ("a chain of tests", tag("x".to_owned() + &" is defined".repeat(2000))),
        ("a chain of conditions", chain("x if x else ", "x")),
        ("a chain of subscripts", tag("x".to_owned() + &"[0]".repeat(5000))),
        ("a chain of elif", format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(1500))),
        ("parentheses", tag("(".repeat(5000) + "1" + &")".repeat(5000))),
        ("lists in lists", tag("[".repeat(5000) + &"]".repeat(5000))),
        ("maps in maps", tag("{1:".repeat(5000) + "1" + &"}".repeat(5000))),
        ("loops in loops", "{% for a in x %}".repeat(2000)),
    ]
    .map(|(name, source)| Bomb { name, source })
    .into()
}

/// Short ones that do their work while they run.
pub fn found_out_by_running() -> Vec<Bomb> {
    let doubled = "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}";
    [
        ("nested lists that are compared", format!("{doubled}{{{{ n.a == n.b }}}}")),
        ("nested lists that are printed", format!("{doubled}{{{{ n.a }}}}")),
        ("a nested list that becomes a text", format!("{doubled}{{{{ n.a|string|length }}}}")),
        ("a long text out of a short one", "{{ ('a' * 90000000 * 9)|length }}".to_owned()),
        ("a long list out of a short one", "{{ [1]|slice(1000000000)|list|length }}".to_owned()),
        ("replaced again and again", "{{ ('a' * 100000)|replace('a', 'a' * 100000)|length }}".to_owned()),
        (
            "lists that are sorted in a loop",
            "{% for i in range(9999) %}{{ range(99999)|list|sort|length }}{% endfor %}".to_owned(),
        ),
        (
            "loops over ranges",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}".to_owned(),
        ),
        ("a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        (
            "a call block that calls itself",
            "{% macro m() %}{{ caller() }}{% call m() %}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}"
                .to_owned(),
        ),
        ("a huge output", "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}".to_owned()),
    ]
    .map(|(name, source)| Bomb { name, source })
    .into()
}
