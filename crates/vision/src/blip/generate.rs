//! From scores to a sentence: beam search and nucleus sampling with the semantics of Hugging Face's `generate`.

use candle_core::Tensor;

use super::decoder::Decoder;
use crate::error::{Result, VisionError};

/// How a caption is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptionSettings {
    /// Words that the caption is made to begin with; not part of the result.
    pub prompt: String,
    /// How the next token is found.
    pub search: Search,
    /// Fewest tokens, prompt and end included.
    pub min_length: usize,
    /// Most tokens, prompt and end included.
    pub max_length: usize,
    /// Above 1 repeated tokens become less likely; 1 changes nothing.
    pub repetition_penalty: f32,
}

/// How the next token is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// The best of this many sentences grown side by side; 1 is greedy.
    Beams(usize),
    /// Drawn from the most likely tokens that together have this probability (of the best 50), repeatable by seed.
    Nucleus {
        /// 0..=1.
        top_p: f32,
        /// Same seed, same sentence.
        seed: u64,
    },
}

impl Default for CaptionSettings {
    /// Three beams, 5 to 50 tokens.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            search: Search::Beams(3),
            min_length: 5,
            max_length: 50,
            repetition_penalty: 1.0,
        }
    }
}

/// Most beams that are grown; each costs a row of the decoder.
const MAX_BEAMS: usize = 16;
/// Tokens a nucleus is drawn from at most.
const TOP_K: usize = 50;

pub(super) fn run(
    decoder: &Decoder,
    seen: &Tensor,
    begin: &[u32],
    end: u32,
    settings: &CaptionSettings,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u32>> {
    let rules = Rules::new(decoder, begin, end, settings);
    match settings.search {
        Search::Beams(n) if n <= 1 => one_by_one(decoder, seen, begin, &rules, stop, &mut |scores| best(scores)),
        Search::Beams(n) => beams(decoder, seen, begin, &rules, n.min(MAX_BEAMS), stop),
        Search::Nucleus { top_p, seed } => {
            let mut draws = Draws(seed);
            one_by_one(decoder, seen, begin, &rules, stop, &mut |scores| {
                nucleus(scores, top_p, draws.next())
            })
        }
    }
}

/// What a nucleus would draw the token after `ids` from: tokens with their probabilities, most likely first.
pub(super) fn choices(
    decoder: &Decoder,
    seen: &Tensor,
    ids: &[u32],
    end: u32,
    settings: &CaptionSettings,
) -> Result<Vec<(u32, f32)>> {
    let Search::Nucleus { top_p, .. } = settings.search else {
        return Err(VisionError::Input("only a nucleus draws".into()));
    };
    let mut memory = decoder.memory(seen)?;
    let mut scores = decoder
        .forward(&[ids.to_vec()], &mut memory)?
        .flatten_all()?
        .to_vec1()?;
    Rules::new(decoder, ids, end, settings).apply(&mut scores, ids);
    let likely = likely(&scores, top_p);
    let all: f32 = likely.iter().map(|(_, r)| r).sum();
    Ok(likely.into_iter().map(|(id, r)| (id as u32, r / all)).collect())
}

struct Rules {
    min_length: usize,
    max_length: usize,
    penalty: f32,
    end: u32,
    begin_len: usize,
}

impl Rules {
    fn new(decoder: &Decoder, begin: &[u32], end: u32, settings: &CaptionSettings) -> Self {
        Self {
            min_length: settings.min_length,
            // Where not even the beginning fits the decoder says so.
            max_length: settings.max_length.min(decoder.context_len()).max(begin.len() + 1),
            penalty: if settings.repetition_penalty > 0.0 {
                settings.repetition_penalty
            } else {
                1.0
            },
            end,
            begin_len: begin.len(),
        }
    }

    fn apply(&self, scores: &mut [f32], ids: &[u32]) {
        if self.penalty != 1.0 {
            let mut seen: Vec<u32> = ids.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(score) = scores.get_mut(id as usize) {
                    *score = if *score < 0.0 {
                        *score * self.penalty
                    } else {
                        *score / self.penalty
                    };
                }
            }
        }
        if ids.len() < self.min_length
            && let Some(score) = scores.get_mut(self.end as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn one_by_one(
    decoder: &Decoder,
    seen: &Tensor,
    begin: &[u32],
    rules: &Rules,
    stop: &dyn Fn() -> bool,
    choose: &mut dyn FnMut(&[f32]) -> usize,
) -> Result<Vec<u32>> {
    let mut memory = decoder.memory(seen)?;
    let mut ids = begin.to_vec();
    let mut fresh = begin.to_vec();
    while ids.len() < rules.max_length {
        if stop() {
            return Err(VisionError::Cancelled);
        }
        let mut scores = decoder
            .forward(&[std::mem::take(&mut fresh)], &mut memory)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        rules.apply(&mut scores, &ids);
        let next = choose(&scores) as u32;
        ids.push(next);
        fresh.push(next);
        if next == rules.end {
            break;
        }
    }
    Ok(ids)
}

fn best(scores: &[f32]) -> usize {
    scores
        .iter()
        .enumerate()
        .fold(0, |best, (i, s)| if *s > scores[best] { i } else { best })
}

/// The tokens that may be drawn and what each weighs beside the first's 1, most likely first; empty where no score is a number.
fn likely(scores: &[f32], top_p: f32) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|i| scores[*i].is_finite()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(TOP_K);
    let Some(first) = order.first().copied() else {
        return Vec::new();
    };
    let mut raised: Vec<(usize, f32)> = order
        .into_iter()
        .map(|i| (i, (scores[i] - scores[first]).exp()))
        .collect();
    let all: f32 = raised.iter().map(|(_, r)| r).sum();
    let mut kept = 0.0;
    let n_kept = raised.iter().take_while(|(_, r)| {
        let open = kept < top_p.clamp(0.0, 1.0) * all;
        kept += r;
        open
    });
    let n_kept = n_kept.count().max(1);
    raised.truncate(n_kept);
    raised
}

fn nucleus(scores: &[f32], top_p: f32, draw: f32) -> usize {
    let likely = likely(scores, top_p);
    let mut left = draw * likely.iter().map(|(_, r)| r).sum::<f32>();
    let drawn = likely.iter().find(|(_, r)| {
        left -= r;
        left <= 0.0
    });
    drawn.or(likely.last()).map_or_else(|| best(scores), |(i, _)| *i)
}

/// SplitMix64: enough for choosing words.
struct Draws(u64);

impl Draws {
    /// Uniform in 0..1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// A sentence being grown, with the sum of its tokens' log-probabilities.
#[derive(Clone)]
struct Beam {
    ids: Vec<u32>,
    score: f32,
}

fn beams(
    decoder: &Decoder,
    seen: &Tensor,
    begin: &[u32],
    rules: &Rules,
    n_beams: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u32>> {
    let mut memory = decoder.memory(seen)?;
    let mut running = vec![Beam {
        ids: begin.to_vec(),
        score: 0.0,
    }];
    let mut fresh: Vec<Vec<u32>> = vec![begin.to_vec()];
    // Finished sentences with their mean log-probability.
    let mut finished: Vec<Beam> = Vec::new();
    let vocabulary_len = decoder.vocabulary_len();
    while running[0].ids.len() < rules.max_length {
        if stop() {
            return Err(VisionError::Cancelled);
        }
        let scores = decoder.forward(&fresh, &mut memory)?.flatten_all()?.to_vec1::<f32>()?;
        let mut candidates: Vec<(f32, usize, u32)> = Vec::new(); // score, beam, token
        for (beam_idx, (beam, row)) in running.iter().zip(scores.chunks_exact(vocabulary_len)).enumerate() {
            let mut row = log_softmax(row);
            rules.apply(&mut row, &beam.ids);
            let best = best_of(&row, 2 * n_beams);
            candidates.extend(
                best.into_iter()
                    .map(|token| (beam.score + row[token as usize], beam_idx, token)),
            );
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(2 * n_beams);

        let grown_len = (running[0].ids.len() + 1 - rules.begin_len) as f32;
        let mut next = Vec::new();
        for (rank, (score, beam_idx, token)) in candidates.into_iter().enumerate() {
            let mut ids = running[beam_idx].ids.clone();
            ids.push(token);
            if token == rules.end || ids.len() >= rules.max_length {
                // Only a sentence among the best may end.
                if rank < n_beams && score.is_finite() {
                    finished.push(Beam {
                        ids,
                        score: score / grown_len,
                    });
                }
            } else if next.len() < n_beams {
                next.push((beam_idx as u32, Beam { ids, score }));
            }
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(n_beams);
        if next.is_empty() {
            break;
        }
        let best_possible = next[0].1.score / grown_len;
        if finished.len() == n_beams && finished[n_beams - 1].score >= best_possible {
            break;
        }
        memory.keep_rows(&next.iter().map(|(row, _)| *row).collect::<Vec<_>>())?;
        running = next.into_iter().map(|(_, beam)| beam).collect();
        fresh = running
            .iter()
            .map(|beam| beam.ids.last().copied().into_iter().collect())
            .collect();
    }
    let best = finished.into_iter().next().or_else(|| running.into_iter().next());
    best.map(|beam| beam.ids)
        .ok_or_else(|| VisionError::Misfit("no caption was found".into()))
}

fn log_softmax(scores: &[f32]) -> Vec<f32> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|s| (s - most).exp()).sum();
    scores.iter().map(|s| s - most - sum.ln()).collect()
}

/// Indices of the `n` greatest values, greatest first.
fn best_of(values: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let by_value = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]);
    if n < order.len() {
        order.select_nth_unstable_by(n, by_value);
        order.truncate(n);
    }
    order.sort_by(by_value);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nucleus_holds_the_likely_tokens_only() {
        let scores = [0.0, 5.0, 4.9, -3.0];
        let drawn: Vec<usize> = (0..100).map(|i| nucleus(&scores, 0.9, i as f32 / 100.0)).collect();
        assert!(drawn.contains(&1) && drawn.contains(&2));
        assert!(!drawn.contains(&0) && !drawn.contains(&3));
        assert_eq!(nucleus(&scores, 0.0, 0.99), 1);
        assert_eq!(nucleus(&[f32::NAN; 3], 0.9, 0.5), 0);
    }

    #[test]
    fn draws_are_repeatable_and_spread() {
        let mut draws = Draws(7);
        let first: Vec<f32> = (0..1000).map(|_| draws.next()).collect();
        let mean = first.iter().sum::<f32>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        let mut again = Draws(7);
        assert!(first.iter().all(|d| *d == again.next()));
    }

    #[test]
    fn a_penalty_pushes_scores_down_on_both_sides_of_zero() {
        let rules = Rules {
            min_length: 5,
            max_length: 9,
            penalty: 2.0,
            end: 3,
            begin_len: 1,
        };
        let mut scores = [4.0, -4.0, 1.0, 2.0];
        rules.apply(&mut scores, &[0, 1, 1]);
        assert_eq!(scores, [2.0, -8.0, 1.0, f32::NEG_INFINITY]);
    }
}
