//! Prompts as rows of 77 tokens, each token with its weight.

use std::sync::OnceLock;

use tokenizers::Tokenizer;

use crate::{Error, Result, prompt};

/// Begins every row.
pub const START: u32 = 49406;
/// Ends the text of every row; also fills rows for CLIP-L.
pub const END: u32 = 49407;
/// Tokens in a row, both ends included.
pub const ROW: usize = 77;
/// A stretch with at least this many tokens is cut at a row's end; a shorter one moves to the next row whole.
const CUT_FROM: usize = 8;
/// Rows a prompt may take; more than any request the Horde lets through (7,500 words).
pub const MAX_ROWS: usize = 200;
/// Longer prompts are refused before they are looked at.
pub const MAX_PROMPT_BYTES: usize = 1 << 20;

/// One place of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A word of the vocabulary.
    Id(u32),
    /// A vector of a textual inversion; one that is not as wide as the encoder gives up its place, see [`Row::fitted`].
    Vector(Vec<f32>),
}

/// A row of [`ROW`] tokens with their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Exactly [`ROW`].
    pub tokens: Vec<Token>,
    /// Exactly [`ROW`]; 1 is neutral.
    pub weights: Vec<f32>,
    /// The token that fills rows up.
    pub fill: u32,
}

impl Row {
    /// The tokens for an encoder of this width, exactly [`ROW`]: vectors of another width are left out, what follows them moves
    /// up, and the row is filled at its end. The weights stay where they are: so ComfyUI does.
    pub fn fitted(&self, width: usize) -> Vec<Token> {
        let fits = |token: &&Token| !matches!(token, Token::Vector(vector) if vector.len() != width);
        let mut tokens: Vec<Token> = self.tokens.iter().filter(fits).cloned().collect();
        tokens.resize(ROW, Token::Id(self.fill));
        tokens
    }
}

/// Finds the vectors of a textual inversion by the name written after `embedding:`.
pub trait Embeddings {
    /// One vector per token, or `None` if there is no such embedding.
    fn find(&self, name: &str) -> Option<Vec<Vec<f32>>>;
}

/// No embeddings at all.
impl Embeddings for () {
    fn find(&self, _: &str) -> Option<Vec<Vec<f32>>> {
        None
    }
}

const MARK: &str = "embedding:";

/// The vocabulary of all CLIP text encoders (OpenAI's, MIT), compiled in.
pub fn vocabulary() -> Result<&'static Tokenizer> {
    static VOCABULARY: OnceLock<Option<Tokenizer>> = OnceLock::new();
    VOCABULARY
        .get_or_init(|| Tokenizer::from_bytes(include_bytes!("../assets/clip_tokenizer.json")).ok())
        .as_ref()
        .ok_or_else(|| Error::Request("the built-in vocabulary cannot be read".into()))
}

/// A prompt's rows; `fill` is the token that fills them up. At least one row, at most [`MAX_ROWS`] (the rest is dropped).
pub fn rows(prompt: &str, fill: u32, embeddings: &dyn Embeddings) -> Result<Vec<Row>> {
    Ok(rows_within(prompt, fill, embeddings)?.0)
}

/// As [`rows`], and how many tokens at the end found no room.
pub fn rows_within(prompt: &str, fill: u32, embeddings: &dyn Embeddings) -> Result<(Vec<Row>, usize)> {
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(Error::Request(format!("a prompt of {} bytes", prompt.len())));
    }
    let mut groups = Vec::new();
    for segment in prompt::segments(prompt) {
        for tokens in segment_tokens(&segment.text, embeddings)? {
            groups.push((tokens, segment.weight));
        }
    }
    let mut rows = vec![RowBuilder::new()];
    let mut dropped = 0;
    for (mut tokens, weight) in groups {
        let cut = tokens.len() >= CUT_FROM;
        while !tokens.is_empty() {
            let last = rows.len() - 1;
            let room = rows[last].room();
            if tokens.len() <= room {
                rows[last].extend(tokens.drain(..), weight);
            } else {
                if cut {
                    rows[last].extend(tokens.drain(..room), weight);
                }
                if rows.len() == MAX_ROWS {
                    dropped += tokens.len();
                    break;
                }
                rows.push(RowBuilder::new());
            }
        }
    }
    Ok((rows.into_iter().map(|row| row.finish(fill)).collect(), dropped))
}

/// The row of an empty prompt.
pub fn empty_row(fill: u32) -> Row {
    RowBuilder::new().finish(fill)
}

/// The token groups of one weighted stretch: a group per embedding and per text between them.
fn segment_tokens(text: &str, embeddings: &dyn Embeddings) -> Result<Vec<Vec<Token>>> {
    let vocabulary = vocabulary()?;
    let mut groups = Vec::new();
    for word in split_at_marks(text) {
        let mut word = word;
        if let Some(rest) = word.strip_prefix(MARK) {
            let (found, leftover) = find(rest.trim_matches('\n'), embeddings);
            if let Some(vectors) = found {
                groups.push(vectors.into_iter().map(Token::Vector).collect());
            }
            if leftover.is_empty() {
                continue;
            }
            word = leftover;
        }
        let encoded = vocabulary
            .encode(word.as_str(), false)
            .map_err(|error| Error::Request(format!("the prompt cannot be tokenised: {error}")))?;
        groups.push(encoded.get_ids().iter().copied().map(Token::Id).collect());
    }
    Ok(groups)
}

/// Cuts before each `embedding:` that follows a space or a newline, which is dropped.
fn split_at_marks(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(found) = rest[from..].find(MARK) {
        let at = from + found;
        if at > 0 && matches!(rest.as_bytes()[at - 1], b' ' | b'\n') {
            out.push(rest[..at - 1].to_owned());
            rest = &rest[at..];
            from = MARK.len();
        } else {
            from = at + MARK.len();
        }
    }
    out.push(rest.to_owned());
    out.retain(|word| !word.is_empty());
    out
}

/// Looks an embedding up by the first word, then by that word without its commas; gives what is left to read as text.
fn find(text: &str, embeddings: &dyn Embeddings) -> (Option<Vec<Vec<f32>>>, String) {
    let mut words = text.split_whitespace();
    let Some(name) = words.next() else {
        return (None, String::new());
    };
    let leftover = words.collect::<Vec<_>>().join(" ");
    if let Some(found) = embeddings.find(name) {
        return (Some(found), leftover);
    }
    let stripped = name.trim_matches(',');
    if stripped.len() < name.len() {
        let tail = name.get(stripped.len()..).unwrap_or("");
        return (embeddings.find(stripped), format!("{tail} {leftover}"));
    }
    (None, leftover)
}

struct RowBuilder {
    tokens: Vec<Token>,
    weights: Vec<f32>,
}

impl RowBuilder {
    fn new() -> Self {
        Self {
            tokens: vec![Token::Id(START)],
            weights: vec![1.0],
        }
    }

    /// Tokens that fit before the end token.
    fn room(&self) -> usize {
        ROW - 1 - self.tokens.len()
    }

    fn extend(&mut self, tokens: impl Iterator<Item = Token>, weight: f32) {
        self.tokens.extend(tokens);
        self.weights.resize(self.tokens.len(), weight);
    }

    fn finish(mut self, fill: u32) -> Row {
        self.tokens.push(Token::Id(END));
        self.tokens.resize(ROW, Token::Id(fill));
        self.weights.resize(ROW, 1.0);
        Row {
            tokens: self.tokens,
            weights: self.weights,
            fill,
        }
    }
}
