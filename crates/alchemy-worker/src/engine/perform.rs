//! One form on one picture.

use std::hash::{BuildHasher, RandomState};

use imaging::{Picture, WebpOptions};
use serde_json::{Map, Value, json};
use vision::VisionError;
use vision::background::MattingSettings;
use vision::blip::{CaptionSettings, Search};
use vision::clip::Tag;
use vision::face::{RestoreSettings, restore_faces};
use worker_runtime::backend::{Fault, JobContext};

use super::networks::Networks;
use super::{annotate, describe, palette};
use crate::forms::Task;
use crate::work::Options;

/// What came of a form, before it has the wire's shape.
pub(super) enum Made {
    Picture(Picture),
    Value(Value),
}

/// The lists of an interrogation, as the wire names them. Those that are not installed are empty.
const LISTS: [&str; 7] = [
    "tags",
    "sites",
    "artists",
    "flavors",
    "mediums",
    "movements",
    "techniques",
];

/// A form's picture with what is known of it.
pub(super) struct Source<'a> {
    pub picture: &'a Picture,
    /// As it was sent: `PNG` and the like.
    pub format: &'a str,
}

/// Does it. Nobody else's job is touched, whatever happens here.
pub(super) fn perform(
    task: &Task,
    networks: &Networks,
    source: &Source<'_>,
    options: &Options,
    job: &dyn JobContext,
) -> Result<Made, Fault> {
    let picture = source.picture;
    let mut progress = |done: usize, total: usize| {
        job.progress(done as u32, total as u32, "work");
        !job.is_cancelled()
    };
    Ok(match task {
        Task::Caption(folder) => {
            let settings = CaptionSettings {
                search: search(options),
                min_length: options.min_length,
                max_length: options.max_length,
                repetition_penalty: options.repetition_penalty,
                ..CaptionSettings::default()
            };
            let captioner = networks.captioner(folder)?;
            let caption = captioner.caption(picture, &settings, &|| job.is_cancelled());
            Made::Value(json!(caption.map_err(fault)?))
        }
        Task::Interrogate { clip, words } => {
            let interrogator = networks.interrogator(clip, words, &mut progress)?;
            let lists = interrogator.interrogate(picture, options.top_count).map_err(fault)?;
            Made::Value(ranked(lists))
        }
        Task::NsfwChecker(path) => Made::Value(json!(networks.checker(path)?.check(picture).map_err(fault)?.flagged)),
        Task::NsfwScore(path) => {
            let score = networks.open_nsfw(path)?.score(picture).map_err(fault)?;
            Made::Value(json!(score >= options.nsfw_threshold))
        }
        Task::Vectorize => Made::Value(json!(
            vision::vectorize::vectorize(picture, &mut progress).map_err(fault)?
        )),
        Task::Palette => Made::Value(palette::palette(picture)),
        Task::Describe => Made::Value(describe::describe(picture, source.format)),
        // The shape is unconfirmed: the Horde's own client calls it a number from 0 to 10.
        Task::Aesthetic { clip, head } => {
            let score = networks.scorer(clip, head)?.score(picture).map_err(fault)?;
            Made::Value(json!((f64::from(score) * 1000.0).round() / 1000.0))
        }
        Task::Annotate => Made::Picture(annotate::annotate(picture, options.control_type.as_deref())?),
        Task::Upscale(path) => {
            let upscaler = networks.upscaler(path)?;
            let large = upscaler.upscale(picture, upscaler.tiling(), &mut progress);
            Made::Picture(large.map_err(fault)?)
        }
        Task::Strip(path) => {
            let remover = networks.remover(path)?;
            Made::Picture(remover.cut_out(picture, &MattingSettings::default()).map_err(fault)?)
        }
        Task::Faces {
            detector,
            restorer,
            parser,
        } => {
            let detector = networks.detector(detector)?;
            let restorer = networks.restorer(restorer, parser.as_deref())?;
            let settings = RestoreSettings {
                strength: options.face_strength,
                ..RestoreSettings::default()
            };
            let repaired = restore_faces(picture, &detector, &restorer, &settings, &mut progress);
            Made::Picture(repaired.map_err(fault)?)
        }
    })
}

/// WebP as the Horde is sent it.
pub(super) fn encode(picture: &Picture) -> Result<Vec<u8>, Fault> {
    imaging::encode_webp(picture, WebpOptions::default())
        .map_err(|e| Fault::of_worker(format!("the result could not be encoded: {e}")))
}

/// Every list of the wire, then those of the owner's own making.
fn ranked(found: Vec<(String, Vec<Tag>)>) -> Value {
    let mut lists: Map<String, Value> = LISTS.iter().map(|name| ((*name).to_owned(), json!([]))).collect();
    for (name, tags) in found {
        let tags: Vec<Value> = tags
            .into_iter()
            .map(|tag| json!({ "text": tag.text, "confidence": tag.confidence }))
            .collect();
        lists.insert(name, Value::Array(tags));
    }
    Value::Object(lists)
}

/// Who names a nucleus wants a sentence drawn, another one each time.
fn search(options: &Options) -> Search {
    match options.top_p {
        Some(top_p) => Search::Nucleus {
            top_p,
            seed: RandomState::new().hash_one(()),
        },
        None => Search::Beams(options.num_beams),
    }
}

fn fault(error: VisionError) -> Fault {
    match error {
        VisionError::Cancelled => Fault::of_job("cancelled"),
        error if error.is_of_request() => Fault::of_job(error.to_string()),
        error => Fault::of_worker(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nucleus_is_drawn_from_anew_each_time_and_beams_are_searched_without_one() {
        let drawn = |top_p| {
            search(&Options {
                top_p,
                ..Options::default()
            })
        };
        let (Search::Nucleus { top_p, seed }, Search::Nucleus { seed: other, .. }) =
            (drawn(Some(0.9)), drawn(Some(0.9)))
        else {
            panic!("a nucleus was asked for");
        };
        assert_eq!(top_p, 0.9);
        assert_ne!(seed, other);
        assert_eq!(drawn(None), Search::Beams(3));
    }
}
