//! The tokens that may still be chosen.

/// One token that may be chosen, with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Token of the vocabulary.
    pub token: u32,
    /// Natural logarithm of its weight, up to a constant; always finite.
    pub logit: f32,
}

/// A set of candidates. The buffers are kept between tokens, so that one step allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    pub(super) items: Vec<Candidate>,
    /// Whether `items` goes from the largest logit down.
    pub(super) sorted: bool,
    /// Softmax of `items` after [`Self::softmax`].
    pub(super) probabilities: Vec<f32>,
}

impl Candidates {
    /// Takes one logit per token. What is not a number or not finite can never be chosen and is left out;
    /// plus infinity counts as the largest number.
    pub fn fill(&mut self, logits: &[f32]) {
        self.items.clear();
        self.items.reserve(logits.len());
        let choosable = (0u32..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.items.extend(choosable.map(|(token, logit)| Candidate {
            token,
            // Kept within a range that no later multiplication leaves.
            logit: logit.clamp(-1e30, 1e30),
        }));
        self.sorted = false;
    }

    /// For tests and small uses: [`Self::fill`] of a new set.
    pub fn from_logits(logits: &[f32]) -> Self {
        let mut candidates = Self::default();
        candidates.fill(logits);
        candidates
    }

    /// The candidates in their present order.
    pub fn items(&self) -> &[Candidate] {
        &self.items
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Sorts from the largest logit down, equal ones by token. Nearly free when little has changed since the last time.
    pub fn sort(&mut self) {
        if !self.sorted {
            self.items.sort_by(order);
            self.sorted = true;
        }
    }

    /// Keeps the `keep` largest, sorted. Does not sort what falls away.
    pub fn keep_largest(&mut self, keep: usize) {
        let keep = keep.max(1);
        if !self.sorted && keep < self.items.len() {
            self.items.select_nth_unstable_by(keep - 1, order);
        }
        self.items.truncate(keep);
        self.sort();
    }

    /// Keeps the first `keep` of the present order.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.items.truncate(keep.max(1));
    }

    /// Sorts and computes the probabilities of the candidates that are left, summing to 1.
    pub fn softmax(&mut self) -> &[f32] {
        self.sort();
        self.probabilities.clear();
        let Some(max) = self.items.first().map(|item| item.logit) else {
            return &[];
        };
        self.probabilities
            .extend(self.items.iter().map(|item| (item.logit - max).exp()));
        let sum: f32 = self.probabilities.iter().sum();
        for probability in &mut self.probabilities {
            *probability /= sum;
        }
        &self.probabilities
    }

    /// Entropy in nats of probabilities from [`Self::softmax`].
    pub(super) fn entropy(&self) -> f32 {
        self.probabilities
            .iter()
            .filter(|p| **p > 0.0)
            .map(|p| -p * p.ln())
            .sum()
    }

    /// The candidate at which the running sum of the weights passes `dice`, a number in 0..1.
    pub fn draw(&mut self, dice: f64) -> Option<Candidate> {
        self.softmax();
        let mut rest = dice;
        for (item, probability) in self.items.iter().zip(&self.probabilities) {
            rest -= f64::from(*probability);
            if rest < 0.0 {
                return Some(*item);
            }
        }
        // Rounding may leave a crumb; it belongs to the likeliest.
        self.items.first().copied()
    }
}

/// Largest first; all logits are finite, so the order is total.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_never_a_candidate() {
        let candidates = Candidates::from_logits(&[f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY]);
        let tokens: Vec<u32> = candidates.items().iter().map(|item| item.token).collect();
        assert_eq!(tokens, [1, 3]);
        assert!(candidates.items().iter().all(|item| item.logit.is_finite()));
    }

    #[test]
    fn keeping_the_largest_sorts_only_them() {
        let mut candidates = Candidates::from_logits(&[0.0, 3.0, 1.0, 2.0, 3.0]);
        candidates.keep_largest(3);
        let tokens: Vec<u32> = candidates.items().iter().map(|item| item.token).collect();
        assert_eq!(tokens, [1, 4, 3]);
    }

    #[test]
    fn the_dice_choose_in_proportion() {
        let mut candidates = Candidates::from_logits(&[0.75f32.ln(), 0.25f32.ln()]);
        assert_eq!(candidates.draw(0.74).unwrap().token, 0);
        assert_eq!(candidates.draw(0.76).unwrap().token, 1);
        assert_eq!(candidates.draw(0.999_999_999).unwrap().token, 1);
    }
}
