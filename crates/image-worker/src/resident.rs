//! Models in memory: as many as the owner allows, the least recently used leaves first.

use std::time::Instant;

use diffusion::{Overrides, Pipeline};
use vision::Device;

use crate::models::Served;

/// A model that is ready.
pub struct Loaded {
    /// Which.
    pub served: Served,
    /// Its networks.
    pub pipeline: Pipeline,
    /// How long reading it took.
    pub seconds: f64,
    /// Its weights are not what they should be: it is read again before its next use.
    pub is_spoiled: bool,
}

/// All models that may be asked for, and those in memory.
pub struct Resident {
    models: Vec<Served>,
    loaded: Vec<Loaded>, // the most recently used last
    most: usize,
    device: Device,
}

impl Resident {
    /// Nothing is read yet.
    pub fn new(models: Vec<Served>, most: usize, device: Device) -> Self {
        Self {
            models,
            loaded: Vec::new(),
            most: most.max(1),
            device,
        }
    }

    /// Names of all models.
    pub fn names(&self) -> Vec<String> {
        self.models.iter().map(|model| model.name.clone()).collect()
    }

    /// Names of those in memory.
    pub fn in_memory(&self) -> Vec<String> {
        self.loaded.iter().map(|one| one.served.name.clone()).collect()
    }

    /// Whether a model is in memory and sound.
    pub fn has(&self, name: &str) -> bool {
        self.loaded.iter().any(|one| one.served.name == name && !one.is_spoiled)
    }

    /// A model is never asked for again.
    pub fn forget(&mut self, name: &str) {
        self.models.retain(|model| model.name != name);
        self.loaded.retain(|one| one.served.name != name);
    }

    /// The model, read if it is not in memory. Others leave before, so that there is room.
    ///
    /// # Errors
    /// Nobody offered it, or its files cannot be read.
    pub fn get(&mut self, name: &str) -> Result<&mut Loaded, String> {
        self.loaded.retain(|one| !one.is_spoiled);
        let loaded = match self.loaded.iter().position(|one| one.served.name == name) {
            Some(at) => self.loaded.remove(at),
            None => {
                let served = self.models.iter().find(|model| model.name == name);
                let served = served.ok_or("it was not offered")?.clone();
                while self.loaded.len() >= self.most {
                    self.loaded.remove(0);
                }
                let begun = Instant::now();
                let pipeline = Pipeline::load(&served.files(), &self.device, Overrides::default())
                    .map_err(|error| error.to_string())?;
                Loaded {
                    served,
                    pipeline,
                    seconds: begun.elapsed().as_secs_f64(),
                    is_spoiled: false,
                }
            }
        };
        Ok(self.loaded.push_mut(loaded))
    }
}
