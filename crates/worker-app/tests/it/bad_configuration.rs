//! Every way to get a configuration wrong that we could think of ends in one message and one hint.

use serde_json::json;

use super::configuration::House;

const SECRET: &str = "SECRETSECRETSECRET";

#[test]
fn f117_each_bad_file_is_refused_with_file_line_key_and_hint() {
    let files: &[(&str, &str)] = &[
        ("not TOML", "this is not toml"),
        ("unclosed string", "worker_name = \"my worker\nnsfw = true\n"),
        ("unclosed list", "devices = [\"cpu\"\n"),
        ("a key twice", "nsfw = true\n\nnsfw = false\n"),
        ("a section twice", "[scribe]\n[scribe]\n"),
        ("YAML", "worker_name: my worker\n"),
        ("no quotes", "worker_name = my worker\n"),
        ("a number too large", "prefetch = 99999999999999999999\n"),
        ("unknown key", "# name\n\nwroker_name = \"my worker\"\n"),
        ("unknown key without a near one", "zzz = 1\n"),
        ("unknown section", "[dreamer]\nmodels = []\n"),
        ("unknown key in the section", "[scribe]\ncontext_token = 5\n"),
        ("unknown key in a nested section", "[scribe.limits]\nmax_lenght = 5\n"),
        ("own key above the section", "models = [\"a\"]\n"),
        ("common key in the section", "[scribe]\nworker_name = \"my worker\"\n"),
        ("section is a value", "scribe = 5\n"),
        ("text for a number", "prefetch = \"two\"\n"),
        ("number for text", "worker_name = 12345\n"),
        ("text for a switch", "nsfw = \"yes\"\n"),
        ("text for a list", "devices = \"cpu\"\n"),
        ("list of numbers", "devices = [0, 1]\n"),
        ("date", "grace = 2024-01-01\n"),
        ("prefetch out of range", "prefetch = 3\n"),
        ("prefetch negative", "prefetch = -1\n"),
        ("fraction", "prefetch = 1.5\n"),
        ("negative unsigned", "[scribe]\ncontext_tokens = -1\n"),
        ("unsigned too large", "[scribe]\ncontext_tokens = 5000000000\n"),
        ("unknown choice", "[scribe]\nengine = \"vllm\"\n"),
        ("unknown log format", "log_format = \"xml\"\n"),
        ("wrong type in a map", "[scribe.weights]\na = \"x\"\n"),
        ("empty worker name", "worker_name = \"  \"\n"),
        ("short worker name", "worker_name = \"abc\"\n"),
        ("refused worker name", "worker_name = \"my colab box\"\n"),
        ("worker name with an escape", "worker_name = \"bad\\u001b[2Jname\"\n"),
        ("agent of two parts", "bridge_agent = \"scribe:1\"\n"),
        (
            "agent with a version no server reads",
            "bridge_agent = \"scribe:v1.0:me\"\n",
        ),
        ("address without a scheme", "horde_url = \"aihorde.net/api\"\n"),
        ("plain http", "horde_url = \"http://aihorde.net/api\"\n"),
        ("ftp", "horde_url = \"ftp://aihorde.net/api\"\n"),
        (
            "password in the address",
            "horde_url = \"https://me:SECRETSECRETSECRET@aihorde.net/api\"\n",
        ),
        ("proxy", "proxy = \"me:SECRETSECRETSECRET@proxy\"\n"),
        ("no devices", "devices = []\n"),
        ("a device twice", "devices = [\"cuda:0\", \"CUDA:0\"]\n"),
        ("auto and another", "devices = [\"auto\", \"cpu\"]\n"),
        ("no device", "devices = [\"../../etc\"]\n"),
        ("device number", "devices = [\"cuda:99999\"]\n"),
        ("priority user without number", "priority_usernames = [\"somebody\"]\n"),
        ("window", "pause_between = [\"18:00 to 23:00\"]\n"),
        ("window of nothing", "pause_between = [\"18:00-18:00\"]\n"),
        ("grace without a unit", "grace = \"90\"\n"),
        ("grace too long", "grace = \"2days\"\n"),
        ("log filter", "log = \"worker=loud\"\n"),
        ("secret of a wrong type", "api_key = 4815162342\n"),
        (
            "own secret of a wrong type",
            "[scribe]\nhub_token = [\"SECRETSECRETSECRET\"]\n",
        ),
        ("secret without quotes", "api_key = SECRETSECRETSECRET\n"),
        ("secret with an unclosed quote", "api_key = \"SECRETSECRETSECRET\n"),
    ];
    let mut told = String::new();
    for (what, text) in files {
        let refusal = House::with_file(text).refusal();
        assert!(refusal.starts_with("[78] error: "), "{what}: {refusal}");
        assert!(
            !refusal.contains(SECRET) && !refusal.contains("4815162342"),
            "{what} shows a secret: {refusal}"
        );
        assert!(!refusal.contains('\u{1b}'), "{what} lets an escape through");
        assert!(refusal.contains("hint: "), "{what} has no hint: {refusal}");
        told.push_str(&format!("── {what}\n{refusal}"));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn f117_files_that_cannot_be_read_are_told_apart() {
    let mut told = String::new();
    let mut missing = House::new();
    missing.sources.file = Some(missing.dir.path().join("nowhere.toml"));
    told.push_str(&missing.refusal());
    let mut directory = House::new();
    directory.sources.file = Some(directory.dir.path().to_owned());
    told.push_str(&directory.refusal());
    told.push_str(&House::with_file(b"worker_name = \"ok name\"\n\xff\xfe\n").refusal());
    told.push_str(&House::with_file("# x\n".repeat(300_000)).refusal());
    insta::assert_snapshot!(told);
}

#[test]
fn f119_errors_name_the_variable_or_the_command_line_they_come_from() {
    let mut told = String::new();
    told.push_str(
        &House::with_file("prefetch = 1\n")
            .env("HORDE_PREFETCH", "many")
            .refusal(),
    );
    told.push_str(&House::new().env("SCRIBE_CONTEXT_TOKENS", "-3").refusal());
    told.push_str(&House::new().env("HORDE_URL", "http://example.org").refusal());
    told.push_str(&House::new().flag("devices", json!(["gpu zero"])).refusal());
    insta::assert_snapshot!(told);
}
