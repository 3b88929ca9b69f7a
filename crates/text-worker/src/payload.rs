//! A popped payload becomes a text request: every value clamped, unknown keys left alone.

use horde_client::text::Params;
use serde_json::Value;
use textgen::sampler::{AnswerPenalties, Dry, Mirostat, Sampling, Step, Xtc};
use textgen::{Constraint, Formatting, TextRequest};

/// A request, with the names of keys that were asked for and are not done.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What the engine is given.
    pub request: TextRequest,
    /// Known keys that this worker does not honour. Names only, never values.
    pub left_out: Vec<&'static str>,
}

/// What the server's schema has for a client that names none.
const DEFAULT_LENGTH: u32 = 80;
const DEFAULT_CONTEXT: u32 = 2_048;
/// Known keys that are not honoured: pictures need another model, the others are no part of the wire.
const NOT_HONOURED: [&str; 3] = ["images", "memory", "negative_prompt"];

/// The request of `params`. Never fails: numbers are clamped to their ranges, what is missing takes KoboldCpp's default.
pub fn request(params: Params) -> Asked {
    let other = |key: &str| {
        params
            .other
            .get(key)
            .and_then(Value::as_f64)
            .map(|number| number as f32)
    };
    let whole = |key: &str| {
        params
            .other
            .get(key)
            .and_then(Value::as_u64)
            .map(|number| number.min(1 << 20) as u32)
    };
    let default = Sampling::default();
    let real = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    let count = |value: Option<i64>, default: u32| {
        value.map_or(default, |value| u32::try_from(value.max(0)).unwrap_or(u32::MAX))
    };
    let order = params.sampler_order.unwrap_or_default();
    let xtc = Xtc {
        threshold: other("xtc_threshold").unwrap_or(default.xtc.threshold),
        probability: other("xtc_probability").unwrap_or(0.0),
    };
    let breakers = params.other.get("dry_sequence_breakers").and_then(Value::as_array);
    let dry = Dry {
        multiplier: other("dry_multiplier").unwrap_or(0.0),
        base: other("dry_base").unwrap_or(default.dry.base),
        allowed_length: whole("dry_allowed_length").unwrap_or(default.dry.allowed_length),
        range: whole("dry_penalty_last_n").unwrap_or(default.dry.range),
        breakers: breakers.map_or(default.dry.breakers, |list| {
            list.iter()
                .take(64)
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        }),
    };
    let mirostat = whole("mirostat")
        .filter(|version| (1..=2).contains(version))
        .map(|version| Mirostat {
            second: version == 2,
            tau: other("mirostat_tau").unwrap_or(5.0),
            eta: other("mirostat_eta").unwrap_or(0.1),
        });
    let biases = params
        .other
        .get("logit_bias")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let logit_bias = biases
        .filter_map(|(token, bias)| Some((token.parse().ok()?, bias.as_f64()? as f32)))
        .take(512)
        .collect();
    let left_out = NOT_HONOURED
        .into_iter()
        .filter(|key| params.other.get(*key).is_some_and(|value| !is_empty(value)))
        .collect();
    let seed = params
        .seed
        .or_else(|| params.other.get("sampler_seed").and_then(Value::as_u64));
    let flag = |value: Option<bool>| value.unwrap_or(false);
    let grammar = params.other.get("grammar").and_then(Value::as_str);
    let constraint = grammar.filter(|text| !text.trim().is_empty());
    let request = TextRequest {
        prompt: params.prompt.unwrap_or_default(),
        max_length: params.max_length.unwrap_or(DEFAULT_LENGTH),
        max_context_length: params.max_context_length.unwrap_or(DEFAULT_CONTEXT),
        sampling: Sampling {
            temperature: real(params.temperature, default.temperature),
            dynatemp_range: real(params.dynatemp_range, 0.0),
            dynatemp_exponent: real(params.dynatemp_exponent, 1.0),
            smoothing_factor: real(params.smoothing_factor, 0.0),
            top_k: count(params.top_k, default.top_k),
            top_a: real(params.top_a, 0.0),
            top_p: real(params.top_p, default.top_p),
            min_p: real(params.min_p, 0.0),
            tfs: real(params.tfs, 1.0),
            typical: real(params.typical, 1.0),
            rep_pen: real(params.rep_pen, default.rep_pen),
            rep_pen_range: count(params.rep_pen_range, default.rep_pen_range),
            rep_pen_slope: real(params.rep_pen_slope, default.rep_pen_slope),
            presence_penalty: other("presence_penalty").unwrap_or(0.0),
            // KoboldCpp has none; the name is OpenAI's, and so is the meaning.
            answer: AnswerPenalties {
                presence: 0.0,
                frequency: other("frequency_penalty").unwrap_or(0.0),
            },
            order: order.into_iter().take(64).filter_map(Step::from_number).collect(),
            xtc,
            dry,
            mirostat,
            logit_bias,
        },
        stop: params.stop_sequence,
        include_stop: true,
        ban_eos: flag(params.use_default_badwordsids),
        seed,
        formatting: Formatting {
            single_line: flag(params.singleline),
            trim_incomplete: flag(params.frmttriminc),
            remove_blank_lines: flag(params.frmtrmblln),
            remove_special: flag(params.frmtrmspch),
            add_leading_space: flag(params.frmtadsnsp),
        },
        refuse_overflow: false,
        constraint: constraint.map(|text| Constraint::Gbnf(text.to_owned())),
    };
    Asked {
        request: request.clamped(),
        left_out,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(payload: Value) -> Asked {
        request(serde_json::from_value(payload).expect("the payload is tolerated"))
    }

    #[test]
    fn a_full_payload_arrives_whole() {
        let asked = asked(json!({
            "prompt": "Once", "n": 1, "max_context_length": 4096, "max_length": 120, "frmtadsnsp": true,
            "frmttriminc": true, "rep_pen": 1.1, "rep_pen_range": 1024, "rep_pen_slope": 0.7, "singleline": true,
            "temperature": 0.7, "tfs": 0.97, "top_a": 0.1, "top_k": 40, "top_p": 0.92, "typical": 0.95,
            "sampler_order": [5, 0, 1, 3, 4, 2, 6], "use_default_badwordsids": true, "stop_sequence": ["\nUser:"],
            "min_p": 0.05, "smoothing_factor": 0.3, "dynatemp_range": 0.5, "dynatemp_exponent": 1.2,
            "xtc_probability": 0.5, "dry_multiplier": 0.8, "presence_penalty": 0.25, "frequency_penalty": 0.5, "mirostat": 2, "grammar": "root ::= \"x\"", "seed": "17"
        }));
        let request = asked.request;
        assert_eq!(
            (request.max_length, request.max_context_length, request.seed),
            (120, 4096, Some(17))
        );
        assert_eq!(request.sampling.order[0], Step::Temperature);
        assert_eq!((request.sampling.top_k, request.sampling.rep_pen_range), (40, 1024));
        assert_eq!((request.sampling.tfs, request.sampling.min_p), (0.97, 0.05));
        assert_eq!(request.sampling.dry.multiplier, 0.8);
        assert_eq!(
            (request.sampling.presence_penalty, request.sampling.answer.frequency),
            (0.25, 0.5)
        );
        assert!(request.sampling.mirostat.is_some_and(|mirostat| mirostat.second));
        assert!(request.ban_eos && request.include_stop && request.formatting.single_line);
        assert_eq!(request.stop, ["\nUser:"]);
        assert_eq!(request.constraint, Some(Constraint::Gbnf("root ::= \"x\"".into())));
        assert!(asked.left_out.is_empty());
    }

    #[test]
    fn what_a_client_left_out_takes_koboldcpps_defaults() {
        let request = asked(json!({ "prompt": "x" })).request;
        assert_eq!((request.max_length, request.max_context_length), (80, 2048));
        assert_eq!(request.sampling, Sampling::default().clamped());
    }

    #[test]
    fn wild_numbers_are_clamped_and_not_believed() {
        let request = asked(json!({
            "prompt": "x", "max_length": 4_000_000_000u32, "temperature": -5, "top_k": -7, "rep_pen": 1e39,
            "sampler_order": [1, 1, 99, -4], "top_p": 7, "stop_sequence": ["", "a"], "tfs": "much", "typical": null
        }))
        .request;
        assert_eq!(request.max_length, textgen::Limits::MAX_LENGTH);
        assert_eq!(
            (
                request.sampling.temperature,
                request.sampling.top_k,
                request.sampling.rep_pen
            ),
            (0.0, 0, 3.0)
        );
        assert_eq!((request.sampling.top_p, request.sampling.tfs), (1.0, 1.0));
        assert_eq!(request.sampling.order.len(), 7);
        assert_eq!(request.stop, ["a"]);
    }
}
