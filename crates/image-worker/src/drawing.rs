//! From a job to its pictures: sources read, LoRAs and inversions put on the model and taken off again.

use diffusion::adapter::{self, Applied, Lora};
use diffusion::embedding::Embedding;
use diffusion::{Error, Request};
use horde_client::metadata::{Metadata, MetadataType, MetadataValue};
use imaging::Picture;
use worker_runtime::backend::Fault;

use crate::resident::Loaded;
use crate::steps::Steps;
use crate::work::{LoraFile, Work};
use crate::{hires, sources};

/// Puts LoRAs and inversions on, makes the pictures, and takes both off again, whatever happens.
pub fn draw(
    loaded: &mut Loaded,
    work: &Work,
    notes: &mut Vec<Metadata>,
    steps: &mut Steps<'_>,
) -> Result<Vec<Picture>, Fault> {
    let request = request(loaded, work, notes);
    let mut applied = Vec::new();
    for lora in &work.loras {
        match put_on(loaded, lora) {
            Ok(one) => applied.push(one),
            Err(value) => notes.push(Metadata::new(MetadataType::Lora, value, Some(&lora.name))),
        }
    }
    give_embeddings(loaded, work, notes);
    let pictures = loaded.pipeline.generate(&request, steps);
    loaded.pipeline.embeddings = Box::new(|_, _| None);
    for one in applied {
        if let Err(error) = adapter::take_off(loaded.pipeline.model(), one) {
            tracing::error!(%error, "a LoRA could not be taken off; the model is read again for the next job");
            loaded.is_spoiled = true;
        }
    }
    pictures.map_err(|error| fault(error, work))
}

fn request(loaded: &Loaded, work: &Work, notes: &mut Vec<Metadata>) -> Request {
    let order = &work.order;
    let mut request = order.request(work.prompt.clone());
    let model = loaded.pipeline.model();
    let mut has_mask = false;
    if let (Some(usage), Some(bytes)) = (order.source, &work.source) {
        match sources::decode(bytes, work.mask.as_ref().map(|mask| mask.as_slice()), usage) {
            Ok(source) => {
                if source.is_mask_broken {
                    notes.push(Metadata::new(
                        MetadataType::SourceMask,
                        MetadataValue::ParseFailed,
                        None,
                    ));
                }
                has_mask = source.mask.is_some();
                request.source = Some(diffusion::Source {
                    picture: source.picture,
                    mask: source.mask,
                    // Models with channels for the mask see the picture with a hole.
                    inpaint: model.unet.in_channels() == 2 * model.vae.latent_channels() + 1,
                    denoise: order.denoise,
                });
            }
            Err(error) => {
                tracing::info!(%error, "a source is no picture; the job goes on without");
                notes.push(Metadata::new(
                    MetadataType::SourceImage,
                    MetadataValue::ParseFailed,
                    None,
                ));
            }
        }
    }
    if order.hires && !has_mask {
        let size = (order.width, order.height);
        request.hires = hires::passes(model.family, size, order.steps as usize, order.hires_denoise);
    }
    request
}

fn give_embeddings(loaded: &mut Loaded, work: &Work, notes: &mut Vec<Metadata>) {
    let model = loaded.pipeline.model();
    let widths = [model.token_width(false), model.token_width(true)];
    let mut known = Vec::new();
    for (name, path) in &work.embeddings {
        let opened = Embedding::open(path);
        let fits = |embedding: &Embedding| {
            [false, true]
                .into_iter()
                .zip(widths)
                .any(|(big, width)| width.is_some_and(|width| embedding.fits(big, width)))
        };
        let note = match &opened {
            Ok(embedding) if fits(embedding) => None,
            Ok(_) => Some(MetadataValue::BaselineMismatch),
            Err(_) => Some(MetadataValue::ParseFailed),
        };
        match (opened, note) {
            (Ok(embedding), None) => known.push((name.clone(), embedding)),
            (_, note) => notes.extend(note.map(|value| Metadata::new(MetadataType::Ti, value, Some(name)))),
        }
    }
    loaded.pipeline.embeddings = Box::new(move |name, big| {
        let (_, embedding) = known.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        embedding.vectors(big)
    });
}

fn put_on(loaded: &Loaded, lora: &LoraFile) -> Result<Applied, MetadataValue> {
    let put = Lora::open(&lora.path, lora.model, lora.clip)
        .and_then(|opened| adapter::apply(loaded.pipeline.model(), std::slice::from_ref(&opened)));
    put.map_err(|error| {
        tracing::info!(%error, "a LoRA is left out");
        match error {
            Error::Adapter { .. } => MetadataValue::BaselineMismatch,
            _ => MetadataValue::ParseFailed,
        }
    })
}

fn fault(error: Error, work: &Work) -> Fault {
    let has_strangers_weights = !work.loras.is_empty() || !work.embeddings.is_empty();
    match error {
        Error::Request(_) => Fault::of_job(error.to_string()),
        Error::Cancelled => Fault::of_worker("cancelled"),
        // What a stranger's weights do to a model says nothing about this worker.
        Error::NoPicture(_) if has_strangers_weights => Fault::of_job(error.to_string()),
        _ => Fault::of_worker(error.to_string()),
    }
}
