//! A labelled set: vectors and labels in one safetensors file. No picture and no name of one is in it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Result, VisionError};
use crate::safety::Group;
use crate::safety::places::has_length_one;

/// Whether a picture belongs to a group; `None` when nobody knows.
pub type Labels = BTreeMap<Group, Option<bool>>;

/// Vectors of pictures with their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelledSet {
    /// Sum of the weights that the vectors were made with.
    pub clip_sha256: String,
    /// The vectors are of no pictures: see [`super::made_up`].
    pub is_made_up: bool,
    rows: Vec<Vec<f32>>,
    labels: Vec<Labels>,
}

/// Largest file that is believed: a million pictures of 768 dimensions.
const MAX_BYTES: u64 = 4 << 30;
const NO: u8 = 0;
const YES: u8 = 1;
const UNKNOWN: u8 = 2;

/// The labels that a folder's name stands for: groups joined by `+`, a `?` before those that nobody knows, `none` for none.
///
/// # Errors
/// A name that is no group. Also a label that would mean sexual pictures of somebody under age: nobody may own such
/// pictures, for no purpose.
pub fn labels_of(folder: &str) -> Result<Labels> {
    let broken = |reason: String| VisionError::Side {
        what: format!("label `{}`", folder.escape_debug()),
        reason,
    };
    let mut labels: Labels = Group::ALL.into_iter().map(|group| (group, Some(false))).collect();
    for part in folder.split('+').filter(|part| folder != "none" || part != &"none") {
        let (name, label) = match part.strip_prefix('?') {
            Some(name) => (name, None),
            None => (part, Some(true)),
        };
        let group = Group::from_name(name).ok_or_else(|| {
            let known: Vec<&str> = Group::ALL.into_iter().map(Group::name).collect();
            broken(format!(
                "`{}` is none of {} (or `none` alone)",
                name.escape_debug(),
                known.join(", ")
            ))
        })?;
        labels.insert(group, label);
    }
    let may_be = |group: Group| labels.get(&group) != Some(&Some(false));
    let is_sexual = may_be(Group::Explicit) || may_be(Group::Suggestive);
    if may_be(Group::Danger) || (may_be(Group::UnderAge) && is_sexual) {
        return Err(broken(
            "sexual pictures of people under age must not exist, so they cannot be used; tune `under_age` on everyday \
             pictures and leave `danger` to the false-positive rate"
                .into(),
        ));
    }
    Ok(labels)
}

impl LabelledSet {
    /// An empty set of vectors by these weights.
    pub fn new(clip_sha256: &str) -> Self {
        Self {
            clip_sha256: clip_sha256.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a picture's vector.
    ///
    /// # Errors
    /// Its length is not 1, or its width is not that of the others.
    pub fn push(&mut self, row: Vec<f32>, labels: Labels) -> Result<()> {
        if !has_length_one(&row) {
            return Err(VisionError::Input("a vector of the set has not length 1".into()));
        }
        if let Some(first) = self.rows.first().filter(|first| first.len() != row.len()) {
            return Err(VisionError::Input(format!(
                "a vector of {} dimensions in a set of {}",
                row.len(),
                first.len()
            )));
        }
        self.rows.push(row);
        self.labels.push(labels);
        Ok(())
    }

    /// Adds all of another set.
    ///
    /// # Errors
    /// It was made with other weights.
    pub fn extend(&mut self, other: Self) -> Result<()> {
        if self.clip_sha256 != other.clip_sha256 {
            return Err(VisionError::Input(
                "sets that were made with different weights cannot be joined".into(),
            ));
        }
        self.is_made_up |= other.is_made_up;
        let both = other.rows.into_iter().zip(other.labels);
        both.into_iter().try_for_each(|(row, labels)| self.push(row, labels))
    }

    /// What a picture's folder would be called: `person+?suggestive`, `none`.
    pub fn label(&self, index: usize) -> String {
        let label = |group: Group| match self.labels.get(index)?.get(&group).copied().flatten() {
            Some(true) => Some(group.name().to_owned()),
            Some(false) => None,
            None => Some(format!("?{}", group.name())),
        };
        let parts: Vec<String> = Group::ALL.into_iter().filter_map(label).collect();
        if parts.is_empty() {
            "none".into()
        } else {
            parts.join("+")
        }
    }

    /// How many vectors stand there already, to the last bit.
    pub fn n_repeated(&self) -> usize {
        let mut seen = std::collections::HashSet::new();
        let bits = |row: &Vec<f32>| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        self.rows.iter().filter(|row| !seen.insert(bits(row))).count()
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Width of the vectors; 0 in an empty set.
    pub fn dimension(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// The vectors.
    pub fn rows(&self) -> &[Vec<f32>] {
        &self.rows
    }

    /// Whether each picture belongs to a group.
    pub fn labels(&self, group: Group) -> impl Iterator<Item = Option<bool>> {
        self.labels
            .iter()
            .map(move |labels| labels.get(&group).copied().flatten())
    }

    /// Writes `embeddings` (n, dimension) f32 and `labels` (n, 5) u8: 0 no, 1 yes, 2 unknown.
    pub fn write(&self, path: &Path) -> Result<()> {
        let broken = |reason: String| VisionError::Side {
            what: format!("labelled set `{}`", path.display()),
            reason,
        };
        let data: Vec<u8> = self.rows.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
        let labels: Vec<u8> = self
            .labels
            .iter()
            .flat_map(|labels| {
                Group::ALL.map(|group| match labels.get(&group).copied().flatten() {
                    Some(true) => YES,
                    Some(false) => NO,
                    None => UNKNOWN,
                })
            })
            .collect();
        let names: Vec<&str> = Group::ALL.into_iter().map(Group::name).collect();
        let header = HashMap::from([
            ("groups".to_owned(), names.join(",")),
            ("clip_sha256".to_owned(), self.clip_sha256.clone()),
            ("made_up".to_owned(), self.is_made_up.to_string()),
        ]);
        let view = |dtype, shape: [usize; 2], data| {
            TensorView::new(dtype, shape.to_vec(), data).map_err(|e| broken(e.to_string()))
        };
        let tensors = [
            ("embeddings", view(Dtype::F32, [self.len(), self.dimension()], &data)?),
            ("labels", view(Dtype::U8, [self.len(), Group::ALL.len()], &labels)?),
        ];
        let bytes = safetensors::serialize(tensors, Some(header)).map_err(|e| broken(e.to_string()))?;
        std::fs::write(path, bytes).map_err(|e| broken(e.to_string()))
    }

    /// Reads what [`Self::write`] wrote; columns may be in any order, groups that have none are unknown.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path).map_err(|reason| VisionError::Side {
            what: format!("labelled set `{}`", path.display()),
            reason,
        })
    }

    fn read(path: &Path) -> std::result::Result<Self, String> {
        let n_bytes = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if n_bytes > MAX_BYTES {
            return Err(format!("it has {n_bytes} bytes, at most {MAX_BYTES} are read"));
        }
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| e.to_string())?;
        let notes = header.metadata().clone().unwrap_or_default();
        let note = |key: &str| notes.get(key).ok_or(format!("its header has no `{key}`"));
        let groups = note("groups")?
            .split(',')
            .map(|name| Group::from_name(name).ok_or(format!("unknown group `{}`", name.escape_debug())))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut set = Self::new(note("clip_sha256")?);
        set.is_made_up = notes.get("made_up").is_some_and(|is| is == "true");

        let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
        let tensor = |name: &str, dtype: Dtype| -> std::result::Result<(Vec<u8>, [usize; 2]), String> {
            let view = file.tensor(name).map_err(|e| e.to_string())?;
            let shape = <[usize; 2]>::try_from(view.shape()).map_err(|_| format!("`{name}` needs two axes"))?;
            if view.dtype() != dtype {
                return Err(format!("`{name}` is {:?}, but {dtype:?} is needed", view.dtype()));
            }
            Ok((view.data().to_vec(), shape))
        };
        let (values, [n, width]) = tensor("embeddings", Dtype::F32)?;
        let (labels, [n_labels, n_groups]) = tensor("labels", Dtype::U8)?;
        if n != n_labels || n_groups != groups.len() || width == 0 || groups.is_empty() {
            return Err(format!(
                "{n} vectors of {width} dimensions, {n_labels} labels of {n_groups} columns for {} groups",
                groups.len()
            ));
        }
        for (row, labels) in values.chunks_exact(width * 4).zip(labels.chunks_exact(n_groups)) {
            let row = row
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let labels = groups
                .iter()
                .zip(labels)
                .map(|(group, label)| match *label {
                    NO => Ok((*group, Some(false))),
                    YES => Ok((*group, Some(true))),
                    UNKNOWN => Ok((*group, None)),
                    other => Err(format!("label {other} is none of 0, 1, 2")),
                })
                .collect::<std::result::Result<Labels, _>>()?;
            set.push(row, labels).map_err(|e| e.to_string())?;
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_name_says_what_its_pictures_show() {
        let labels = labels_of("person+?suggestive").unwrap();
        assert_eq!(labels[&Group::Person], Some(true));
        assert_eq!(labels[&Group::Suggestive], None);
        assert_eq!(labels[&Group::UnderAge], Some(false));
        assert!(labels_of("none").unwrap().values().all(|label| *label == Some(false)));
        assert!(labels_of("persons").is_err() && labels_of("").is_err() && labels_of("none+person").is_err());
    }

    #[test]
    fn labels_that_nobody_may_have_pictures_for_are_refused() {
        for name in [
            "danger",
            "?danger",
            "under_age+explicit",
            "explicit+?under_age",
            "under_age+?suggestive",
        ] {
            assert!(
                labels_of(name).unwrap_err().to_string().contains("must not exist"),
                "{name}"
            );
        }
        assert!(labels_of("person+under_age").is_ok());
    }

    #[test]
    fn a_set_survives_its_file_and_a_broken_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        let mut set = LabelledSet::new("abc");
        set.push(vec![0.6, 0.8], labels_of("person+?explicit").unwrap())
            .unwrap();
        set.push(vec![1.0, 0.0], labels_of("none").unwrap()).unwrap();
        assert!(set.push(vec![1.0], labels_of("none").unwrap()).is_err());
        assert!(set.push(vec![f32::NAN, 1.0], labels_of("none").unwrap()).is_err());
        set.write(&path).unwrap();
        assert_eq!(LabelledSet::open(&path).unwrap(), set);
        assert_eq!((set.label(0), set.label(1)), ("person+?explicit".into(), "none".into()));
        let mut twice = set.clone();
        twice.extend(LabelledSet::open(&path).unwrap()).unwrap();
        assert_eq!((twice.len(), twice.n_repeated(), set.n_repeated()), (4, 2, 0));
        assert!(twice.extend(LabelledSet::new("other weights")).is_err());

        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            LabelledSet::open(&path).unwrap_err().to_string()
        };
        assert!(refused(&whole[..whole.len() - 1]).contains("set.safetensors"));
        assert!(refused(b"").contains("set.safetensors"));
        let mut odd = whole.clone();
        *odd.last_mut().unwrap() = 7;
        assert!(refused(&odd).contains("label 7") || refused(&odd).contains("length 1"));
        assert!(LabelledSet::open(&folder.path().join("nothing")).is_err());
    }
}
