//! A real Prometheus scrapes a worker, and has an answer to everything that the dashboard and the alerts ask of it.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use postrider_schemas::Lane;
use postrider_tests::{
    aiosmtpd::Tls,
    deadline,
    fake_provider::{FakeProvider, Reaction},
    folder::Folder,
    ports,
    postfix::{PASSWORD, USER},
    prometheus::Prometheus,
    say_skipped,
    story::{self, SOON},
    test_env::{EnvSpec, TestEnv},
    tls::Authority,
};
use serde_json::Value;

fn deploy(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)).unwrap()
}

/// The queries of the dashboard, with its variables as somebody sees them who chose nothing.
fn dashboard() -> Vec<String> {
    fn collect(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                out.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, out));
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    collect(&serde_json::from_str(&deploy("dashboards/postrider.json")).unwrap(), &mut out);
    let chosen = [("$__rate_interval", "30s"), ("$transport", ".*"), ("$group", ".*")];
    out.iter()
        .map(|query| chosen.iter().fold(query.clone(), |query, (name, value)| query.replace(name, value)))
        .collect()
}

/// Every metric of ours that a text names.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("postrider_")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_has_an_answer_to_every_query_of_the_dashboard_and_the_alerts() {
    if Prometheus::program().is_none() {
        return say_skipped("scraping", "prometheus is not installed: run tests/setup.sh");
    }
    let env = TestEnv::start(&EnvSpec { aiosmtpd: Some(Tls::StartTls), ..EnvSpec::usual() }).unwrap();
    story::declare(&env).unwrap();
    let (folder, admin) = (Folder::new("authority").unwrap(), ports::free().unwrap());
    let authority = Authority::new(folder.path()).unwrap();
    let api = FakeProvider::start_tls(&authority.issue("api", &["localhost"]).unwrap(), |_| Reaction::yes()).unwrap();
    let relay = format!(
        "host = \"localhost\"\ntls = \"starttls\"\nca_file = \"{}\"\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"\nrate = \"1000/s\"\n",
        env.aiosmtpd().ca_file().display()
    );
    let hook = format!(
        "[transport.hook]\nkind = \"webhook\"\nbase_url = \"{}\"\nca_file = \"{}\"\nsecret = \"whsec_c2VjcmV0c2VjcmV0c2VjcmV0\"\n",
        api.url(),
        authority.ca_file().display()
    );
    let routes = "[[route]]\nname = \"bulk\"\nwhen = { lane = \"bulk\" }\nsend = [\"hook\"]\n[[route]]\nname = \"all\"\nsend = [\"relay\"]\n";
    let more = format!("{relay}{hook}[admin]\nlisten = \"127.0.0.1:{admin}\"\n{routes}");
    let config = story::relay_config(&env.amqp_url(), &env.redis_url(), env.aiosmtpd().port(), &more);
    let worker = story::start(config).unwrap();
    let rules = deploy("alerts/postrider.rules.yaml");
    let prometheus = Prometheus::start(&format!("127.0.0.1:{admin}"), &rules).unwrap();
    // One for each transport, and one that comes off the ladder.
    let later = story::job_with(|job| job.send_at = Some(jiff::Timestamp::now() + Duration::from_secs(4)));
    let jobs = [Lane::Transactional, Lane::Bulk].map(|lane| story::job(lane, "ada@customer.example"));
    story::publish(&env.amqp_url(), &[jobs.as_slice(), &[later]].concat()).await.unwrap();
    env.aiosmtpd().wait_for(2, SOON).unwrap();
    deadline::wait_for("the call", SOON, || (api.taken() == 1).then_some(())).unwrap();

    let queries = dashboard();
    // What a gateway counts, no worker has.
    let of_a_worker = |name: &String| !name.starts_with("postrider_gateway_");
    let asked: BTreeSet<String> =
        queries.iter().chain([&rules]).flat_map(|query| metrics(query)).filter(of_a_worker).collect();
    assert!(asked.len() > 25, "{asked:?}");
    let missing =
        || -> Vec<&String> { asked.iter().filter(|name| prometheus.query(name).unwrap().is_empty()).collect() };
    deadline::wait_for("all metrics", SOON, || missing().is_empty().then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", missing()));
    let up = prometheus.query("up").unwrap();
    assert_eq!((up.len(), up[0]["value"][1].as_str()), (1, Some("1")));
    assert_eq!(prometheus.target().unwrap(), ("up".to_owned(), String::new()));
    for query in &queries {
        prometheus.query(query).unwrap();
    }
    let evaluated = || {
        let alerts = prometheus.alerts().unwrap();
        (!alerts.is_empty() && alerts.iter().all(|(_, health, _)| health != "unknown")).then_some(alerts)
    };
    for (name, health, error) in deadline::wait_for("a look at every alert", SOON, evaluated).unwrap() {
        assert_eq!((health.as_str(), error.as_str()), ("ok", ""), "{name}");
    }
    // A relay's certificate and an API's: both end in the far future.
    let ends = prometheus.query("postrider_certificate_expiry_timestamp_seconds - time() > 86400").unwrap();
    let of: BTreeSet<&str> = ends.iter().filter_map(|one| one["metric"]["transport"].as_str()).collect();
    assert_eq!(of, BTreeSet::from(["hook", "relay"]));
    drop(worker);
}
