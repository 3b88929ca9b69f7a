//! Every name a LoRA may give a layer, and ours.

use std::{borrow::Cow, collections::HashMap};

use crate::{layout::UNetNames, model::Model, safetensors_file::SafetensorsFile};

/// The layers of one model by all their names.
pub struct Layers {
    by_name: HashMap<String, String>,
    has_second_encoder: bool,
}

impl Layers {
    /// Modules are named without `.weight`.
    pub fn of(model: &Model) -> Self {
        let mut by_name = HashMap::new();
        let names: Vec<&str> = model.weights().names_under("unet.").collect();
        let diffusers = UNetNames::from_ldm(names.iter().copied());
        for name in &names {
            let Some(module) = name.strip_suffix(".weight") else {
                continue;
            };
            let ours = format!("unet.{module}");
            by_name.insert(format!("lora_unet_{}", module.replace('.', "_")), ours.clone());
            by_name.insert(format!("diffusion_model.{module}"), ours.clone());
            let Some(theirs) = diffusers.to_diffusers(module) else {
                continue;
            };
            let flat = theirs.replace('.', "_");
            by_name.insert(format!("lora_unet_{flat}"), ours.clone());
            by_name.insert(format!("lycoris_{flat}"), ours.clone());
            by_name.insert(format!("unet.{theirs}"), ours.clone());
            if let Some((block, projection)) = theirs.rsplit_once(".to_") {
                let projection = projection.strip_suffix(".0").unwrap_or(projection);
                let processor = format!("{block}.processor.to_{projection}");
                by_name.insert(format!("unet.{processor}"), ours.clone());
                by_name.insert(processor, ours.clone());
            }
            by_name.insert(theirs, ours);
        }
        let has_second_encoder = model.weights().has_prefix("clip_g.");
        for (encoder, forms) in [
            ("clip_l.", &["lora_te_", "lora_te1_", "text_encoder."][..]),
            ("clip_g.", &["lora_te2_", "text_encoder_2."]),
            ("clip_h.", &["lora_te_", "lora_te1_", "text_encoder."]),
        ] {
            for name in model.weights().names_under(encoder) {
                let Some(module) = name.strip_suffix(".weight") else {
                    continue;
                };
                by_name.insert(
                    format!("text_encoders.{encoder}transformer.{module}"),
                    format!("{encoder}{module}"),
                );
                for form in forms {
                    let theirs = if form.ends_with('_') {
                        module.replace('.', "_")
                    } else {
                        module.to_owned()
                    };
                    by_name.insert(format!("{form}{theirs}"), format!("{encoder}{module}"));
                }
            }
        }
        Self {
            by_name,
            has_second_encoder,
        }
    }

    /// Our name of the layer that a file calls `prefix`.
    pub fn find(&self, prefix: &str) -> Option<&str> {
        let found = self.by_name.get(prefix);
        let found = found.or_else(|| self.by_name.get(plain(prefix).as_ref()));
        found.map(String::as_str)
    }

    /// The first name of a second text encoder's layer in the file, where the model has only one.
    pub fn foreign_encoder<'a>(&self, file: &'a SafetensorsFile) -> Option<&'a str> {
        let is_second = |name: &&str| name.starts_with("lora_te2_") || plain(name).starts_with("text_encoder_2.");
        file.names().find(is_second).filter(|_| !self.has_second_encoder)
    }
}

/// Without what PEFT and LyCORIS put before a name.
fn plain(prefix: &str) -> Cow<'_, str> {
    if prefix.contains("base_model.model.") {
        return prefix.replacen("base_model.model.", "", 1).into();
    }
    match prefix.strip_prefix("lycoris_") {
        Some(rest) => format!("lora_{rest}").into(),
        None => prefix.into(),
    }
}
