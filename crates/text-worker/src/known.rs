//! Whether the Horde's text reference knows the name that is offered, where a copy of the reference lies here.

use std::path::Path;

use model_store::reference::Kind;
use model_store::reference::load::load_offline;
use worker_app::Check;

/// The folder of the models directory with copies of the Horde's references.
const FOLDER: &str = "references";
/// The text reference in it, in the shape of the Horde's `db.json` or of its newer service.
const FILE: &str = "text_generation.json";

/// Looks `name` up; `None` without a copy of the reference.
pub(crate) fn check(models_dir: &Path, name: &str) -> Option<Check> {
    let folder = models_dir.join(FOLDER);
    if !folder.join(FILE).is_file() {
        return None;
    }
    let catalogue = load_offline(&[Kind::Text], &folder);
    // Names of engines stand before names of models; the newer reference has the latter alone.
    let bare = ["koboldcpp/", "aphrodite/", "tabbyapi/"]
        .iter()
        .find_map(|engine| name.strip_prefix(engine))
        .unwrap_or(name);
    let known = |name: &str| catalogue.get(Kind::Text, name).is_some();
    if known(name) || known(bare) {
        return Some(Check::ok("name", format!("the Horde's reference knows `{name}`")));
    }
    let similar = catalogue.similar(name).first().map(|similar| (*similar).to_owned());
    let message = format!("the Horde's reference does not know `{name}`: such a name earns a fraction");
    Some(Check::warn("name", message).hint(match similar {
        Some(similar) => format!("if it is the same model, set `scribe.model_name = \"{similar}\"`"),
        None => "set `scribe.model_name` to the reference's name of this model, if it has one".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_app::Verdict;

    #[test]
    fn names_are_looked_up_where_the_reference_lies() {
        let folder = std::env::temp_dir().join(format!("scribe-known-{}", std::process::id()));
        std::fs::create_dir_all(folder.join(FOLDER)).unwrap();
        assert_eq!(check(&folder, "koboldcpp/Mistral-7B"), None, "without a reference");
        let reference = r#"{
            "koboldcpp/Mistral-7B": {"name": "koboldcpp/Mistral-7B", "parameters": 7000000000},
            "Lite-8B": {"name": "Lite-8B", "parameters": 8000000000}
        }"#;
        std::fs::write(folder.join(FOLDER).join(FILE), reference).unwrap();
        let verdict = |name: &str| check(&folder, name).map(|check| (check.verdict, check.hint));
        assert_eq!(verdict("koboldcpp/Mistral-7B"), Some((Verdict::Ok, None)));
        assert_eq!(verdict("koboldcpp/Lite-8B"), Some((Verdict::Ok, None)));
        let (worst, hint) = verdict("koboldcpp/Mistral-7b-it").expect("the reference is there");
        assert_eq!(worst, Verdict::Warn);
        assert!(hint.is_some_and(|hint| hint.contains("`scribe.model_name = \"koboldcpp/Mistral-7B\"`")));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
