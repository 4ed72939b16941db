//! Reads command lines of SMTP. Pure.

/// A command with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// EHLO
    Ehlo,
    /// HELO
    Helo,
    /// STARTTLS
    StartTls,
    /// AUTH, with the first response where it is on the same line.
    Auth {
        /// In capitals.
        mechanism: String,
        /// In base64.
        initial: Option<String>,
    },
    /// MAIL
    Mail {
        /// The address; empty for `<>`.
        from: String,
        /// `SIZE`
        size: Option<u64>,
    },
    /// RCPT
    Rcpt {
        /// The address.
        to: String,
    },
    /// DATA
    Data,
    /// BDAT: so many octets follow at once (RFC 3030).
    Bdat {
        /// Octets.
        size: u64,
        /// The message ends with them.
        is_last: bool,
    },
    /// RSET
    Rset,
    /// NOOP and HELP: answered, and nothing changes.
    Noop,
    /// VRFY: whether an address exists is not told.
    Vrfy,
    /// QUIT
    Quit,
}

/// Why a line is no command that is taken here: the reply to it.
pub type Refusal = &'static str;

const SYNTAX: Refusal = "501 5.5.4 Syntax error in the parameters";

/// Reads a line without its end.
pub fn parse(line: &[u8]) -> Result<Command, Refusal> {
    let line = std::str::from_utf8(line).map_err(|_| "500 5.5.2 The command is not UTF-8")?;
    if line.contains(char::is_control) {
        return Err("500 5.5.2 The command holds a control character");
    }
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    let alone = |command| if rest.is_empty() { Ok(command) } else { Err(SYNTAX) };
    match verb.to_ascii_uppercase().as_str() {
        "EHLO" if !rest.is_empty() => Ok(Command::Ehlo),
        "HELO" if !rest.is_empty() => Ok(Command::Helo),
        "EHLO" | "HELO" => Err(SYNTAX),
        "STARTTLS" => alone(Command::StartTls),
        "AUTH" => auth(rest),
        "MAIL" => mail(rest),
        "RCPT" => recipient(rest),
        "DATA" => alone(Command::Data),
        "BDAT" => chunk(rest),
        "RSET" => alone(Command::Rset),
        "QUIT" => alone(Command::Quit),
        "NOOP" | "HELP" => Ok(Command::Noop),
        "VRFY" => Ok(Command::Vrfy),
        _ => Err("500 5.5.1 Command not known"),
    }
}

fn auth(rest: &str) -> Result<Command, Refusal> {
    let mut words = rest.split_whitespace();
    let mechanism = words.next().ok_or(SYNTAX)?.to_ascii_uppercase();
    let initial = words.next().map(str::to_owned);
    if words.next().is_some() { Err(SYNTAX) } else { Ok(Command::Auth { mechanism, initial }) }
}

fn mail(rest: &str) -> Result<Command, Refusal> {
    let (from, parameters) = path(rest, "FROM:")?;
    let mut size = None;
    for parameter in parameters.split_whitespace() {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (name.to_ascii_uppercase().as_str(), value.to_ascii_uppercase().as_str()) {
            ("SIZE", digits) => size = Some(number(digits)?),
            // What the message holds is looked up in the message; who sent it to our client says nothing here (RFC 4954).
            ("BODY", "7BIT" | "8BITMIME") | ("SMTPUTF8", "") | ("AUTH", _) => {}
            _ => return Err("555 5.5.4 A parameter of MAIL is not known"),
        }
    }
    Ok(Command::Mail { from, size })
}

fn recipient(rest: &str) -> Result<Command, Refusal> {
    let (to, parameters) = path(rest, "TO:")?;
    if !parameters.is_empty() {
        return Err("555 5.5.4 A parameter of RCPT is not known");
    }
    if to.is_empty() { Err(SYNTAX) } else { Ok(Command::Rcpt { to }) }
}

fn chunk(rest: &str) -> Result<Command, Refusal> {
    let mut words = rest.split_whitespace();
    let size = number(words.next().ok_or(SYNTAX)?)?;
    let is_last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return Err(SYNTAX),
    };
    if words.next().is_some() { Err(SYNTAX) } else { Ok(Command::Bdat { size, is_last }) }
}

/// `parse` alone would take `+5`.
fn number(text: &str) -> Result<u64, Refusal> {
    if text.bytes().all(|digit| digit.is_ascii_digit()) { text.parse().map_err(|_| SYNTAX) } else { Err(SYNTAX) }
}

/// `FROM:<a@b.example> PARAMETERS`. A blank behind the colon is against the rules, and common. Source routes are dropped, as RFC 5321 wants it.
fn path(rest: &str, keyword: &str) -> Result<(String, String), Refusal> {
    let start = rest.get(..keyword.len()).filter(|start| start.eq_ignore_ascii_case(keyword)).ok_or(SYNTAX)?;
    let rest = rest[start.len()..].trim_start().strip_prefix('<').ok_or(SYNTAX)?;
    let end = closing_bracket(rest).ok_or(SYNTAX)?;
    let address = &rest[..end];
    let address = match address.strip_prefix('@') {
        Some(route) => route.split_once(':').ok_or(SYNTAX)?.1,
        None => address,
    };
    let parameters = &rest[end + 1..];
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(SYNTAX);
    }
    Ok((address.to_owned(), parameters.trim().to_owned()))
}

/// Where the address ends. A quoted local part may hold the bracket.
fn closing_bracket(text: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.char_indices().find_map(|(at, c)| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '>' if !is_quoted => return Some(at),
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Result<Command, &'static str> {
        parse(line.as_bytes()).map_err(|refusal| &refusal[..3])
    }

    fn mail(from: &str, size: Option<u64>) -> Command {
        Command::Mail { from: from.to_owned(), size }
    }

    #[test]
    fn commands_are_read_in_any_case_with_their_parameters() {
        assert_eq!(read("ehlo client.example"), Ok(Command::Ehlo));
        assert_eq!(read("MAIL FROM:<a@b.example>"), Ok(mail("a@b.example", None)));
        assert_eq!(read("mail from: <a@b.example> SIZE=10 BODY=8BITMIME SMTPUTF8"), Ok(mail("a@b.example", Some(10))));
        assert_eq!(read("MAIL FROM:<>"), Ok(mail("", None)));
        assert_eq!(read("MAIL FROM:<@relay.example:a@b.example>"), Ok(mail("a@b.example", None)));
        assert_eq!(read("RCPT TO:<\"a>b\"@c.example>"), Ok(Command::Rcpt { to: "\"a>b\"@c.example".to_owned() }));
        let auth = Command::Auth { mechanism: "PLAIN".to_owned(), initial: Some("AGE=".to_owned()) };
        assert_eq!(read("AUTH plain AGE="), Ok(auth));
        assert_eq!(read("BDAT 10"), Ok(Command::Bdat { size: 10, is_last: false }));
        assert_eq!(read("bdat 0 last"), Ok(Command::Bdat { size: 0, is_last: true }));
        assert_eq!(read("NOOP x"), Ok(Command::Noop));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for (line, code) in [
            ("", "500"),
            ("HELLO x", "500"),
            ("EHLO", "501"),
            ("DATA now", "501"),
            ("STARTTLS x", "501"),
            ("MAIL a@b.example", "501"),
            ("MAIL FROM:a@b.example", "501"),
            ("MAIL FROM:<a@b.example", "501"),
            ("MAIL FROM:<a@b.example>SIZE=1", "501"),
            ("MAIL FROM:<a@b.example> SIZE=x", "501"),
            ("MAIL FROM:<a@b.example> SIZE=+1", "501"),
            ("MAIL FROM:<a@b.example> SIZE=99999999999999999999", "501"),
            ("MAIL FROM:<a@b.example> BODY=BINARYMIME", "555"),
            ("MAIL FROM:<a@b.example> RET=HDRS", "555"),
            ("RCPT TO:<>", "501"),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER", "555"),
            ("RCPT TO:<a@b.example>\rDATA", "500"),
            ("BDAT", "501"),
            ("BDAT -1", "501"),
            ("BDAT 1 LAST now", "501"),
            ("AUTH", "501"),
        ] {
            assert_eq!(read(line), Err(code), "{line:?}");
        }
        assert!(parse(b"MAIL FROM:<\xff@b.example>").is_err());
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(refusal) = parse(&line) {
                prop_assert!(refusal.starts_with('5'), "{refusal}");
            }
        }

        #[test]
        fn lines_that_are_almost_commands_are_read_or_refused(
            line in "(?i)(MAIL FROM:|RCPT TO:|AUTH|BDAT|EHLO)[ <>@:\"\\\\a-z0-9=.é+-]{0,40}"
        ) {
            match parse(line.as_bytes()) {
                Err(refusal) => prop_assert!(refusal.starts_with('5'), "{refusal}"),
                Ok(Command::Rcpt { to }) => prop_assert!(line.contains(&to) && !to.is_empty()),
                Ok(Command::Mail { from, .. }) => prop_assert!(line.contains(&from)),
                Ok(_) => {}
            }
        }
    }
}
