//! Prompts of every day that must stay ordinary, and disguised words that must be found. Both lists are made up for this test;
//! what is known to be wrong stands in lists of its own, which shrink when it is mended.

use std::collections::BTreeMap;

use vision::safety::{Level, read};

const ORDINARY: &str = include_str!("../fixtures/prompts/ordinary.txt");
const DISGUISED: &str = include_str!("../fixtures/prompts/disguised.json");

/// Prompts by part.
fn ordinary() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut parts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut part = "";
    for line in ORDINARY
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
    {
        match line.strip_prefix("== ") {
            Some(name) => part = name,
            None => parts.entry(part).or_default().push(line),
        }
    }
    parts
}

/// What a prompt is taken for and should not be. What is weak counts only together with what is seen.
fn wrong(part: &str, prompt: &str) -> Vec<&'static str> {
    let found = read(prompt, "");
    [
        ("youth", part != "children" && found.under_age >= Level::Clear),
        ("nudity", part != "grown-up" && found.adult >= Level::Clear),
        ("hides age", found.hides_age >= Level::Clear),
        ("hides clothes", found.hides_clothes),
    ]
    .into_iter()
    .filter_map(|(what, is_wrong)| is_wrong.then_some(what))
    .collect()
}

#[test]
fn ordinary_prompts_stay_ordinary() {
    let parts = ordinary();
    let count = |part: &str| parts.get(part).map_or(0, Vec::len);
    assert!(count("everyday") >= 300 && count("children") >= 40 && count("grown-up") >= 60);
    let mut all = Vec::new();
    for (part, prompt) in parts
        .iter()
        .flat_map(|(part, prompts)| prompts.iter().map(move |prompt| (*part, *prompt)))
    {
        let wrong = wrong(part, prompt);
        let is_known = part == "still taken for more";
        if wrong.is_empty() == is_known {
            all.push(format!("`{prompt}`: {wrong:?}"));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn prompts_for_children_and_for_nudity_are_read_as_such() {
    let parts = ordinary();
    let share = |part: &str, is_found: &dyn Fn(&str) -> bool| {
        let found = parts[part].iter().filter(|prompt| is_found(prompt)).count();
        found as f64 / parts[part].len() as f64
    };
    assert!(share("children", &|prompt| read(prompt, "").under_age >= Level::Weak) >= 0.75);
    assert!(share("grown-up", &|prompt| read(prompt, "").adult >= Level::Weak) >= 0.95);
}

#[test]
fn disguised_words_are_found() {
    let lists: BTreeMap<String, Vec<String>> = serde_json::from_str(DISGUISED).unwrap();
    assert!(lists["youth"].len() >= 350 && lists["nudity"].len() >= 150);
    let mut all = Vec::new();
    for (list, texts) in &lists {
        for text in texts {
            let found = read(text, "");
            let level = if list.ends_with("youth") {
                found.under_age
            } else {
                found.adult
            };
            if (level >= Level::Clear) == list.starts_with("missed") {
                all.push(format!("{text:?} ({list}): {level:?}"));
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}
