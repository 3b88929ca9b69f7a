//! The tables of random numbers, noise levels and token rows, in the form of the reference's own.

use std::path::Path;

use diffusion::{
    Error, Result,
    noise::{BrownianTree, Philox, SeedSequence, TorchCpu},
    sigma::{Levels, Schedule},
    tokens::{END, Embeddings, Row, Token, rows},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Finds an inversion's vectors: its name, whether the big encoder asks.
pub type Find<'a> = dyn Fn(&str, bool) -> Option<Vec<Vec<f32>>> + 'a;

/// Our table `id` for the questions in the reference's table; `None` if there is no such table.
pub fn table(id: &str, reference: &Value, find: &Find<'_>) -> Result<Option<Value>> {
    Ok(Some(match id {
        "rng" => random_numbers(reference),
        "sigmas" => Value::Array(list(reference).iter().map(levels).collect()),
        "tokens" => {
            // Rows with a text encoder of another kind are another engine's.
            let ours = |row: &&Value| {
                let mut encoders = row["batches"].as_object().into_iter().flatten();
                encoders.all(|(name, _)| matches!(name.as_str(), "l" | "g" | "h"))
            };
            let rows = list(reference).iter().filter(ours).map(|row| tokens(row, find));
            Value::Array(rows.collect::<Result<Vec<Value>>>()?)
        }
        _ => return Ok(None),
    }))
}

/// Writes a table.
pub fn write(path: &Path, table: &Value) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, table.to_string()))
        .map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whole numbers, of which the large ones are written as text.
fn number(value: &Value) -> u64 {
    value
        .as_str()
        .and_then(|s| s.parse().ok())
        .or(value.as_u64())
        .unwrap_or(0)
}

fn length(value: &Value) -> usize {
    // No table asks for more; a broken one must not ask for all memory.
    number(value).min(1 << 24) as usize
}

fn digest(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    hex::encode(Sha256::digest(bytes))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every row with its answers computed anew; what is asked (seeds, lengths, times) is copied.
fn random_numbers(reference: &Value) -> Value {
    let mut stream: Option<(u64, TorchCpu)> = None;
    let mut table = serde_json::Map::new();
    for (kind, rows) in reference.as_object().into_iter().flatten() {
        let answered = list(rows).iter().map(|row| {
            let mut row = row.clone();
            let seed = number(&row["seed"]);
            match kind.as_str() {
                "cpu_randn" => {
                    let values = TorchCpu::new(seed).randn(length(&row["n"]));
                    row["first_bits"] = json!(bits(&values[..values.len().min(8)]));
                    row["last_bits"] = json!(bits(&values[values.len().saturating_sub(8)..]));
                    row["sha256"] = json!(digest(&values));
                }
                "cpu_sequences" => {
                    let generator = match &mut stream {
                        Some((known, generator)) if *known == seed => generator,
                        _ => &mut stream.insert((seed, TorchCpu::new(seed))).1,
                    };
                    row["sha256"] = json!(digest(&generator.randn(length(&row["n"]))));
                }
                "mt19937" => {
                    let mut generator = TorchCpu::new(seed);
                    let words: Vec<u32> = (0..1000).map(|_| generator.next_u32()).collect();
                    let count = list(&row["first_u32"]).len().min(words.len());
                    row["first_u32"] = json!(words[..count]);
                    row["u32_1000"] = json!(words[999]);
                }
                "seed_sequence" => {
                    let key: Vec<u64> = list(&row["spawn_key"]).iter().map(number).collect();
                    let sequence = SeedSequence::new(number(&row["entropy"]), &key, length(&row["pool_size"]));
                    row["state4"] = json!(sequence.state(4));
                }
                "brownian_tree" => brownian(&mut row),
                "philox_cuda_like" => {
                    let mut noise = Philox::new(seed);
                    for key in ["first_call_12", "second_call_4"] {
                        row[key] = json!(noise.randn(list(&row[key]).len()));
                    }
                }
                _ => {}
            }
            row
        });
        table.insert(kind.clone(), answered.collect());
    }
    Value::Object(table)
}

fn brownian(row: &mut Value) {
    let time = |value: &Value| value.as_f64().unwrap_or(0.0) as f32;
    let size = list(&row["shape"]).iter().map(length).product::<usize>().min(1 << 24);
    let tree = BrownianTree::new(time(&row["t0"]), time(&row["t1"]), size, number(&row["entropy"]));
    for query in row["queries"].as_array_mut().into_iter().flatten() {
        let values = tree.increment(time(&query["t0"]), time(&query["t1"]));
        let count = list(&query["first"]).len().min(values.len());
        query["first"] = json!(values[..count]);
        query["sha256"] = json!(digest(&values));
    }
}

fn levels(row: &Value) -> Value {
    let text = |key: &str| row[key].as_str().unwrap_or("");
    let levels = match text("model") {
        "zsnr" => Levels::zero_terminal_snr(),
        "flow_shift1" => Levels::flow(1.0),
        "flux_shift1.15" => Levels::flux(1.15),
        _ => Levels::stable_diffusion(),
    };
    let mut row = row.clone();
    let skip = matches!(row["sampler"].as_str(), Some("dpm_2"));
    row["sigmas"] = match Schedule::from_name(row["scheduler"].as_str().unwrap_or("")) {
        Some(schedule) => json!(levels.run(
            schedule,
            length(&row["steps"]),
            row["denoise"].as_f64().unwrap_or(1.0),
            skip
        )),
        None => Value::Null,
    };
    row
}

struct Finder<'a> {
    find: &'a Find<'a>,
    big: bool,
}

impl Embeddings for Finder<'_> {
    fn find(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        (self.find)(name, self.big)
    }
}

fn tokens(row: &Value, find: &Find<'_>) -> Result<Value> {
    let (model, prompt) = (
        row["model"].as_str().unwrap_or(""),
        row["prompt"].as_str().unwrap_or(""),
    );
    let mut batches = serde_json::Map::new();
    for encoder in row["batches"].as_object().into_iter().flatten().map(|(name, _)| name) {
        let big = encoder != "l";
        let fill = if big { 0 } else { END };
        let got = rows(prompt, fill, &Finder { find, big })?;
        batches.insert(encoder.clone(), got.iter().map(token_row).collect());
    }
    Ok(json!({"model": model, "prompt": prompt, "batches": batches}))
}

fn token_row(row: &Row) -> Value {
    let ids: Vec<Value> = row
        .tokens
        .iter()
        .map(|token| match token {
            Token::Id(id) => json!(id),
            Token::Vector(vector) => json!({"embedding_vec0": vector.first()}),
        })
        .collect();
    json!({"ids": ids, "weights": row.weights})
}
