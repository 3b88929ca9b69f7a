//! What may be offered so that nothing expires, from measured speed.

use crate::engine::Facts;

/// Longest answer and context to offer, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For `max_length`.
    pub max_length: u32,
    /// For `max_context_length`.
    pub max_context_length: u32,
}

/// A text job's lease, of which 0.6 may be used: the rest is for the network and for a slow moment.
const USABLE_SECONDS: f64 = 0.6 * 150.0;
/// Shortest answer a request can ask for.
const SHORTEST: f64 = 16.0;
/// Longer answers are not offered unless the owner says so.
const LONGEST: f64 = 1_024.0;
/// A context is not cut below this to make room for longer answers.
const USEFUL_CONTEXT: u32 = 1_024;
const USEFUL_LENGTH: f64 = 80.0;

/// What fits: a job may first wait for a slot (`prefetch` jobs for `facts.slots` slots), then its whole context is read,
/// then its answer written, each at the speed measured with every slot busy.
///
/// `length = tokens/s * (0.6 * 150 s / (1 + prefetch / slots) - context / prefill tokens/s)`
/// `None` where not even the shortest answer fits.
pub fn limits(facts: &Facts, prefetch: usize) -> Option<Limits> {
    // A speed that is no number promises nothing.
    let measured = [facts.write_per_second, facts.read_per_second]
        .iter()
        .all(|speed| speed.is_finite() && *speed > 0.0);
    if !measured {
        return None;
    }
    let slots = facts.slots.max(1) as f64;
    let seconds = USABLE_SECONDS / (1.0 + prefetch as f64 / slots);
    let length_for = |context: u32| facts.write_per_second * (seconds - f64::from(context) / facts.read_per_second);
    let mut context = facts.context_tokens;
    while context > USEFUL_CONTEXT && length_for(context) < USEFUL_LENGTH {
        context /= 2;
    }
    let own = facts.max_length.map_or(f64::INFINITY, f64::from);
    let length = length_for(context).min(LONGEST).min(f64::from(context / 2)).min(own);
    (length >= SHORTEST).then_some(Limits {
        max_length: length as u32,
        max_context_length: context,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(write_per_second: f64, read_per_second: f64, slots: usize, context_tokens: u32) -> Facts {
        Facts {
            model: "m".into(),
            context_tokens,
            max_length: None,
            slots,
            chat: false,
            effort: false,
            write_per_second,
            read_per_second,
            measured_unix_ms: 0,
            measured_for_ms: 0,
        }
    }

    #[test]
    fn a_fast_card_offers_what_it_holds() {
        let expected = Limits {
            max_length: 1_024,
            max_context_length: 8_192,
        };
        assert_eq!(limits(&facts(60.0, 2_500.0, 4, 8_192), 1), Some(expected));
    }

    #[test]
    fn a_slow_one_offers_what_it_can_finish_in_time() {
        let slow = limits(&facts(4.0, 100.0, 1, 4_096), 1).expect("something fits");
        // 45 s: 2048 tokens are read in 20.5 s, 24.5 s of writing remain.
        assert_eq!(slow.max_context_length, 2_048);
        assert_eq!(slow.max_length, 98);
        assert_eq!(limits(&facts(0.2, 100.0, 1, 4_096), 1), None);
        assert_eq!(limits(&facts(f64::NAN, 100.0, 1, 4_096), 1), None);
    }
}
