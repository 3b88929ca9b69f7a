//! Models in memory: as many as the owner allows and as there is room for; the least recently used leaves first.

use std::time::Instant;

use diffusion::pipeline::WHOLE_PIXELS;
use diffusion::{Outline, Overrides, Pipeline, Request};

use crate::models::Served;
use crate::room::{Room, Shortage};

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
    /// What its weights hold.
    weights_bytes: u64,
}

/// All models that may be asked for, and those in memory.
pub struct Resident {
    models: Vec<Served>,
    loaded: Vec<Loaded>, // the most recently used last
    most: usize,
    room: Room,
}

/// Why a model is not ready for a request.
#[derive(Debug)]
pub enum Refused {
    /// The request does not fit, even with no other model in memory.
    Memory(Shortage),
    /// Nobody offered it, or its files cannot be read.
    Model(String),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(shortage) => write!(f, "{shortage}"),
            Self::Model(why) => write!(f, "the model could not be loaded: {why}"),
        }
    }
}

impl Resident {
    /// Nothing is read yet.
    pub fn new(models: Vec<Served>, most: usize, room: Room) -> Self {
        Self {
            models,
            loaded: Vec::new(),
            most: most.max(1),
            room,
        }
    }

    /// Where the models are.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// All models.
    pub fn models(&self) -> &[Served] {
        &self.models
    }

    /// Bytes of the models in memory.
    pub fn held_bytes(&self) -> u64 {
        self.loaded.iter().map(|one| one.weights_bytes).sum()
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

    /// The model that was used last.
    pub fn latest(&mut self) -> Option<&mut Loaded> {
        self.loaded.last_mut()
    }

    /// A model is never asked for again.
    pub fn forget(&mut self, name: &str) {
        self.models.retain(|model| model.name != name);
        self.loaded.retain(|one| one.served.name != name);
    }

    /// The model, read if it is not in memory, with room for `request`. Others leave before, so that there is room.
    ///
    /// # Errors
    /// The request does not fit, nobody offered the model, or its files cannot be read. What was in memory and fits
    /// beside nothing is still there.
    pub fn get(&mut self, name: &str, request: &Request) -> Result<&mut Loaded, Refused> {
        self.loaded.retain(|one| !one.is_spoiled);
        let place = self.loaded.iter().position(|one| one.served.name == name);
        let mut ready = place.map(|at| self.loaded.remove(at));
        let files = match &ready {
            Some(loaded) => loaded.served.clone(),
            None => {
                let served = self.models.iter().find(|model| model.name == name);
                served.ok_or(Refused::Model("it was not offered".into()))?.clone()
            }
        };
        let plan = match &ready {
            Some(loaded) => loaded.pipeline.plan(request),
            None => Outline::open(&files.files(), &[])
                .map_err(|error| Refused::Model(error.to_string()))?
                .plan(request, self.room.device.is_cpu(), WHOLE_PIXELS),
        };
        while ready.is_none() && self.loaded.len() >= self.most {
            self.loaded.remove(0);
        }
        loop {
            let others = self.held_bytes();
            let held = others + ready.as_ref().map_or(0, |one| one.weights_bytes);
            match self.room.check(&plan, others, held) {
                Ok(()) => break,
                Err(_) if !self.loaded.is_empty() => drop(self.loaded.remove(0)),
                Err(shortage) => {
                    self.loaded.extend(ready.take());
                    return Err(Refused::Memory(shortage));
                }
            }
        }
        let loaded = match ready {
            Some(loaded) => loaded,
            None => {
                let begun = Instant::now();
                let pipeline = Pipeline::load(&files.files(), &self.room.device, Overrides::default())
                    .map_err(|error| Refused::Model(error.to_string()))?;
                Loaded {
                    served: files,
                    pipeline,
                    seconds: begun.elapsed().as_secs_f64(),
                    is_spoiled: false,
                    weights_bytes: plan.weights_bytes,
                }
            }
        };
        Ok(self.loaded.push_mut(loaded))
    }
}
