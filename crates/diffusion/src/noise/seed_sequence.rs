//! numpy's `SeedSequence`, after M. E. O'Neill's seed_seq_fe (numpy documents the algorithm and its constants).

/// Mixes an entropy number and a spawn key into as many 32-bit words as are asked for.
pub struct SeedSequence {
    pool: Vec<u32>,
}

const XSHIFT: u32 = 16;

impl SeedSequence {
    /// `pool_size` is 4 in numpy by default and 24 in torchsde.
    pub fn new(entropy: u64, spawn_key: &[u64], pool_size: usize) -> Self {
        let pool_size = pool_size.max(1);
        let mut words = words(entropy);
        if !spawn_key.is_empty() {
            words.resize(words.len().max(pool_size), 0);
            for key in spawn_key {
                words.extend(self::words(*key));
            }
        }
        let mut constant = 0x43b0_d7e5u32;
        let mut hash = |value: u32| {
            let value = value ^ constant;
            constant = constant.wrapping_mul(0x931e_8875);
            let value = value.wrapping_mul(constant);
            value ^ (value >> XSHIFT)
        };
        let mut pool: Vec<u32> = (0..pool_size)
            .map(|i| hash(words.get(i).copied().unwrap_or(0)))
            .collect();
        for source in 0..pool_size {
            for target in 0..pool_size {
                if source != target {
                    pool[target] = mix(pool[target], hash(pool[source]));
                }
            }
        }
        for word in words.iter().skip(pool_size) {
            for slot in &mut pool {
                *slot = mix(*slot, hash(*word));
            }
        }
        Self { pool }
    }

    /// The first `n` words of the state.
    pub fn state(&self, n: usize) -> Vec<u32> {
        let mut constant = 0x8b51_f9ddu32;
        (0..n)
            .map(|i| {
                let value = self.pool[i % self.pool.len()] ^ constant;
                constant = constant.wrapping_mul(0x58f3_8ded);
                let value = value.wrapping_mul(constant);
                value ^ (value >> XSHIFT)
            })
            .collect()
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let value = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
    value ^ (value >> XSHIFT)
}

fn words(n: u64) -> Vec<u32> {
    if n >> 32 == 0 {
        vec![n as u32]
    } else {
        vec![n as u32, (n >> 32) as u32]
    }
}
