use super::*;

const NOW: &str = "2026-12-01T10:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn record(more: impl FnOnce(&mut KeyRecord)) -> (String, KeyRecord) {
    let (text, id, sha256) = make(&[7; 44]);
    assert_eq!(parts(&text), Some((id.clone(), sha256.clone())));
    let mut record = KeyRecord::new(id, sha256, "shop");
    more(&mut record);
    (text, record)
}

fn keys(more: impl FnOnce(&mut KeyRecord)) -> (String, Keys) {
    let (text, record) = record(more);
    (text, Keys::new(vec![record]).unwrap())
}

#[test]
fn a_key_is_known_by_its_text_alone() {
    let (text, keys) = keys(|_| ());
    assert!(text.starts_with("prk_") && text.len() == 4 + 12 + 1 + 32, "{text}");
    let key = keys.authenticate(&text, now()).unwrap();
    assert_eq!(key.tenant.as_str(), "shop");
    assert!(keys.authenticate(&format!("SG.{text}"), now()).is_ok());
    assert!(keys.present(key, now()).is_ok() && Keys::default().present(key, now()).is_err());
    let wrong_secret = format!("{}x", &text[..text.len() - 1]);
    for text in ["", "prk_", "prk__", "prk_a_b", &wrong_secret, &text[1..], &text.to_uppercase()] {
        assert_eq!(keys.authenticate(text, now()).unwrap_err().kind, Kind::Unauthorized, "{text}");
    }
}

#[test]
fn a_key_ends_and_is_bound_to_scopes_networks_lanes_and_senders() {
    let (text, ended) = keys(|record| record.expires_at = Some(now()));
    assert!(ended.authenticate(&text, now()).is_err());
    let (text, keys) = keys(|record| {
        record.scopes = Some(vec![Scope::Send]);
        record.networks = Some(vec!["10.0.0.0/8".to_owned(), "2001:db8::1".to_owned()]);
        record.lanes = Some(vec![Lane::Transactional]);
        record.sender_domains = Some(vec!["Shop.example".to_owned(), ".news.example".to_owned()]);
    });
    let key = keys.authenticate(&text, now()).unwrap();
    for (peer, is_allowed) in
        [("10.9.8.7", true), ("::ffff:10.9.8.7", true), ("11.0.0.1", false), ("2001:db8::1", true), ("::1", false)]
    {
        assert_eq!(key.check(Scope::Send, peer.parse().unwrap()).is_ok(), is_allowed, "{peer}");
    }
    assert!(key.check(Scope::Read, "10.0.0.1".parse().unwrap()).is_err());
    assert!(key.check_lane(Lane::Transactional).is_ok() && key.check_lane(Lane::Bulk).is_err());
    for (domain, is_allowed) in [
        ("shop.example", true),
        ("a.shop.example", false),
        ("a.news.example", true),
        ("news.example", false),
        ("badnews.example", false),
    ] {
        assert_eq!(key.check_sender(domain).is_ok(), is_allowed, "{domain}");
    }
}

#[test]
fn a_record_that_cannot_hold_is_refused_by_name() {
    let changes: [fn(&mut KeyRecord); 5] = [
        |record| record.sha256 = "00".to_owned(),
        |record| record.tenant = "No Tenant".to_owned(),
        |record| record.rate = Some(0),
        |record| record.networks = Some(vec!["10.0.0.0/33".to_owned()]),
        |record| record.networks = Some(vec!["somewhere".to_owned()]),
    ];
    for change in changes {
        let (_, record) = record(change);
        let id = record.id.clone();
        let error = Keys::new(vec![record]).unwrap_err();
        assert!(error.contains(&id), "{error}");
    }
    let (_, one) = record(|_| ());
    assert!(Keys::new(vec![one.clone(), one]).unwrap_err().contains("twice"));
}

#[test]
fn keys_come_from_a_file_or_from_all_files_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (text, record) = record(|_| ());
    let file = folder.path().join("shop.toml");
    fs::write(&file, toml::to_string(&KeyFile { key: vec![record] }).unwrap()).unwrap();
    fs::write(folder.path().join(".old.toml"), "not toml").unwrap();
    fs::write(folder.path().join("readme"), "not toml").unwrap();
    for path in [file.as_path(), folder.path()] {
        assert!(Keys::read(path).unwrap().authenticate(&text, now()).is_ok(), "{}", path.display());
    }
    fs::write(folder.path().join("bad.toml"), "[[key]]\nid = \"a\"\nsecret = \"hunter2\"\n").unwrap();
    let error = Keys::read(folder.path()).unwrap_err();
    assert!(error.contains("bad.toml") && !error.contains("hunter2"), "{error}");
}
