use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn plain_templates_are_told_from_programs() {
    let cases = [
        ("", true),
        ("Hello { name } {", true),
        ("Hello {{ name }}, {{order.number|upper}} {{- a.b_c | trim|e -}} {{+ x +}}", true),
        ("}} {{ _a1 }} %}", true),
        ("{{ 1 }}", false),
        ("{{ a.0 }}", false),
        ("{{ a..b }}", false),
        ("{{ a b }}", false),
        ("{{ a|join }}", false),
        ("{{ a|upper|upper|upper|upper|upper }}", false),
        ("{{ a|default('x') }}", false),
        ("{{ a ~ b }}", false),
        ("{{ -a }}", false),
        ("{{ a }", false),
        ("{{ a", false),
        ("{{ a - }}", false),
        ("{% if a %}b{% endif %}", false),
        ("{# a #}", false),
        ("{{ ä }}", false),
    ];
    for (source, is_plain) in cases {
        assert_eq!(survey(source).unwrap().is_plain, is_plain, "{source}");
    }
    assert!(!survey(&format!("{{{{ {} }}}}", ["a"; 17].join("."))).unwrap().is_plain);
}

#[test]
fn each_kind_of_chain_has_its_limit() {
    let many = |text: &str, count: usize| text.repeat(count);
    let tag = |inner: String| format!("{{{{ {inner} }}}}");
    let cases = [
        ("unary signs", tag(many("-", 300) + "1"), TemplateLimit::Operators),
        ("not", tag(many("not ", 300) + "x"), TemplateLimit::Operators),
        ("sums", tag(many("1+", 300) + "1"), TemplateLimit::Operators),
        ("joined texts", tag(many("a~", 300) + "a"), TemplateLimit::Operators),
        ("filters", tag("a".to_owned() + &many("|upper", 300)), TemplateLimit::Operators),
        ("comparisons", tag(many("a<", 300) + "a"), TemplateLimit::Operators),
        ("tests", tag("a".to_owned() + &many(" is defined", 300)), TemplateLimit::Operators),
        ("and", tag(many("a and ", 300) + "a"), TemplateLimit::Operators),
        ("conditions", tag(many("a if a else ", 300) + "a"), TemplateLimit::Operators),
        ("attributes", tag("a".to_owned() + &many(".a", 300)), TemplateLimit::Operators),
        ("calls", tag("a".to_owned() + &many("()", 300)), TemplateLimit::Operators),
        ("subscripts", tag("a".to_owned() + &many("[0]", 300)), TemplateLimit::Operators),
        ("in a block", format!("{{% if {}1 %}}{{% endif %}}", many("1+", 300)), TemplateLimit::Operators),
        ("parentheses", tag(many("(", 60) + "1" + &many(")", 60)), TemplateLimit::Depth),
        ("lists", tag(many("[", 60) + &many("]", 60)), TemplateLimit::Depth),
        ("maps", tag(many("{1:", 60) + "1" + &many("}", 60)), TemplateLimit::Depth),
        ("blocks", many("{% if a %}", 60), TemplateLimit::Depth),
        ("loops", many("{%- for a in b -%}", 60), TemplateLimit::Depth),
        ("elif", format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}", 300)), TemplateLimit::Elif),
        ("tags", many("{{ a }}", 10_001), TemplateLimit::Tags),
        ("octets", many("a", 1024 * 1024 + 1), TemplateLimit::Octets),
    ];
    for (name, source, limit) in cases {
        assert_eq!(survey(&source), Err(limit), "{name}");
    }
}

#[test]
fn what_is_no_operator_counts_for_none() {
    let many = |text: &str| text.repeat(300);
    let sources = [
        many("- + ( ) [ ] < > | ~ not and if else { % }"),
        format!("{{{{ '{}' }}}}", many("- + ( [ { not \\' ")),
        format!("{{% raw %}}{}{{% endraw %}}", many("{{ 1+1+1 }}{% if %}((((")),
        format!("{{# {} #}}", many("{{ ((((1+1+1 }}{% if %}")),
        many("{% if a %}{{ b + c }}{% endif %}"),
        many("{% for a in b %}{% if c %}{% endif %}{% else %}{% endfor %}"),
    ];
    for source in sources {
        assert!(survey(&source).is_ok(), "{source}");
    }
}

#[test]
fn variables_weigh_about_what_their_json_does() {
    let variables = json!({"a": "x".repeat(100), "b": [1, 2, {"c": null}], "d": {"e": true}});
    let Value::Object(variables) = variables else { panic!() };
    let weighed = weight(&variables, 1000).unwrap();
    assert!((100..200).contains(&weighed), "{weighed}");
    assert_eq!(weight(&variables, weighed), Some(weighed));
    assert_eq!(weight(&variables, weighed - 1), None);
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("{{"),
        Just("}}"),
        Just("{%"),
        Just("%}"),
        Just("{#"),
        Just("#}"),
        Just("-"),
        Just("\""),
        Just("'"),
        Just("\\"),
        Just("raw"),
        Just("endraw"),
        Just(" a "),
        Just("("),
        Just(")"),
        Just("["),
        Just("]"),
        Just("if "),
        Just("endif"),
        Just("|upper"),
        Just("é"),
        Just("."),
        Just("{"),
        Just("}"),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|list| list.concat())
}

proptest! {
    #[test]
    fn no_source_breaks_the_pass(source in pieces(), other in any::<String>()) {
        let _ = survey(&source);
        let _ = survey(&other);
    }

    /// However a chain is dressed up, in front of it and behind it.
    #[test]
    fn a_chain_in_a_tag_is_found_whatever_stands_around_it(
        before in "[a-z<>() \\-+]{0,40}", link in prop_oneof![Just("1+"), Just("- "), Just("a|e|"), Just("not "), Just("a~")],
        after in "[ -~]{0,40}",
    ) {
        let source = format!("{before}{{{{ 'x' ~ {}1 }}}}{after}", link.repeat(260));
        prop_assert_eq!(survey(&source), Err(TemplateLimit::Operators));
    }

    #[test]
    fn a_plain_template_holds_names_alone_in_its_tags(source in pieces()) {
        if let Ok(survey) = survey(&source) && survey.is_plain {
            prop_assert!(!source.contains("{%") && !source.contains("{#"), "{source}");
            prop_assert_eq!(source.matches("{{").count() >= survey.tags, true);
        }
    }
}
