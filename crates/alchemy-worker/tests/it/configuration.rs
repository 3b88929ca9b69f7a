use alchemy_worker::Alchemist;
use alchemy_worker::config::Config;
use worker_app::Program;

#[test]
fn the_shipped_section_shows_every_key_with_its_default() {
    let (_, section) = Alchemist::CONFIG_FILE.split_once("\n[alchemist]\n").unwrap();
    let shown: String = section
        .lines()
        .filter_map(|l| l.strip_prefix("# "))
        .filter(|l| l.contains(" = "))
        .fold(String::new(), |text, line| text + line + "\n");
    let read: Config = toml::from_str(&shown).unwrap();
    assert_eq!(read, Config::default());
    let keys = serde_json::to_value(Config::default())
        .unwrap()
        .as_object()
        .unwrap()
        .len();
    assert_eq!(shown.lines().count(), keys);
}

#[test]
fn values_out_of_range_are_refused_by_their_key() {
    let wrong = [
        (
            "forms",
            Config {
                forms: vec!["divination".into()],
                ..Config::default()
            },
        ),
        (
            "max_tiles",
            Config {
                max_tiles: 0,
                ..Config::default()
            },
        ),
        (
            "max_tiles",
            Config {
                max_tiles: 257,
                ..Config::default()
            },
        ),
        (
            "threads",
            Config {
                threads: 9,
                ..Config::default()
            },
        ),
        (
            "nsfw_threshold",
            Config {
                nsfw_threshold: f64::NAN,
                ..Config::default()
            },
        ),
    ];
    for (key, config) in wrong {
        let message = config.check().unwrap_err();
        assert!(message.contains(&format!("`alchemist.{key}`")), "{message}");
    }
    assert_eq!(Config::default().check(), Ok(()));
}
