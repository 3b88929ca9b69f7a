//! Where the key comes from, and what is refused.

use worker_app::config::KeySource;

use super::configuration::House;

const KEY: &str = "abcdefghijklmnopqrstuv";

fn refusal(house: &House) -> String {
    let stop = house.load().unwrap().key.expect_err("must be refused");
    let text = house.tidy(&stop.render());
    assert!(!text.contains(KEY), "{text}");
    text
}

#[test]
fn f120_credential_before_key_file_before_environment_before_configuration() {
    let mut house = House::with_file(format!("api_key = \"{KEY}-config\"\n"));
    let source = |house: &House| house.load().unwrap().key.unwrap();
    assert!(matches!(source(&house).source, KeySource::Config(_)));
    house = house.env("HORDE_API_KEY", &format!("{KEY}-env"));
    assert_eq!(
        source(&house).source,
        KeySource::Environment("HORDE_API_KEY".to_owned())
    );
    house.write(
        &house.sources.places.key_file(),
        format!("{KEY}-file\r\n").as_bytes(),
        0o600,
    );
    let key = source(&house);
    assert!(matches!(key.source, KeySource::File(_)));
    assert_eq!(key.api_key.expose(), format!("{KEY}-file"));
    let credentials = house.dir.path().join("credentials");
    house.write(
        &credentials.join("horde-api-key"),
        format!("{KEY}-credential").as_bytes(),
        0o444,
    );
    house.sources.places.credentials = Some(credentials);
    let key = source(&house);
    assert_eq!(key.api_key.expose(), format!("{KEY}-credential"));
    assert!(
        !format!("{key:?} {}", key.api_key).contains(KEY),
        "a key prints as stars"
    );
}

#[test]
fn f120_bad_keys_are_refused_with_the_reason() {
    let mut told = String::new();
    told.push_str(&refusal(&House::new()));
    told.push_str(&refusal(&House::new().env("HORDE_API_KEY", "0000000000")));
    told.push_str(&refusal(&House::new().env("SCRIBE_API_KEY", "two words")));
    told.push_str(&refusal(&House::with_file("api_key = \"\"\n")));
    told.push_str(&refusal(&House::with_file("api_key_file = \"~/nowhere\"\n")));
    insta::assert_snapshot!(told);
}

#[test]
fn f120_a_key_everybody_can_read_is_refused_unless_forced() {
    let house = House::new();
    house.write(&house.sources.places.key_file(), KEY.as_bytes(), 0o644);
    insta::assert_snapshot!(refusal(&house), @r"
    error: `~/.config/horde-workers/api-key` holds the API key and every user of this machine can read it (mode 0644)
    hint: `chmod 600 ~/.config/horde-workers/api-key`, or set `allow_readable_key = true`
    ");
    let forced = house.env("HORDE_ALLOW_READABLE_KEY", "true").load().unwrap();
    assert!(forced.key.is_ok());
    assert_eq!(forced.warnings.len(), 1);

    let readable_config = House::new();
    let file = readable_config.sources.places.config_file("scribe");
    readable_config.write(&file, format!("api_key = \"{KEY}\"\n").as_bytes(), 0o644);
    assert!(refusal(&readable_config).contains("chmod 600"));
}
