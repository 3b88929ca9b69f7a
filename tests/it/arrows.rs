//! Which room may know which: the arrows of docs/ARCHITECTURE.md, held over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// For each room, the rooms it may depend on. Development dependencies are free to see `local-horde`.
const ARROWS: &[(&str, &[&str])] = &[
    ("horde-client", &[]),
    ("tensor-ops", &[]),
    ("imaging", &[]),
    ("model-store", &[]),
    ("textgen", &[]),
    ("worker-runtime", &["horde-client"]),
    ("worker-app", &["horde-client", "worker-runtime", "model-store"]),
    ("diffusion", &["tensor-ops", "imaging"]),
    ("vision", &["tensor-ops", "imaging"]),
    (
        "text-worker",
        &["horde-client", "worker-runtime", "worker-app", "textgen", "model-store"],
    ),
    (
        "alchemy-worker",
        &[
            "horde-client",
            "worker-runtime",
            "worker-app",
            "vision",
            "imaging",
            "model-store",
        ],
    ),
    (
        "image-worker",
        &[
            "horde-client",
            "worker-runtime",
            "worker-app",
            "diffusion",
            "vision",
            "imaging",
            "model-store",
        ],
    ),
    ("local-horde", &["horde-client"]),
    ("test-support", &[]),
    ("dreamer", &["image-worker", "worker-app"]),
    ("scribe", &["text-worker", "worker-app"]),
    ("alchemist", &["alchemy-worker", "worker-app"]),
];

/// Heavy engines, and the only rooms that may name them.
const ENGINES: &[(&str, &[&str])] = &[
    ("candle-core", &["tensor-ops", "diffusion", "vision"]),
    ("candle-nn", &["tensor-ops", "diffusion", "vision"]),
    ("candle-transformers", &["diffusion", "vision"]),
    ("llama-cpp-2", &["textgen"]),
    ("llama-cpp-sys-2", &["textgen"]),
];

fn dependencies(kinds: &[DependencyKind]) -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo metadata runs");
    metadata
        .packages
        .iter()
        .map(|package| {
            let names = package
                .dependencies
                .iter()
                .filter(|d| kinds.contains(&d.kind))
                .map(|d| d.name.clone())
                .collect();
            (package.name.to_string(), names)
        })
        .collect()
}

#[test]
fn rooms_know_only_the_rooms_below_them() {
    let rooms = dependencies(&[DependencyKind::Normal, DependencyKind::Build]);
    for (room, known) in &rooms {
        if room == "e2e" {
            continue;
        }
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| name == room)
            .unwrap_or_else(|| panic!("`{room}` is not in the table of arrows"));
        let seen: Vec<&String> = known
            .iter()
            .filter(|name| rooms.contains_key(*name) && !allowed.contains(&name.as_str()))
            .collect();
        assert!(seen.is_empty(), "`{room}` must not know {seen:?}");
    }
}

#[test]
fn engines_are_named_only_by_the_rooms_that_run_them() {
    let rooms = dependencies(&[
        DependencyKind::Normal,
        DependencyKind::Build,
        DependencyKind::Development,
    ]);
    for (engine, allowed) in ENGINES {
        for (room, known) in &rooms {
            assert!(
                !known.contains(*engine) || allowed.contains(&room.as_str()),
                "`{room}` must not name `{engine}`"
            );
        }
    }
}

#[test]
fn every_room_says_what_it_does_and_what_it_does_not_know() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root");
    for entry in std::fs::read_dir(root.join("crates")).expect("crates/ can be read") {
        let lib = entry.expect("an entry of crates/").path().join("src/lib.rs");
        let text = std::fs::read_to_string(&lib).unwrap_or_else(|error| panic!("{}: {error}", lib.display()));
        let head: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect::<Vec<_>>()
            .join(" ");
        assert!(head.len() > 40, "{} does not open with a sentence", lib.display());
        let says_limits = ["knows no", "Knows no", "only room that knows"]
            .iter()
            .any(|words| head.contains(words));
        assert!(says_limits, "{} does not say what it does not know", lib.display());
    }
}

#[test]
fn the_top_level_holds_exactly_what_the_map_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root");
    let expected: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "crates",
        "bins",
        "configs",
        "docs",
        "tests",
        "justfile",
        "x",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "deny.toml",
        "clippy.toml",
        "rustfmt.toml",
        "rust-toolchain.toml",
    ]
    .into();
    let found: BTreeSet<String> = std::fs::read_dir(root)
        .expect("the root can be read")
        .map(|entry| {
            entry
                .expect("an entry of the root")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(found, expected);
}
