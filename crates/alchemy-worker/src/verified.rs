//! Forms whose files are there and are what they should be. Reads each file once; [`Trust`] remembers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use horde_client::alchemy::Form;
use model_store::digest::Sha256Sum;
use model_store::reference::Catalogue;
use model_store::stamp::Stamp;
use model_store::store::Store;
use model_store::trust::{Distrust, Trust};

use crate::forms::{self, Found, Missing, Wanted};

/// What came of looking at all wanted forms.
#[derive(Debug, Default)]
pub struct Verified {
    /// Forms to serve, with what serves them.
    pub served: Found,
    /// Forms that lack a file.
    pub missing: Missing,
    /// Forms with a file that is not what it should be.
    pub refused: Vec<Refused>,
    /// Files nobody knows the sum of, trusted from now on as they are.
    pub first_used: Vec<PathBuf>,
    /// How every verified file looked, so that an engine notices when one is exchanged later.
    pub stamps: BTreeMap<PathBuf, Stamp>,
}

/// A form that is not offered because of one of its files.
#[derive(Debug)]
pub struct Refused {
    /// The form.
    pub form: Form,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Distrust,
    /// What the owner may do.
    pub hint: String,
}

/// Sums and names by place.
struct Known<'a> {
    sums: HashMap<PathBuf, Vec<Sha256Sum>>,
    names: HashMap<PathBuf, &'a str>,
}

/// Looks at all `wanted` forms below `models`. What `catalogue` says of a file is what it must be.
pub fn verified(wanted: &Wanted, models: &Path, catalogue: &Catalogue, trust: &mut Trust) -> Verified {
    let known = Known::of(catalogue, models);
    let (found, missing) = forms::installed(wanted, models);
    let mut all = Verified {
        missing,
        ..Verified::default()
    };
    for (form, task) in found {
        match task.files().into_iter().find_map(|path| all.doubt(path, &known, trust)) {
            Some((path, why)) => all.refused.push(Refused {
                hint: hint(known.names.get(&path).copied()),
                form,
                path,
                why,
            }),
            None => all.served.push((form, task)),
        }
    }
    all
}

impl Verified {
    fn doubt(&mut self, path: PathBuf, known: &Known<'_>, trust: &mut Trust) -> Option<(PathBuf, Distrust)> {
        if self.stamps.contains_key(&path) {
            return None;
        }
        let sums = known.sums.get(&path).map_or(&[][..], Vec::as_slice);
        // Words and settings that nobody else knows are the owner's to change.
        if sums.is_empty() && path.extension().is_none_or(|extension| extension != "safetensors") {
            return None;
        }
        match trust.check(&path, sums) {
            Ok(trusted) => {
                if trusted.is_first_use {
                    self.first_used.push(path.clone());
                }
                self.stamps.insert(path, trusted.stamp);
                None
            }
            Err(why) => Some((path, why)),
        }
    }

    /// Tells the owner's log what is not offered and what is trusted unseen.
    pub fn tell(&self) {
        for refused in &self.refused {
            tracing::warn!(
                form = refused.form.as_str(), file = %refused.path.display(), why = %refused.why, hint = refused.hint,
                "a form is not offered"
            );
        }
        for path in &self.first_used {
            tracing::info!(
                file = %path.display(),
                "nobody knows the right sum of this file; it is trusted as it is, and refused should it ever change"
            );
        }
    }
}

impl<'a> Known<'a> {
    /// A file that several models name may be any of them; one that some model names without a sum may be anything.
    fn of(catalogue: &'a Catalogue, models: &Path) -> Self {
        let store = Store::new(models);
        let (mut sums, mut names) = (HashMap::<_, Option<Vec<_>>>::new(), HashMap::new());
        for model in catalogue.models() {
            for file in &model.files {
                let path = store.path_of(model, file);
                names.insert(path.clone(), model.name.as_str());
                let entry = sums.entry(path).or_insert_with(|| Some(Vec::new()));
                match (file.sha256, &mut *entry) {
                    (Some(sum), Some(sums)) => sums.push(sum),
                    _ => *entry = None,
                }
            }
        }
        let sums = sums.into_iter().map(|(path, sums)| (path, sums.unwrap_or_default()));
        Self {
            sums: sums.collect(),
            names,
        }
    }
}

fn hint(model: Option<&str>) -> String {
    let own = "if it is a file of yours, give its sum in models.toml";
    match model {
        Some(name) => format!("`alchemist models pull {name}` fetches it anew; {own}"),
        None => format!("put the file there anew; {own}"),
    }
}
