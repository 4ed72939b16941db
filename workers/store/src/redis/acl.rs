//! What a user of Redis has to be allowed, and which of its errors say that it is not.

use redis::RedisError;

/// Commands that we send, or that our scripts call. A test holds the list equal to what stands in the scripts and in the code.
pub const COMMANDS: [&str; 32] = [
    "auth",
    "client",
    "cluster",
    "del",
    "evalsha",
    "exists",
    "get",
    "hdel",
    "hello",
    "hget",
    "hgetall",
    "hmget",
    "hset",
    "incr",
    "mget",
    "pexpire",
    "ping",
    "pttl",
    "sadd",
    "script",
    "select",
    "set",
    "smembers",
    "time",
    "zadd",
    "zcard",
    "zcount",
    "zrange",
    "zrangebyscore",
    "zrem",
    "zremrangebyscore",
    "zscore",
];

/// The line that makes a user who may do what we need and nothing else.
pub fn rule() -> String {
    let commands: Vec<String> = COMMANDS.iter().map(|one| format!("+{one}")).collect();
    format!("ACL SETUSER postrider on >PASSWORD ~postrider:* {}", commands.join(" "))
}

/// Whether an error says that the user may not do what is asked, also from within a script: it will not be otherwise a moment later, and is no
/// matter of one record.
pub fn is_forbidden(error: &RedisError) -> bool {
    let text = error.detail().unwrap_or_default();
    matches!(error.code(), Some("NOPERM" | "NOAUTH" | "WRONGPASS"))
        || error.kind() == redis::ErrorKind::AuthenticationFailed
        || ["NOPERM", "ACL failure", "has no permissions"].iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every command of the scripts and of the code beside them.
    fn used() -> BTreeSet<String> {
        let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = package.ancestors().map(|root| root.join(file!())).find(|path| path.exists()).unwrap();
        let folder = here.parent().unwrap().to_owned();
        let mut found = BTreeSet::new();
        for folder in [folder.clone(), folder.join("limits")] {
            for file in std::fs::read_dir(&folder).unwrap().map(|one| one.unwrap().path()).filter(|path| path.is_file())
            {
                let text = std::fs::read_to_string(file).unwrap();
                for start in ["call('", "cmd(\""] {
                    for part in text.split(start).skip(1) {
                        let word: String = part.chars().take_while(char::is_ascii_uppercase).collect();
                        if word.len() > 1 {
                            found.insert(word.to_lowercase());
                        }
                    }
                }
            }
        }
        found
    }

    #[test]
    fn the_rule_that_is_advised_names_every_command_in_use() {
        let used = used();
        assert!(used.len() > 20, "{used:?}");
        let missing: Vec<&String> = used.iter().filter(|one| !COMMANDS.contains(&one.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(rule().contains("~postrider:* ") && rule().contains(" +evalsha "));
    }
}
