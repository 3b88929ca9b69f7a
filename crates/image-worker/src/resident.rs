//! Models in memory: as many as the owner allows and as there is room for; the least recently used leaves first. The
//! networks of post-processing leave before them and come back when they are needed.

use std::sync::Arc;
use std::time::Instant;

use diffusion::pipeline::WHOLE_PIXELS;
use diffusion::{Outline, Overrides, Pipeline, Request};

use crate::models::Served;
use crate::networks::Installed;
use crate::room::{Need, Room, Shortage};

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
    networks: Arc<Installed>,
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
    pub fn new(models: Vec<Served>, most: usize, room: Room, networks: Arc<Installed>) -> Self {
        Self {
            models,
            loaded: Vec::new(),
            most: most.max(1),
            room,
            networks,
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

    /// Networks of post-processing.
    pub fn networks(&self) -> &Arc<Installed> {
        &self.networks
    }

    /// Bytes of the models and networks in memory.
    pub fn held_bytes(&self) -> u64 {
        let models = self.loaded.iter().map(|one| one.weights_bytes).sum::<u64>();
        models.saturating_add(self.networks.held_bytes())
    }

    /// The first of `needs`, all with the same weights, for which there is room beside the models in memory. Where there is
    /// none, other networks leave and then the least recently used models.
    ///
    /// # Errors
    /// There is no room for the last, even without any model.
    pub fn make_room(&mut self, needs: &[Need]) -> Result<usize, Shortage> {
        loop {
            let networks = self.networks.held_bytes();
            let (held, mut shortage, mut are_others) = (self.held_bytes(), None, false);
            for (at, need) in needs.iter().enumerate() {
                let beside = networks.saturating_sub(need.weights_bytes);
                are_others = beside > 0;
                match self.room.check(*need, held - networks + beside, held) {
                    Ok(()) => return Ok(at),
                    Err(short) => shortage = Some(short),
                }
            }
            match shortage {
                None => return Ok(0),
                Some(_) if are_others && self.networks.let_go() => {}
                Some(shortage) if self.loaded.is_empty() => return Err(shortage),
                Some(_) => drop(self.loaded.remove(0)),
            }
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
            match self.room.check(Need::from(&plan), others, held) {
                Ok(()) => break,
                Err(_) if self.networks.let_go() => {}
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
