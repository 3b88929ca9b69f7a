//! A commented configuration with answers in their places.

use super::import::Imported;

/// What the questions brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) worker_name: String,
    pub(super) device: String,
    pub(super) models: Vec<String>,
}

/// The template with the answers in their places.
pub(super) fn fill(template: &str, name: &str, models_key: &str, answers: &Answers) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| text(item)).collect();
        format!("[{}]", items.join(", "))
    };
    let mut lines: Vec<String> = template.lines().map(str::to_owned).collect();
    put(&mut lines, None, "worker_name", &text(&answers.worker_name));
    put(
        &mut lines,
        None,
        "devices",
        &list(std::slice::from_ref(&answers.device)),
    );
    if !answers.models.is_empty() {
        // A worker that serves one model has a string there, one that serves several a list.
        let is_list = find(&lines, Some(name), models_key).is_none_or(|idx| lines[idx].contains('['));
        let value = if is_list {
            list(&answers.models)
        } else {
            text(&answers.models[0])
        };
        put(&mut lines, Some(name), models_key, &value);
    }
    lines.join("\n") + "\n"
}

/// What another worker's configuration brought besides the answers.
pub(super) fn add_imported(text: &str, imported: &Imported) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !imported.priority_usernames.is_empty() {
        let names = imported
            .priority_usernames
            .iter()
            .map(|name| toml::Value::String(name.clone()));
        put(
            &mut lines,
            None,
            "priority_usernames",
            &toml::Value::Array(names.collect()).to_string(),
        );
    }
    if let Some(nsfw) = imported.nsfw {
        put(&mut lines, None, "nsfw", &nsfw.to_string());
    }
    if let Some(prefetch) = imported.prefetch {
        put(&mut lines, None, "prefetch", &prefetch.to_string());
    }
    lines.join("\n") + "\n"
}

/// Sets `key` in its section: on the line where it stands, even behind a `#`, else at the section's end.
fn put(lines: &mut Vec<String>, section: Option<&str>, key: &str, value: &str) {
    let line = format!("{key} = {value}");
    match find(lines, section, key) {
        Some(idx) => lines[idx] = line,
        None => {
            let (_, end) = bounds(lines, section);
            lines.insert(end, line);
        }
    }
}

fn find(lines: &[String], section: Option<&str>, key: &str) -> Option<usize> {
    let (start, end) = bounds(lines, section);
    let is_key = |line: &String| {
        let line = line.trim_start_matches(['#', ' ']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    (start..end).find(|idx| is_key(&lines[*idx]))
}

/// The lines of a section, header excluded; of the part above the first one for `None`.
fn bounds(lines: &[String], section: Option<&str>) -> (usize, usize) {
    let is_header = |line: &String| line.starts_with('[');
    let start = match section {
        None => 0,
        Some(name) => {
            let header = format!("[{name}]");
            lines
                .iter()
                .position(|line| line.trim() == header)
                .map_or(lines.len(), |idx| idx + 1)
        }
    };
    let end = lines[start..]
        .iter()
        .position(is_header)
        .map_or(lines.len(), |idx| start + idx);
    (start, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_replace_lines_in_their_own_section_only() {
        let template =
            "# worker_name = \"x\"\n# devices = [\"auto\"]\n[scribe]\n# worker_name of nobody\n# models = []\n";
        let answers = Answers {
            worker_name: "a \"quoted\" name".to_owned(),
            device: "cuda:0".to_owned(),
            models: vec!["m1".to_owned(), "m2".to_owned()],
        };
        let text = fill(template, "scribe", "models", &answers);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["worker_name"].as_str(), Some("a \"quoted\" name"));
        assert_eq!(table["devices"][0].as_str(), Some("cuda:0"));
        assert_eq!(table["scribe"]["models"][1].as_str(), Some("m2"));
        assert!(text.contains("# worker_name of nobody"));
    }

    #[test]
    fn a_key_the_template_lacks_is_added_to_its_section() {
        let answers = Answers {
            worker_name: "name-5".to_owned(),
            device: "cpu".to_owned(),
            models: vec!["m".to_owned()],
        };
        let table: toml::Table = fill(
            "[scribe]\nmodel = \"old\"\n[scribe.more]\na = 1\n",
            "scribe",
            "model",
            &answers,
        )
        .parse()
        .unwrap();
        assert_eq!(table["scribe"]["model"].as_str(), Some("m"));
        assert_eq!(table["worker_name"].as_str(), Some("name-5"));
    }
}
