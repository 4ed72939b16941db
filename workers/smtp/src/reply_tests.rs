use proptest::prelude::*;

use super::*;

/// Feeds `bytes` in pieces of the given sizes (the last size repeats) and takes everything that can be taken.
fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<Reply>, Option<Garbage>, bool) {
    let mut replies = SmtpReplies::default();
    let mut answers = Vec::new();
    let mut sizes = sizes.iter().copied().chain(std::iter::repeat(*sizes.last().unwrap()));
    let mut rest = bytes;
    while !rest.is_empty() {
        let spare = replies.spare();
        let count = sizes.next().unwrap().clamp(1, rest.len()).min(spare.len());
        spare[..count].copy_from_slice(&rest[..count]);
        replies.filled(count);
        rest = &rest[count..];
        loop {
            match replies.take() {
                Ok(Some(reply)) => answers.push(replies.owned(reply)),
                Ok(None) => break,
                Err(garbage) => return (answers, Some(garbage), replies.is_empty()),
            }
        }
    }
    (answers, None, replies.is_empty())
}

#[track_caller]
fn check(bytes: &str, expected: &[&str]) {
    let (answers, garbage, is_empty) = read(bytes.as_bytes(), &[usize::MAX]);
    assert_eq!(garbage, None);
    assert!(is_empty);
    let answers: Vec<_> = answers.iter().map(ToString::to_string).collect();
    assert_eq!(answers, expected);
}

#[track_caller]
fn check_garbage(bytes: &[u8], expected: Garbage) {
    for size in [1, 7, usize::MAX] {
        assert_eq!(read(bytes, &[size]).1, Some(expected), "in pieces of {size}");
    }
}

#[test]
fn replies_are_read_one_by_one() {
    check(
        "250 2.1.0 Ok\r\n550 5.1.1 <zoe@example.org>: no such user\r\n354 go\r\n",
        &["250 2.1.0 Ok", "550 5.1.1 <zoe@example.org>: no such user", "354 go"],
    );
}

#[test]
fn a_reply_of_several_lines_is_one_answer() {
    check(
        "554-5.7.1 Rejected by policy.\r\n554-5.7.1 See the page.\r\n554 5.7.1 Bye\r\n",
        &["554 5.7.1 Rejected by policy. See the page. Bye"],
    );
}

#[test]
fn odd_but_harmless_replies_are_understood() {
    check("250\r\n250 \r\n250-\r\n250\r\n", &["250"; 3]);
    check("250 ok\n", &["250 ok"]);
    check("250 2.0.0\r\n", &["250 2.0.0"]);
    check("250 1.2.3.4 is you\r\n250 2.x.1 hm\r\n", &["250 1.2.3.4 is you", "250 2.x.1 hm"]);
}

#[test]
fn half_a_reply_is_not_taken() {
    let (answers, garbage, is_empty) = read(b"250-one\r\n250-two\r\n", &[3]);
    assert!(answers.is_empty() && garbage.is_none() && !is_empty);
}

#[test]
fn what_is_no_reply_is_garbage() {
    check_garbage(b"hello\r\n", Garbage::NoCode);
    check_garbage(b"\r\n", Garbage::NoCode);
    check_garbage(b"199 no\r\n", Garbage::NoCode);
    check_garbage(b"600 no\r\n", Garbage::NoCode);
    check_garbage(b"25 no\r\n", Garbage::NoCode);
    check_garbage(b"2500 no\r\n", Garbage::NoCode);
    check_garbage(b"\x16\x03\x01\x00\n\x01", Garbage::NoCode);
    check_garbage(b"250-a\r\n550 b\r\n", Garbage::MixedCodes);
    check_garbage(b"450-a\r\n250 b\r\n", Garbage::MixedCodes);
    check_garbage(b"220-a\r\n521 b\r\n", Garbage::MixedCodes);
    check_garbage(b"250-a\r\nb\r\n", Garbage::NoCode);
}

#[test]
fn a_reply_without_end_is_given_up() {
    check_garbage(&[b'2'; LINE_MAX + 1], Garbage::LongLine);
    check_garbage(&[b'x'; LINE_MAX + 1], Garbage::LongLine);
    let longest = format!("250 {}\r\n", "x".repeat(LINE_MAX - 6));
    assert_eq!(read(longest.as_bytes(), &[1]).0.len(), 1);
}

#[test]
fn of_a_reply_without_end_the_beginning_counts_and_nothing_after_it() {
    for bytes in [
        format!("250 {}\r\n250 next\r\n", "x".repeat(LINE_MAX)),
        "250-x\r\n".repeat(LINES_MAX + 1),
        format!("250-{}\r\n", "x".repeat(1500)).repeat(60),
    ] {
        for size in [1000, usize::MAX] {
            let (answers, garbage, is_empty) = read(bytes.as_bytes(), &[size]);
            assert_eq!((answers.len(), answers[0].code, is_empty), (1, 250, false), "in pieces of {size}");
            assert_eq!(garbage, Some(Garbage::LongReply));
        }
    }
}

#[test]
fn where_lines_bear_different_codes_the_first_digit_decides() {
    check("550-5.7.1 no\r\n554 5.7.1 failed\r\n", &["554 5.7.1 no failed"]);
    check("250-Ok\r\n251 queued\r\n", &["251 Ok queued"]);
    check("550-5.7.1 no\r\n451 4.7.1 later\r\n", &["451 5.7.1 no later"]);
    check("451-later\r\n550 no\r\n", &["451 later no"]);
    check("250Ok\r\n", &["250 Ok"]);
    let long = format!("250 {}\r\n", "word ".repeat(500));
    assert_eq!(read(long.as_bytes(), &[7]).0.len(), 1);
}

#[test]
fn an_enhanced_code_in_brackets_counts() {
    check("553 not in my list (#5.7.1)\r\n", &["553 5.7.1 not in my list (#5.7.1)"]);
}

fn a_reply() -> impl Strategy<Value = String> {
    (200..600_u16, proptest::collection::vec("[ -~é]{0,60}", 1..6)).prop_map(|(code, texts)| {
        let last = texts.len() - 1;
        texts.iter().enumerate().fold(String::new(), |all, (index, text)| {
            all + &format!("{code}{}{text}\r\n", if index == last { ' ' } else { '-' })
        })
    })
}

proptest! {
    #[test]
    fn however_replies_are_split_they_read_the_same(
        replies in proptest::collection::vec(a_reply(), 1..8), sizes in proptest::collection::vec(1..50_usize, 1..20)) {
        let bytes = replies.concat();
        let whole = read(bytes.as_bytes(), &[usize::MAX]);
        prop_assert_eq!(whole.0.len(), replies.len());
        prop_assert!(whole.1.is_none() && whole.2);
        prop_assert_eq!(read(bytes.as_bytes(), &sizes), whole);
    }

    #[test]
    fn any_bytes_read_the_same_in_any_pieces_and_stay_bounded(
        bytes in proptest::collection::vec(prop_oneof![Just(b'2'), Just(b'5'), Just(b'0'), Just(b'-'), Just(b' '),
            Just(b'\r'), Just(b'\n'), any::<u8>()], 0..600),
        sizes in proptest::collection::vec(1..50_usize, 1..20)) {
        let whole = read(&bytes, &[usize::MAX]);
        let pieces = read(&bytes, &sizes);
        prop_assert_eq!(&whole.0, &pieces.0);
        prop_assert_eq!(whole.1, pieces.1);
        for answer in whole.0 {
            prop_assert!(answer.text.len() <= TEXT_READ + LINE_MAX);
        }
    }

    #[test]
    fn a_reply_cut_short_is_never_taken_for_a_whole_one(reply in a_reply(), cut in any::<prop::sample::Index>()) {
        let bytes = &reply.as_bytes()[..cut.index(reply.len())];
        prop_assert!(read(bytes, &[usize::MAX]).0.is_empty());
    }
}
