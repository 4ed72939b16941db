use super::*;

#[track_caller]
fn check(text: &str, expected: Result<(&str, Option<&str>), AddressError>) {
    let parsed = Mailbox::parse(text);
    let seen = parsed.as_ref().map(|m| (m.address().to_string(), m.name())).map_err(|error| *error);
    assert_eq!(seen, expected.map(|(address, name)| (address.to_owned(), name)));
}

#[test]
fn plain_and_named_forms() {
    check("a@b.test", Ok(("a@b.test", None)));
    check("<a@b.test>", Ok(("a@b.test", None)));
    check("Zoë Smith <zoe@b.test>", Ok(("zoe@b.test", Some("Zoë Smith"))));
    check(r#""Smith, \"Z\"" <z@b.test>"#, Ok(("z@b.test", Some("Smith, \"Z\""))));
}

#[test]
fn several_addresses_are_a_list_and_never_a_name() {
    let list = |text: &str| {
        Mailbox::parse_list(text).map(|list| {
            let one = |one: &Mailbox| format!("{}|{}", one.name().unwrap_or(""), one.address());
            list.iter().map(one).collect::<Vec<_>>().join(" ")
        })
    };
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(list("Ada <a@b.test>, Bob <b@b.test>"), ok("Ada|a@b.test Bob|b@b.test"));
    assert_eq!(list("a@b.test;b@b.test; "), ok("|a@b.test |b@b.test"));
    assert_eq!(list("Byron, Ada <a@b.test>, b@b.test"), ok("Byron, Ada|a@b.test |b@b.test"));
    assert_eq!(list(r#""Byron, A; \"x\"" <a@b.test>"#), ok(r#"Byron, A; "x"|a@b.test"#));
    assert_eq!(list(r#""a,b;c"@b.test, d@b.test"#), ok(r#"|"a,b;c"@b.test |d@b.test"#));
    assert_eq!(list("a@b.test, Bob"), Err(AddressError::NoAt));
    assert_eq!(list(" , ;"), Err(AddressError::NoAt));
    for text in ["Ada <a@b.test>, Bob <b@b.test>", "a@b.test; b@b.test", "a@b.test <b@b.test>"] {
        check(text, Err(AddressError::Several));
    }
    assert_eq!(EmailAddress::parse("a@b.test,b@b.test"), Err(AddressError::Several));
    check("Ada <a@b.test> Bob <b@b.test>", Err(AddressError::Form));
    check(r#""Ada" <a@b.test> "Bob" <b@b.test>"#, Err(AddressError::Form));
    check("a@b.test <a@b.test>", Ok(("a@b.test", Some("a@b.test"))));
}

#[test]
fn quoted_local_parts_keep_their_quotes_where_they_need_them() {
    check(r#""a b"@c.test"#, Ok((r#""a b"@c.test"#, None)));
    check(r#""a.b"@c.test"#, Ok(("a.b@c.test", None)));
    check(r#""a\.b\"\\"@c.test"#, Ok((r#""a.b\"\\"@c.test"#, None)));
    check(r#"Ada <"a@b"@c.test>"#, Ok((r#""a@b"@c.test"#, Some("Ada"))));
    check(r#""a<b"@c.test"#, Ok((r#""a<b"@c.test"#, None)));
    check(r#"""@c.test"#, Err(AddressError::LocalLength));
    check("\"a\r\n\"@c.test", Err(AddressError::Local));
    check(r#""a"b"@c.test"#, Err(AddressError::Local));
}

#[test]
fn invisible_characters_are_refused_and_blanks_around_an_address_dropped() {
    for c in ['\u{200b}', '\u{ad}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{e000}', '\u{200d}', '\u{fffd}', '\u{e0041}']
    {
        check(&format!("a{c}b@c.test"), Err(AddressError::Invisible));
        check(&format!("{c}a@c.test"), Err(AddressError::Invisible));
        check(&format!("\"a {c}\"@c.test"), Err(AddressError::Invisible));
    }
    for text in [" a@c.test\t", "\ta@c.test ", "< a@c.test >"] {
        check(text, Ok(("a@c.test", None)));
    }
    assert_eq!(EmailAddress::parse(" a@c.test\t").map(|one| one.to_string()), Ok("a@c.test".to_owned()));
    check("A\tB <a@c.test>", Ok(("a@c.test", Some("A B"))));
}

#[test]
fn domains_become_ascii_and_lower_case() {
    check("a@Bücher.Example", Ok(("a@xn--bcher-kva.example", None)));
    check("ü@例え.jp", Ok(("ü@xn--r8jz45g.jp", None)));
}

#[test]
fn bad_addresses_are_refused() {
    check("nobody", Err(AddressError::NoAt));
    check("@b.test", Err(AddressError::LocalLength));
    check(&format!("{}@b.test", "x".repeat(65)), Err(AddressError::LocalLength));
    check("a..b@c.test", Err(AddressError::Local));
    check("a b@c.test", Err(AddressError::Local));
    check("a@", Err(AddressError::Domain));
    check("a@b..test", Err(AddressError::Domain));
    check("a@b_c.test", Err(AddressError::Domain));
    check("a@-b.test", Err(AddressError::Domain));
    check("a@xn--zzzzzzz99999.test", Err(AddressError::Domain));
    check(&format!("a@{}.test", "x".repeat(64)), Err(AddressError::Domain));
    check(&format!("a@{}.test", "ü".repeat(5_000_000)), Err(AddressError::Domain));
    check("Name <a@b.test", Err(AddressError::Form));
}

#[test]
fn line_breaks_are_refused_wherever_they_hide() {
    check("a@b.test\r\nBcc: c@d.test", Err(AddressError::Local));
    check("a\r\n@b.test", Err(AddressError::Local));
    check("a@b.test\r\n", Err(AddressError::Domain));
    check("Na\r\nme <a@b.test>", Err(AddressError::Name));
    check("Na\0me <a@b.test>", Err(AddressError::Name));
}

#[test]
fn debug_output_shows_no_local_part() {
    let mailbox = Mailbox::parse("Zoë <zoe@b.test>").unwrap();
    assert_eq!(format!("{mailbox:?}"), "[address at b.test]");
}
