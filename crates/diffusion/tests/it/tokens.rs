//! Token rows of hard prompts.

use diffusion::tokens::{END, Embeddings, ROW, Row, Token, rows};
use serde_json::{Value, json};

use crate::fixtures::{self, Case};

struct Files;

impl Embeddings for Files {
    fn find(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        let file = format!("models/embeddings/{name}.safetensors");
        if !fixtures::path(&file).is_file() {
            return None;
        }
        Some(Case::open(&file).tensor("emb_params").to_vec2().unwrap())
    }
}

fn same(expected: &Value, got: &[Row]) -> bool {
    let expected = expected.as_array().unwrap();
    expected.len() == got.len()
        && expected.iter().zip(got).all(|(expected, got)| {
            let ids = expected["ids"].as_array().unwrap();
            let tokens = ids.len() == got.tokens.len()
                && ids.iter().zip(&got.tokens).all(|(id, token)| match token {
                    Token::Id(got) => *id == json!(got),
                    Token::Vector(vector) => id["embedding_vec0"]
                        .as_f64()
                        .is_some_and(|first| (first as f32 - vector[0]).abs() < 1e-5),
                });
            let weights = match expected["weights"].as_array() {
                Some(weights) => weights.iter().map(|w| w.as_f64().unwrap() as f32).collect(),
                None => vec![1.0; got.weights.len()],
            };
            tokens && fixtures::distance(&weights, &got.weights) < 1e-5
        })
}

#[test]
fn hard_prompts_become_the_references_rows() {
    let mut wrong = Vec::new();
    for row in fixtures::json("stage/tokens.json").as_array().unwrap() {
        for encoder in ["l", "g", "h"] {
            if row["batches"][encoder].is_null() {
                continue;
            }
            let fill = if encoder == "l" { END } else { 0 };
            let got = rows(row["prompt"].as_str().unwrap(), fill, &Files).unwrap();
            let unfixed = &row["batches_no_ftfy"][encoder];
            if !same(&row["batches"][encoder], &got) && (unfixed.is_null() || !same(unfixed, &got)) {
                wrong.push(format!("{} {encoder} {}", row["model"], row["prompt"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_hundred_thousand_characters_stay_within_bounds() {
    let rows = rows(&"a, ".repeat(33_000), END, &()).unwrap();
    assert!(rows.len() <= diffusion::tokens::MAX_ROWS);
    assert!(diffusion::tokens::rows(&"a".repeat(2 << 20), END, &()).is_err());
}

/// ComfyUI leaves such vectors out where the row becomes states, after its weights were set.
#[test]
fn vectors_of_another_width_give_up_their_place_and_the_weights_stay() {
    struct Wide;
    impl Embeddings for Wide {
        fn find(&self, name: &str) -> Option<Vec<Vec<f32>>> {
            (name == "wide").then(|| vec![vec![0.5; 32]; 2])
        }
    }
    let row = rows("(embedding:wide:1.3) b (c:1.4)", END, &Wide).unwrap().remove(0);
    assert_eq!(row.weights[..6], [1.0, 1.3, 1.3, 1.0, 1.4, 1.0]);
    assert!(matches!(row.tokens[2], Token::Vector(_)) && row.tokens[5] == Token::Id(END));
    assert_eq!(row.fitted(32), row.tokens);
    let fitted = row.fitted(16);
    assert_eq!(fitted.len(), ROW);
    assert_eq!(fitted[1..3], row.tokens[3..5], "the words move up");
    assert!(fitted[3..].iter().all(|token| *token == Token::Id(END)));
}
