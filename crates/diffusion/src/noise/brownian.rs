//! A Brownian motion whose every increment depends on the seed and the two times alone, as torchsde's tree gives it.
//!
//! The interval is halved until both asked times are ends of nodes; each node's bridge is drawn from a generator seeded
//! by the node's place in the tree. Nothing is kept between queries: a query costs some tens of draws.

use super::{SeedSequence, TorchCpu};

/// The motion between two times (sigmas), for tensors of one size.
pub struct BrownianTree {
    start: f64,
    end: f64,
    size: usize,
    entropy: u64,
    root: Vec<f32>,
}

/// Where a node is: its number within its level, and its level.
#[derive(Clone, Copy)]
struct Node {
    index: u64,
    depth: u64,
    start: f64,
    end: f64,
}

const POOL: usize = 24;
/// Times are rounded to 6 decimals, so 64 halvings reach every one of them.
const MAX_DEPTH: u64 = 64;

impl BrownianTree {
    /// The motion from `start` to `end` (in either order) for `size` values.
    pub fn new(start: f32, end: f32, size: usize, entropy: u64) -> Self {
        let (start, end) = (round(f64::from(start.min(end))), round(f64::from(start.max(end))));
        let seed = SeedSequence::new(entropy, &[], POOL).state(3)[0];
        let scale = (end - start).max(0.0).sqrt() as f32;
        let root = TorchCpu::new(u64::from(seed))
            .randn(size)
            .into_iter()
            .map(|value| value * scale)
            .collect();
        Self {
            start,
            end,
            size,
            entropy,
            root,
        }
    }

    /// The increment from `from` to `to`, negated when they run backwards; times outside the tree are moved to its ends.
    pub fn increment(&self, from: f32, to: f32) -> Vec<f32> {
        let (a, b) = (f64::from(from.min(to)), f64::from(from.max(to)));
        let (a, b) = (
            round(a).clamp(self.start, self.end),
            round(b).clamp(self.start, self.end),
        );
        let mut sum = vec![0f32; self.size];
        let mut empty = true;
        if a < b {
            let root = Node {
                index: 0,
                depth: 0,
                start: self.start,
                end: self.end,
            };
            self.collect(root, &self.root, (a, b), &mut |part| {
                if empty {
                    sum.copy_from_slice(part);
                    empty = false;
                } else {
                    for (total, value) in sum.iter_mut().zip(part) {
                        *total += value;
                    }
                }
            });
        }
        if from > to {
            for value in &mut sum {
                *value = -*value;
            }
        }
        sum
    }

    /// [`Self::increment`] scaled to variance 1: the noise of a sampler's step.
    pub fn noise(&self, from: f32, to: f32) -> Vec<f32> {
        let scale = (to - from).abs().sqrt();
        let mut values = self.increment(from, to);
        if scale > 0.0 {
            for value in &mut values {
                *value /= scale;
            }
        }
        values
    }

    /// Gives the nodes that make up `a..b`, from left to right.
    fn collect(&self, node: Node, w: &[f32], (a, b): (f64, f64), give: &mut dyn FnMut(&[f32])) {
        if a <= node.start && node.end <= b {
            return give(w);
        }
        let middle = round(f64::midpoint(node.start, node.end));
        if node.depth >= MAX_DEPTH || middle <= node.start || middle >= node.end {
            return give(w);
        }
        let left = self.left(node, w, middle);
        let child = |index, start, end| Node {
            index,
            depth: node.depth + 1,
            start,
            end,
        };
        if a < middle {
            self.collect(
                child(2 * node.index, node.start, middle),
                &left,
                (a, b.min(middle)),
                give,
            );
        }
        if b > middle {
            let right: Vec<f32> = w.iter().zip(&left).map(|(w, left)| w - left).collect();
            self.collect(
                child(2 * node.index + 1, middle, node.end),
                &right,
                (a.max(middle), b),
                give,
            );
        }
    }

    /// The bridge's value at `middle`.
    fn left(&self, node: Node, w: &[f32], middle: f64) -> Vec<f32> {
        let (before, after) = (middle - node.start, node.end - middle);
        let inverse = 1.0 / (node.end - node.start);
        let spread = (before * after * inverse).sqrt() as f32;
        let seed = SeedSequence::new(self.entropy, &[node.index, node.depth], POOL).state(4)[0];
        let noise = TorchCpu::new(u64::from(seed)).randn(self.size);
        w.iter()
            .zip(noise)
            .map(|(w, noise)| (before as f32 * w) * inverse as f32 + spread * noise)
            .collect()
    }
}

/// Python's `round(t, 6)`: the decimal nearest to the exact binary value.
fn round(t: f64) -> f64 {
    format!("{t:.6}").parse().unwrap_or(t)
}
