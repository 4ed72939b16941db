use std::io::Write as _;

use secrecy::ExposeSecret as _;

use super::*;
use crate::config::TransportKind;

const RELAY: &str = "[transport.relay]\nkind = \"smtp\"\nhost = \"smtp.example.com\"\n";
const CATCH_ALL: &str = "[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";

fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    load_from(Some(file.path()), environment).map_err(|error| error.to_string())
}

#[track_caller]
fn check_refused(text: &str, expected: &[&str]) {
    let error = read(text, &[]).expect_err("must be refused");
    for part in expected {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

#[test]
fn users_of_the_broker_are_told_their_tenants_and_a_file_has_none() {
    let text = |url: &str, tenants: &str| format!("[queue]\nurl = \"{url}\"\ntenants = {tenants}\n{RELAY}{CATCH_ALL}");
    let tenants = "{ Shop-API = \"shop\", office = [\"shop\", \"news\"], platform = \"*\" }";
    let config = read(&text("amqp://broker", tenants), &[]).unwrap();
    let publishers = config.queue.publishers.unwrap();
    assert_eq!(publishers.keys().map(String::as_str).collect::<Vec<_>>(), ["Shop-API", "office", "platform"]);
    assert_eq!(publishers["platform"], crate::policy::publisher::Tenants::Any);
    check_refused(&text("embedded:queue.db", tenants), &["queue.tenants"]);
    check_refused(&text("amqp://broker", "{ office = \"No Tenant\" }"), &["queue.tenants.office"]);
    check_refused(&text("amqp://broker", "{ office = 7 }"), &["queue.tenants"]);
}

#[test]
fn defaults_alone_are_a_configuration() {
    let config = load_from(None, Environment::new()).unwrap();
    assert_eq!(config.retry.waits.len(), 7);
    assert!(config.transports.is_empty() && config.routes.is_empty());
}

#[test]
fn the_commented_example_of_the_defaults_is_a_configuration() {
    // Settings and sections; explanations are prose, or indented.
    let is_setting = |line: &&str| {
        line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.is_empty() && !key.contains(' '))
    };
    let example: String = DEFAULTS
        .lines()
        .skip_while(|line| !line.starts_with("# [transport.relay]"))
        .filter_map(|line| line.strip_prefix("# ").filter(is_setting))
        // Files that are not there.
        .map(|line| line.replace("{ file = \"/run/secrets/sendgrid\" }", "{ env = \"RELAY_PASSWORD\" }"))
        .fold(String::new(), |all, line| all + &line + "\n");
    let config = read(&example, &[("RELAY_PASSWORD", "s3cret")]).unwrap();
    assert_eq!((config.transports.len(), config.routes.list().len()), (2, 3));
}

#[test]
fn the_environment_wins_over_the_file_and_keeps_passwords_as_they_are() {
    let text = format!("[queue]\nurl = \"amqp://file\"\n{RELAY}username = \"app\"\npassword = \"x\"\n{CATCH_ALL}");
    let environment = [("POSTRIDER_QUEUE__URL", "amqp://env"), ("POSTRIDER_TRANSPORT__RELAY__PASSWORD", "00123")];
    let config = read(&text, &environment).unwrap();
    assert_eq!(config.queue.url.expose_secret(), "amqp://env");
    let TransportKind::Smtp(smtp) = &config.transports[0].kind else { panic!("a relay") };
    assert_eq!(smtp.login.as_ref().unwrap().password.expose_secret(), "00123");
    assert!(!format!("{config:?}").contains("00123"), "Debug output shows no secret");
}

#[test]
fn a_shared_queue_beside_a_ledger_of_this_machine_is_refused() {
    let local = read("[queue]\nurl = \"amqp://file\"\n", &[]).unwrap();
    let error = local.store_is_shared().unwrap_err().to_string();
    for part in ["`store.url`", "would send a job twice", "redis://host:6379/0", "store.single_machine = true"] {
        assert!(error.contains(part), "{error}");
    }
    for sound in [
        "",
        "[queue]\nurl = \"embedded:q.db\"\n[store]\nurl = \"redis://r\"\n",
        "[queue]\nurl = \"amqp://file\"\n[store]\nurl = \"redis://r\"\n",
        "[queue]\nurl = \"amqp://file\"\n[store]\nsingle_machine = true\n",
    ] {
        read(sound, &[]).unwrap().store_is_shared().unwrap();
    }
}

#[test]
fn unknown_keys_are_named() {
    check_refused("[queue]\nprefech = 1\n[worker]\nthread = 2\n", &["queue.prefech", "worker.thread"]);
    check_refused(&format!("{RELAY}hots = \"x\"\n{CATCH_ALL}"), &["transport.relay.hots"]);
}

#[test]
fn wrong_types_name_the_key_and_the_file() {
    check_refused("[queue]\nshards = \"many\"\n", &["queue.shards", ".toml"]);
    check_refused("[retry]\nconfig_wait = \"soon\"\n", &["retry.config_wait", "duration such as"]);
    check_refused("[retry]\nconfig_wait = \"4000d\"\n", &["retry.config_wait", "at most 3650d"]);
    check_refused("[store]\nretention = \"0s\"\n", &["store.retention", "at least 1s"]);
    check_refused("[store]\nlease = \"11m\"\n", &["store.lease", "at most 10m"]);
    check_refused("[retry]\nschedule = [\"1m\", \"13d\"]\n", &["retry.schedule", "at most 12d"]);
    let error = read("[worker]\nthreads = \"x\"\n", &[]).unwrap_err();
    assert!(error.starts_with("setting `worker.threads`: ") && !error.contains("for key"), "{error}");
    check_refused("[queue\n", &[".toml line 1: "]);
    check_refused(
        "\n[queue]\nulr = \"x\"\n",
        &["unknown setting `queue.ulr` in ", ".toml line 3; did you mean `url`?"],
    );
    check_refused("[worker]\ntransactional = 70000\n", &["a whole number from 0 to 65535", ".toml line 2)"]);
    let from_variable = read("", &[("POSTRIDER_WORKER__THREADS", "many")]).unwrap_err();
    assert!(from_variable.contains("(the variable POSTRIDER_WORKER__THREADS)"), "{from_variable}");
    let large = format!("{RELAY}connections_total = 99_999_999_999_999_999_999\n{CATCH_ALL}");
    check_refused(&large, &["`connections_total`", "too large", "line 4", ".toml"]);
}

#[test]
fn addresses_and_levels_are_read_before_anything_connects() {
    check_refused("[queue]\nurl = \"amqb://broker\"\n", &["`queue.url`", "amqp://", "embedded:", "line 2"]);
    check_refused("[store]\nurl = \"http://redis\"\n", &["`store.url`", "redis+cluster", "line 2"]);
    check_refused("[store]\nurl = \"embedded:\"\n", &["`store.url`", "embedded:FILE"]);
    for level in ["verbose", "info,postrider_workers=loud", ""] {
        check_refused(&format!("[log]\nlevel = \"{level}\"\n"), &["`log.level`", "debug", "line 2"]);
    }
    for level in ["WARN", "info,postrider_workers=debug", "off"] {
        read(&format!("[log]\nlevel = \"{level}\"\n"), &[]).unwrap();
    }
}

#[test]
fn a_port_that_speaks_another_kind_of_tls_is_doubted() {
    let relay = |more: &str| read(&format!("{RELAY}{more}{CATCH_ALL}"), &[]).unwrap().warnings();
    assert_eq!(relay(""), Vec::<String>::new());
    assert!(relay("port = 465\n")[0].contains("tls = \"implicit\""));
    assert!(relay("port = 587\ntls = \"implicit\"\n")[0].contains("tls = \"starttls\""));
}

#[test]
fn routes_must_be_complete() {
    check_refused(&format!("{RELAY}[[route]]\nname = \"a\"\nsend = [\"rely\"]\n"), &["route `a`", "rely", "relay"]);
    let bulk = "[[route]]\nname = \"a\"\nwhen = { lane = \"bulk\" }\nsend = [\"relay\"]\n";
    check_refused(&format!("{RELAY}{bulk}"), &["catch-all"]);
    check_refused(&format!("{RELAY}{CATCH_ALL}{bulk}"), &["route `a`", "can never match"]);
    check_refused(&format!("{RELAY}{CATCH_ALL}{CATCH_ALL}"), &["route `all`"]);
    check_refused(
        &format!("{RELAY}{CATCH_ALL}[transport.b]\nkind = \"smtp\"\nhost = \"b\"\n"),
        &["transport.b", "no route"],
    );
    check_refused(CATCH_ALL, &["route `all`", "relay"]);
}

#[test]
fn transports_must_be_complete() {
    check_refused(&format!("[transport.relay]\nkind = \"smtp\"\n{CATCH_ALL}"), &["transport.relay.host"]);
    check_refused(&format!("[transport.relay]\nkind = \"pigeon\"\n{CATCH_ALL}"), &["transport.relay.kind", "pigeon"]);
    check_refused(&format!("{RELAY}username = \"app\"\n{CATCH_ALL}"), &["transport.relay.password"]);
    check_refused(&format!("{RELAY}connections = 0\n{CATCH_ALL}"), &["transport.relay.connections"]);
}

#[test]
fn a_command_that_only_looks_needs_no_credentials_of_transports() {
    let relay = format!("{RELAY}username = \"app\"\npassword = {{ env = \"NOT_SET\" }}\n");
    let hook = "[transport.hook]\nkind = \"webhook\"\nbase_url = \"https://hooks.example\"\nsecret = { file = \"/nonexistent/x\" }\n";
    let text = format!("{relay}{hook}{}", CATCH_ALL.replace("[\"relay\"]", "[\"relay\", \"hook\"]"));
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let load = |credentials| load_with(Some(file.path()), Environment::new(), credentials);
    assert!(load(Credentials::Needed).is_err());
    let config = load(Credentials::MayBeMissing).unwrap();
    assert_eq!(config.without_credentials, ["hook", "relay"]);
    // What the command itself connects to is needed.
    fs::write(file.path(), "[queue]\nurl = { env = \"NOT_SET\" }\n").unwrap();
    assert!(load(Credentials::MayBeMissing).is_err());
}

#[test]
fn a_key_or_an_address_that_holds_one_may_stand_elsewhere() {
    let text = format!(
        "{RELAY}username = {{ env = \"ID\" }}\npassword = {{ env = \"KEY\" }}\n\
             [transport.hook]\nkind = \"webhook\"\nbase_url = {{ env = \"HOOK\" }}\nproxy = {{ env = \"PROXY\" }}\nsecret = {{ env = \"KEY\" }}\n\
             [transport.amazon]\nkind = \"ses\"\nregion = \"eu-central-1\"\naccess_key_id = {{ env = \"ID\" }}\nsecret_access_key = {{ env = \"KEY\" }}\n{}",
        CATCH_ALL.replace("[\"relay\"]", "[\"relay\", \"hook\", \"amazon\"]")
    );
    let environment = [
        ("ID", "\u{feff}the-id\n"),
        ("KEY", "k3y-k3y"),
        ("HOOK", "https://hooks.example/s3cr3t-s3cr3t-s3cr3t"),
        ("PROXY", "http://user:pr0xy@proxy:3128"),
    ];
    let config = read(&text, &environment).unwrap();
    let TransportKind::Smtp(smtp) = &config.transports[2].kind else { panic!("a relay") };
    assert_eq!(smtp.login.as_ref().unwrap().username, "the-id");
    let hidden: Vec<_> = config.unspeakable().iter().map(|one| one.expose_secret().to_owned()).collect();
    assert!(hidden.contains(&"pr0xy".to_owned()) && hidden.contains(&"s3cr3t-s3cr3t-s3cr3t".to_owned()), "{hidden:?}");
    let error = read(&text, &environment[..3]).unwrap_err();
    assert!(error.contains("transport.hook.proxy") && error.contains("PROXY is not set"), "{error}");
    let error = read(&text, &[environment[0], ("KEY", "a\nb"), environment[2], environment[3]]).unwrap_err();
    assert!(error.contains("line end"), "{error}");
}

#[test]
fn each_tenant_may_have_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("shop.toml"), "rate = \"20/s\"\nweight = 2\n").unwrap();
    fs::write(folder.path().join("README"), "no tenant").unwrap();
    let text =
        format!("[limits]\ntenants_folder = \"{}\"\n[limits.tenants.news]\nweight = 0.5\n", folder.path().display());
    let config = read(&text, &[]).unwrap();
    assert_eq!(config.limits.tenants.keys().collect::<Vec<_>>(), ["news", "shop"]);
    assert!(
        config.files.contains(&folder.path().join("shop.toml")) && config.files.contains(&folder.path().to_owned())
    );
    fs::write(folder.path().join("shop.toml"), "rate = \"20/s\"\nweigth = 2\n").unwrap();
    assert!(read(&text, &[]).unwrap_err().contains("limits.tenants.shop.weigth"));
    fs::write(folder.path().join("shop.toml"), "rate = \n").unwrap();
    assert!(read(&text, &[]).unwrap_err().contains("shop.toml line 1: "));
    check_refused("[limits]\ntenants_folder = \"/nonexistent\"\n", &["`limits.tenants_folder`", "/nonexistent"]);
}

#[test]
fn a_missing_secret_says_where_it_was_looked_for() {
    let with = |secret: &str| format!("{RELAY}username = \"app\"\npassword = {secret}\n{CATCH_ALL}");
    check_refused(&with("{ env = \"NOT_SET\" }"), &["transport.relay.password", "NOT_SET"]);
    check_refused(&with("{ file = \"/nonexistent/x\" }"), &["transport.relay.password", "/nonexistent/x"]);
}
