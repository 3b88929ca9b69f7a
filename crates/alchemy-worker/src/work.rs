//! The plain data between supervisor and engine.

use serde::{Deserialize, Serialize};

/// One form to work on, complete.
#[derive(Clone, Serialize, Deserialize)]
pub struct Work {
    /// As the Horde spells it.
    pub form: String,
    /// Tiles of 512×512 in the source, with fractions: what work is proportional to.
    pub tiles: f64,
    /// The source's bytes as fetched; the engine decodes them within its limits.
    pub source: serde_bytes::ByteBuf,
    /// Options that were understood, clamped.
    pub options: Options,
}

/// Options of a form, within bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// How much of a repaired face is laid over the old one, 0..=1.
    pub face_strength: f32,
    /// Beams of a caption, 1..=8.
    pub num_beams: usize,
    /// Where it is asked for, a caption's tokens are drawn from the likeliest that together have this probability, above 0 and
    /// below 1, instead of searched with beams.
    pub top_p: Option<f32>,
    /// Fewest tokens of a caption, 0..=40.
    pub min_length: usize,
    /// Most tokens of a caption, 5..=60.
    pub max_length: usize,
    /// Above 1 repeated words become less likely, 1..=5.
    pub repetition_penalty: f32,
    /// Words per list of an interrogation, 1..=20.
    pub top_count: usize,
    /// Which annotator, as received, at most 40 characters.
    pub control_type: Option<String>,
    /// The engine's own: the score from which a picture is not safe for work, 0..=1.
    pub nsfw_threshold: f32,
}

/// What came of a form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Output {
    /// A picture to upload.
    Picture {
        /// As the Horde spells it.
        form: String,
        /// WebP.
        webp: serde_bytes::ByteBuf,
        /// Tiles of 512×512 in the source, for displays.
        tiles: f64,
    },
    /// A result to submit as it is.
    Value {
        /// The whole `result` object, as JSON text.
        result: String,
        /// Tiles of 512×512 in the source, for displays.
        tiles: f64,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            face_strength: 0.5,
            num_beams: 3,
            top_p: None,
            min_length: 5,
            max_length: 50,
            repetition_penalty: 1.0,
            top_count: 5,
            control_type: None,
            nsfw_threshold: 0.8,
        }
    }
}

impl Options {
    /// Reads a form's payload leniently: what is missing or no number keeps its default, what is too much is clamped.
    pub fn read(payload: &serde_json::Value) -> Self {
        let defaults = Self::default();
        let number = |key: &str| {
            payload
                .get(key)
                .and_then(serde_json::Value::as_f64)
                .filter(|v| v.is_finite())
        };
        let whole = |key: &str, default: usize, low: usize, high: usize| {
            number(key).map_or(default, |v| (v.clamp(low as f64, high as f64)) as usize)
        };
        let part =
            |key: &str, default: f32, low: f64, high: f64| number(key).map_or(default, |v| v.clamp(low, high) as f32);
        Self {
            face_strength: part("facefixer_strength", defaults.face_strength, 0.0, 1.0),
            num_beams: whole("num_beams", defaults.num_beams, 1, 8),
            top_p: number("top_p").map(|v| v as f32).filter(|v| *v > 0.0 && *v < 1.0),
            min_length: whole("min_length", defaults.min_length, 0, 40),
            max_length: whole("max_length", defaults.max_length, 5, 60),
            repetition_penalty: part("repetition_penalty", defaults.repetition_penalty, 1.0, 5.0),
            top_count: whole("top_count", defaults.top_count, 1, 20),
            control_type: payload
                .get("control_type")
                .and_then(serde_json::Value::as_str)
                .map(|name| name.chars().take(40).collect()),
            nsfw_threshold: defaults.nsfw_threshold,
        }
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("form", &self.form)
            .field("source_bytes", &self.source.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Options;

    #[test]
    fn options_are_clamped_and_nonsense_keeps_the_default() {
        let read = Options::read(&json!({
            "facefixer_strength": 7, "num_beams": -3, "min_length": "many", "max_length": 1e300, "top_count": null
        }));
        assert_eq!(
            read,
            Options {
                face_strength: 1.0,
                num_beams: 1,
                max_length: 60,
                ..Options::default()
            }
        );
        assert_eq!(Options::read(&json!({ "top_p": 0.9 })).top_p, Some(0.9));
        // All of it, or nothing, is no choice of tokens.
        for top_p in [json!(1), json!(0), json!(-0.5), json!(1e-60), json!("0.9"), json!([])] {
            assert_eq!(Options::read(&json!({ "top_p": top_p })).top_p, None, "{top_p}");
        }
        assert_eq!(Options::read(&json!(null)), Options::default());
        assert_eq!(Options::read(&json!([1, 2])), Options::default());
    }
}
