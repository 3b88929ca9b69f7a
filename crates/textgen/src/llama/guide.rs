//! Keeps an answer to a grammar or a JSON schema, with llguidance: a pure function of the text so far, bounded in time
//! and memory, so that no grammar of a stranger reaches llama.cpp's own parser, which ends the process over some.

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::engine::TextError;
use crate::gbnf;
use crate::request::Constraint;

/// Longest JSON schema in bytes.
const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// The words of a model, from which guides are made.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Bytes of every token; none for control tokens.
    pub(super) pieces: Vec<Vec<u8>>,
    /// Tokens that end a text.
    pub(super) ends: Vec<u32>,
    /// The token that begins a text, written out.
    pub(super) begin_text: String,
    /// The token that ends one, written out.
    pub(super) end_text: String,
}

/// Makes guides; its tables are built when the first one is wanted.
pub(super) struct Guides {
    words: Words,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl std::fmt::Debug for Guides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guides over {} tokens", self.words.pieces.len())
    }
}

impl Guides {
    pub(super) fn new(words: Words) -> Self {
        Self {
            words,
            factory: OnceLock::new(),
        }
    }

    /// A guide for one answer.
    ///
    /// # Errors
    /// [`TextError::Grammar`] where it is broken, too large, or allows nothing.
    pub(super) fn guide(&self, constraint: &Constraint) -> Result<Guide, TextError> {
        let factory = self.factory.get_or_init(|| factory(&self.words));
        let factory = factory.as_ref().map_err(|why| TextError::Grammar(why.clone()))?;
        let grammar = match constraint {
            Constraint::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text).map_err(TextError::Grammar)?),
            Constraint::JsonSchema(schema) => {
                let n_bytes = schema.to_string().len();
                if n_bytes > MAX_SCHEMA_BYTES {
                    return Err(TextError::Grammar(format!(
                        "the schema has {n_bytes} bytes, at most {MAX_SCHEMA_BYTES} are read"
                    )));
                }
                TopLevelGrammar::from_json_schema(schema.clone())
            }
        };
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        // The first mask shows whether it can begin at all.
        if matcher.is_error() || matcher.compute_mask_or_eos().is_err() {
            return Err(TextError::Grammar("it is broken, too large, or allows no text".into()));
        }
        Ok(Guide { matcher })
    }
}

fn factory(words: &Words) -> Result<ParserFactory, String> {
    let broken = |why: &str| format!("this model's vocabulary does not allow one: {why}");
    let end = *words.ends.first().ok_or_else(|| broken("no token ends a text"))?;
    let size = u32::try_from(words.pieces.len()).map_err(|_| broken("it is too large"))?;
    // A leading 0xff marks special tokens for the library.
    let is_plain = |piece: &&Vec<u8>| piece.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) && piece.len() <= 255;
    let pieces: Vec<Vec<u8>> = (0u32..)
        .zip(&words.pieces)
        .map(|(token, piece)| match Some(piece).filter(is_plain) {
            Some(piece) if !words.ends.contains(&token) => piece.clone(),
            _ => Vec::new(),
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, end), &pieces).with_eos_tokens(&words.ends);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|_| broken("its tables cannot be made"))?;
    factory.quiet();
    let limits = factory.limits_mut();
    // Messages must not hold what somebody wrote.
    limits.verbose_errors = false;
    limits.max_grammar_size = 200_000;
    limits.max_lexer_states = 50_000;
    Ok(factory)
}

/// Follows one answer.
pub(super) struct Guide {
    matcher: Matcher,
}

impl Guide {
    /// The tokens that may come next; only those that end the text where it is complete.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, TextError> {
        self.matcher.compute_mask_or_eos().map_err(|_| lost())
    }

    /// Takes in the chosen token; true once nothing can follow.
    pub(super) fn accept(&mut self, token: u32) -> Result<bool, TextError> {
        self.matcher.consume_token(token).map_err(|_| lost())?;
        Ok(self.matcher.is_stopped())
    }
}

/// A bound of the parser was reached in the middle of an answer.
fn lost() -> TextError {
    TextError::Grammar("following it takes too long".into())
}
