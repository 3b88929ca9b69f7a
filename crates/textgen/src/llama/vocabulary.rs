//! Text to tokens and back, as a request needs it.

use std::collections::HashMap;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;

use super::guide::Words;
use crate::engine::TextError;
use crate::format;
use crate::request::TextRequest;

/// A model's vocabulary, with the few facts that are asked for again and again.
pub(super) struct Vocabulary<'m> {
    vocab: LlamaVocab<'m>,
    /// Tokens that end a text, sorted.
    ends: Arc<[u32]>,
    /// Bytes of every token; made when first asked for.
    pieces: Vec<Vec<u8>>,
    /// Tokens that hold a text, by that text.
    holding: HashMap<String, Vec<u32>>,
}

/// Bytes per wanted token with which cutting a long prompt before its tokens are counted begins.
const BYTES_PER_TOKEN: usize = 12;

impl<'m> Vocabulary<'m> {
    pub(super) fn new(model: &'m LlamaModel) -> Self {
        let vocab = model.vocab();
        let ends = vocab
            .tokens()
            .filter(|token| vocab.is_eog(*token))
            .filter_map(number)
            .collect();
        Self {
            vocab,
            ends,
            pieces: Vec::new(),
            holding: HashMap::new(),
        }
    }

    /// Tokens that end a text.
    pub(super) fn ends(&self) -> Arc<[u32]> {
        Arc::clone(&self.ends)
    }

    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Every token's bytes and those that end a text.
    pub(super) fn words(&self) -> Words {
        Words {
            pieces: self
                .vocab
                .tokens()
                .map(|token| self.vocab.token_to_piece(token, false, None))
                .collect(),
            ends: self.ends.to_vec(),
            begin_text: self.written_out(self.vocab.bos()),
            end_text: self.written_out(self.vocab.eos()),
        }
    }

    fn written_out(&self, token: LlamaToken) -> String {
        if token.0 < 0 {
            return String::new();
        }
        String::from_utf8_lossy(&self.vocab.token_to_piece(token, true, None)).into_owned()
    }

    /// Appends the bytes of `token` to `bytes`; control tokens have none.
    pub(super) fn piece(&self, token: LlamaToken, bytes: &mut Vec<u8>) {
        self.vocab.token_to_piece_into(token, bytes, false, None);
    }

    /// The request's prompt as at most `most` tokens, cut from the left; the token that begins a text stays.
    ///
    /// Special tokens written out in the prompt become those tokens, as KoboldCpp does: that is how clients write
    /// chat templates.
    pub(super) fn prompt(&self, request: &TextRequest, most: usize) -> Result<Vec<LlamaToken>, TextError> {
        let text = format::input(&request.prompt, request.formatting);
        let begin = self
            .vocab
            .should_add_bos()
            .then(|| self.vocab.bos())
            .filter(|token| token.0 >= 0);
        let room = most.saturating_sub(usize::from(begin.is_some()));
        if room == 0 {
            return Err(TextError::Overflow(format!(
                "a context of {most} tokens leaves no room for a prompt"
            )));
        }
        // Counting the tokens of megabytes takes seconds, and all but the end would be thrown away.
        let mut bytes = room.saturating_mul(BYTES_PER_TOKEN).max(4_096);
        let mut tokens = loop {
            let cut = text.len().saturating_sub(bytes);
            let cut = (cut..=text.len())
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(text.len());
            let tokens = self.vocab.tokenize(&text.as_bytes()[cut..], false, true);
            if cut == 0 || tokens.len() > room {
                break tokens;
            }
            bytes = bytes.saturating_mul(2);
        };
        if request.refuse_overflow && tokens.len() > room {
            return Err(TextError::Overflow(format!("the prompt is longer than {room} tokens")));
        }
        tokens.drain(..tokens.len().saturating_sub(room));
        if let Some(begin) = begin
            && tokens.first() != Some(&begin)
        {
            tokens.insert(0, begin);
        }
        if tokens.is_empty() {
            // An empty prompt in a model without a beginning token.
            let start = [self.vocab.bos(), self.vocab.eos(), self.vocab.nl()]
                .into_iter()
                .find(|token| token.0 >= 0);
            tokens.push(start.unwrap_or(LlamaToken(0)));
        }
        Ok(tokens)
    }

    /// Tokens that hold one of `texts`, sorted.
    pub(super) fn holding(&mut self, texts: &[String]) -> Arc<[u32]> {
        if self.pieces.is_empty() {
            self.pieces = self
                .vocab
                .tokens()
                .map(|token| self.vocab.token_to_piece(token, false, None))
                .collect();
        }
        // Texts come from strangers; the cache stays small.
        if self.holding.len() > 256 {
            self.holding.clear();
        }
        let mut tokens = Vec::new();
        for text in texts {
            let found = self.holding.entry(text.clone()).or_insert_with(|| {
                let finder = |piece: &&Vec<u8>| piece.windows(text.len()).any(|part| part == text.as_bytes());
                (0..)
                    .zip(&self.pieces)
                    .filter(|(_, piece)| finder(piece))
                    .map(|(token, _)| token)
                    .collect()
            });
            tokens.extend_from_slice(found);
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens.into()
    }
}

/// The token's number where it has one.
pub(super) fn number(token: LlamaToken) -> Option<u32> {
    u32::try_from(token.0).ok()
}
