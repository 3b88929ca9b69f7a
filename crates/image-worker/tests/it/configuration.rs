use image_worker::Dreamer;
use image_worker::config::Config;
use worker_app::Program;

#[test]
fn the_shipped_section_shows_every_key_with_its_default() {
    let (_, section) = Dreamer::CONFIG_FILE.split_once("\n[dreamer]\n").unwrap();
    let shown: String = section
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.contains(" = "))
        .fold(String::new(), |text, line| text + line + "\n");
    let read: Config = toml::from_str(&shown).unwrap();
    assert_eq!(read, Config::default());
    let keys = serde_json::to_value(Config::default()).unwrap();
    assert_eq!(shown.lines().count(), keys.as_object().unwrap().len());
}
