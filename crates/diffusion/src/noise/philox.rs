//! Normal noise as torch's CUDA generator gives it: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy
//! as 1, 2, 3", 2011) and a Box-Muller transform on its first two words.

/// A generator in the state a fresh CUDA generator with this seed has.
#[derive(Clone)]
pub struct Philox {
    key: [u32; 2],
    draws: u32,
}

impl Philox {
    /// All 64 bits of `seed` count.
    pub fn new(seed: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            draws: 0,
        }
    }

    /// `n` normal values, as one `randn` call of at most as many elements as the card has threads.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        const SCALE: f32 = 1.0 / 4_294_967_296.0;
        const TURN: f32 = SCALE * std::f32::consts::TAU;
        let draw = self.draws;
        self.draws = self.draws.wrapping_add(1);
        (0..n)
            .map(|i| {
                let [x, y, ..] = self.block([draw, 0, i as u32, 0]);
                let u = x as f32 * SCALE + SCALE / 2.0;
                let v = y as f32 * TURN + TURN / 2.0;
                (-2.0 * u.ln()).sqrt() * v.sin()
            })
            .collect()
    }

    fn block(&self, mut counter: [u32; 4]) -> [u32; 4] {
        let mut key = self.key;
        for _ in 0..10 {
            let a = u64::from(counter[0]) * 0xd251_1f53;
            let b = u64::from(counter[2]) * 0xcd9e_8d57;
            counter = [
                (b >> 32) as u32 ^ counter[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ counter[3] ^ key[1],
                a as u32,
            ];
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        counter
    }
}
