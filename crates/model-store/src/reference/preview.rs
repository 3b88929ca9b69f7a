//! What a choice of models would mean for disk and memory, before anything is fetched.

use serde::Serialize;

use super::{Baseline, Kind, Model};
use crate::store::{State, Store};

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Free bytes on the disk of the models directory.
    pub disk_free_bytes: u64,
    /// Bytes that must stay free.
    pub disk_floor_bytes: u64,
    /// Memory of the device that runs the models; `None` when not known.
    pub memory_bytes: Option<u64>,
}

/// One model of the choice.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// What is there of it.
    pub state: State,
    /// Size of all its files, where known.
    pub size_bytes: Option<u64>,
    /// What would be fetched; `None` where the size is not known.
    pub fetch_bytes: Option<u64>,
    /// Estimate of the memory it needs at work.
    pub memory_bytes: Option<u64>,
    /// Does it fit into memory? `None` when one of the two sides is not known.
    pub fits_memory: Option<bool>,
}

/// The whole choice.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// In the order of the choice.
    pub lines: Vec<Line>,
    /// Sum of the known parts.
    pub fetch_bytes: u64,
    /// Models of unknown size among those to fetch.
    pub unknown_sizes: usize,
    /// Free bytes on the disk afterwards; negative when it does not fit.
    pub free_after_bytes: i128,
    /// Does everything fit above the floor?
    pub fits_disk: bool,
}

/// Looks at every model of a choice.
pub fn preview<'a>(models: impl IntoIterator<Item = &'a Model>, store: &Store, room: Room) -> Preview {
    let lines: Vec<Line> = models.into_iter().map(|model| line(model, store, room)).collect();
    let fetch_bytes = lines
        .iter()
        .filter_map(|line| line.fetch_bytes)
        .fold(0u64, u64::saturating_add);
    let free_after_bytes = i128::from(room.disk_free_bytes) - i128::from(fetch_bytes);
    Preview {
        unknown_sizes: lines.iter().filter(|line| line.fetch_bytes.is_none()).count(),
        fits_disk: free_after_bytes >= i128::from(room.disk_floor_bytes),
        lines,
        fetch_bytes,
        free_after_bytes,
    }
}

fn line(model: &Model, store: &Store, room: Room) -> Line {
    let state = store.state(model);
    let fetch_bytes = match state {
        State::Verified | State::Present => Some(0),
        State::Partial => model
            .size_bytes
            .map(|size| size.saturating_sub(store.partial_bytes(model))),
        State::Missing | State::Corrupt => model.size_bytes,
    };
    let memory_bytes = model.size_bytes.map(|size| working_bytes(model, size));
    Line {
        name: model.name.clone(),
        state,
        size_bytes: model.size_bytes,
        fetch_bytes,
        memory_bytes,
        fits_memory: memory_bytes.zip(room.memory_bytes).map(|(needs, has)| needs <= has),
    }
}

/// Weights plus what one picture of the family's native size takes beside them: a rough estimate for a first look,
/// never used to place a model on a device.
fn working_bytes(model: &Model, weights: u64) -> u64 {
    let beside = match (&model.baseline, model.kind) {
        (Some(Baseline::Sd1 | Baseline::Sd2At512 | Baseline::Sd2At768), _) => 1536 << 20,
        (Some(Baseline::Sdxl), _) => 3 << 30,
        (_, Kind::Image) => 4 << 30,
        (_, Kind::Text) => weights / 8,
        _ => 512 << 20,
    };
    weights.saturating_add(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_weighed_before_it_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let catalogue = super::super::local::builtin();
        let model = catalogue.find("smollm2-135m-instruct").unwrap();
        let room = Room {
            disk_free_bytes: 100_000_000,
            disk_floor_bytes: 1_000_000,
            memory_bytes: Some(1 << 30),
        };
        let seen = preview([model], &store, room);
        assert_eq!(
            (seen.fetch_bytes, seen.fits_disk, seen.lines[0].fits_memory),
            (98_362_432, true, Some(true))
        );
        let tight = preview(
            [model],
            &store,
            Room {
                disk_floor_bytes: 2_000_000,
                memory_bytes: Some(1 << 20),
                ..room
            },
        );
        assert_eq!((tight.fits_disk, tight.lines[0].fits_memory), (false, Some(false)));
    }
}
