//! Noise levels: the table a model was trained on, and the schedules that pick from it.

/// How a model's output becomes its guess of the clean picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity of Salimans and Ho, "Progressive Distillation", 2022.
    V,
    /// The velocity of a rectified flow.
    Flow,
}

/// The noise levels a model knows, smallest first.
#[derive(Clone, Debug)]
pub struct Levels {
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Variance exploding, interpolated in the logarithm.
    Trained,
    /// `shift·t / (1 + (shift - 1)·t)`, timesteps in thousandths.
    Flow { shift: f64 },
    /// `e^mu / (e^mu + 1/t - 1)`, timesteps are the sigmas themselves.
    Flux { mu: f64 },
}

/// How the steps are spread over the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Even in trained timesteps.
    Normal,
    /// Karras et al., "Elucidating the Design Space", 2022, rho 7.
    Karras,
    /// Even in the logarithm of sigma.
    Exponential,
    /// Every n-th trained sigma.
    Simple,
    /// As `Normal` with one step more, its last left out.
    SgmUniform,
    /// Every n-th trained sigma from the smallest.
    DdimUniform,
}

impl Schedule {
    /// The schedule of this name (ComfyUI's names).
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "normal" => Self::Normal,
            "karras" => Self::Karras,
            "exponential" => Self::Exponential,
            "simple" => Self::Simple,
            "sgm_uniform" => Self::SgmUniform,
            "ddim_uniform" => Self::DdimUniform,
            _ => return None,
        })
    }
}

impl Levels {
    /// The thousand levels of Stable Diffusion: betas even in their square root from 0.00085 to 0.012.
    pub fn stable_diffusion() -> Self {
        Self::trained(&Self::exact())
    }

    fn exact() -> Vec<f64> {
        let (low, high) = (0.00085f64.sqrt(), 0.012f64.sqrt());
        let mut product = 1.0;
        (0..1000)
            .map(|i| {
                let beta = low + (high - low) * f64::from(i) / 999.0;
                product *= 1.0 - beta * beta;
                ((1.0 - product) / product).sqrt()
            })
            .collect()
    }

    /// The same, rescaled so that the last level is almost pure noise (Lin et al., 2023).
    pub fn zero_terminal_snr() -> Self {
        let mut roots: Vec<f64> = Self::exact()
            .iter()
            .map(|sigma| (1.0 / (sigma * sigma + 1.0)).sqrt())
            .collect();
        let (first, last) = (roots[0], roots[roots.len() - 1]);
        for root in &mut roots {
            *root = (*root - last) * first / (first - last);
        }
        let mut products: Vec<f64> = roots.iter().map(|root| root * root).collect();
        if let Some(last) = products.last_mut() {
            *last = 4.897_345_189_085_343_5e-8;
        }
        let sigmas: Vec<f64> = products.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        Self::trained(&sigmas)
    }

    /// A thousand levels of a rectified flow with a shift (1 is none).
    pub fn flow(shift: f64) -> Self {
        let kind = Kind::Flow { shift };
        Self::with_kind((1..=1000).map(|i| kind.sigma_of(f64::from(i) / 1000.0)).collect(), kind)
    }

    /// Ten thousand levels of Flux with its shift (1.15 for dev).
    pub fn flux(mu: f64) -> Self {
        let kind = Kind::Flux { mu };
        Self::with_kind(
            (1..=10_000).map(|i| kind.sigma_of(f64::from(i) / 10_000.0)).collect(),
            kind,
        )
    }

    /// The logarithms are taken before rounding to f32, as the reference does: half-way between two levels the last digit
    /// decides which timestep is the nearer.
    fn trained(sigmas: &[f64]) -> Self {
        Self {
            sigmas: sigmas.iter().map(|sigma| *sigma as f32).collect(),
            log_sigmas: sigmas.iter().map(|sigma| sigma.ln() as f32).collect(),
            kind: Kind::Trained,
        }
    }

    fn with_kind(sigmas: Vec<f32>, kind: Kind) -> Self {
        Self {
            log_sigmas: sigmas.iter().map(|sigma| f64::from(*sigma).ln() as f32).collect(),
            sigmas,
            kind,
        }
    }

    /// The trained sigmas, smallest first; never empty.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Whether this is a flow, whose samples are `sigma·noise + (1 - sigma)·picture`.
    pub fn is_flow(&self) -> bool {
        self.kind != Kind::Trained
    }

    /// The largest trained sigma.
    pub fn max(&self) -> f32 {
        self.sigmas.last().copied().unwrap_or(1.0)
    }

    /// The smallest trained sigma.
    pub fn min(&self) -> f32 {
        self.sigmas.first().copied().unwrap_or(0.0)
    }

    /// What the network is told: the index of the nearest trained sigma, in the logarithm; for flows sigma times 1000.
    pub fn timestep(&self, sigma: f32) -> f32 {
        match self.kind {
            Kind::Trained => self.nearest(sigma) as f32,
            Kind::Flow { .. } | Kind::Flux { .. } => sigma * 1000.0,
        }
    }

    fn nearest(&self, sigma: f32) -> usize {
        let log = f64::from(sigma).ln() as f32;
        let distance = |at: usize| (log - self.log_sigmas[at]).abs();
        (0..self.log_sigmas.len())
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .unwrap_or(0)
    }

    /// The sigma at a fractional timestep, in the unit [`Self::position`] gives.
    fn at(&self, position: f64) -> f32 {
        match self.kind {
            Kind::Trained => {
                let last = self.log_sigmas.len() - 1;
                let position = (position as f32).clamp(0.0, last as f32);
                let (low, high) = (position.floor() as usize, position.ceil() as usize);
                let weight = position - position.floor();
                let log = (1.0 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high.min(last)];
                f64::from(log).exp() as f32
            }
            Kind::Flow { .. } => self.kind.sigma_of(position / 1000.0),
            Kind::Flux { .. } => self.kind.sigma_of(position),
        }
    }

    fn position(&self, sigma: f32) -> f64 {
        match self.kind {
            Kind::Trained => self.nearest(sigma) as f64,
            Kind::Flow { .. } => f64::from(sigma) * 1000.0,
            Kind::Flux { .. } => f64::from(sigma),
        }
    }

    /// `steps` falling sigmas and a final 0, or fewer where the schedule gives fewer.
    pub fn schedule(&self, schedule: Schedule, steps: usize) -> Vec<f32> {
        if steps == 0 {
            return Vec::new();
        }
        let (min, max) = (f64::from(self.min()), f64::from(self.max()));
        let n = self.sigmas.len();
        let mut out: Vec<f32> = match schedule {
            Schedule::Normal => {
                let (start, end) = (self.position(self.max()), self.position(self.min()));
                linspace(start, end, steps).map(|t| self.at(t.into())).collect()
            }
            Schedule::SgmUniform => {
                let (start, end) = (self.position(self.max()), self.position(self.min()));
                linspace(start, end, steps + 1)
                    .take(steps)
                    .map(|t| self.at(t.into()))
                    .collect()
            }
            Schedule::Karras => {
                let (low, high) = (min.powf(1.0 / 7.0), max.powf(1.0 / 7.0));
                linspace(0.0, 1.0, steps)
                    // f32 up to the power: a Brownian tree asked at a sigma one digit off gives other noise.
                    .map(|ramp| f64::from(high as f32 + ramp * (low - high) as f32).powi(7) as f32)
                    .collect()
            }
            Schedule::Exponential => linspace(max.ln(), min.ln(), steps)
                .map(|log| f64::from(log).exp() as f32)
                .collect(),
            Schedule::Simple => {
                let stride = n as f64 / steps as f64;
                (0..steps)
                    .map(|x| self.sigmas[n - 1 - ((x as f64 * stride) as usize).min(n - 1)])
                    .collect()
            }
            Schedule::DdimUniform => {
                let stride = (n / steps).max(1);
                let mut out: Vec<f32> = self.sigmas.iter().skip(1).step_by(stride).copied().collect();
                out.reverse();
                out
            }
        };
        if out.last().is_some_and(|last| last.abs() > 1e-5) {
            out.push(0.0);
        }
        out
    }

    /// The sigmas of a run of `steps` steps that changes the picture by `denoise` (0..=1): the end of a longer schedule.
    /// With `skip_penultimate` one step more is planned and the last but one sigma left out.
    pub fn run(&self, schedule: Schedule, steps: usize, denoise: f64, skip_penultimate: bool) -> Vec<f32> {
        let plan = |steps: usize| {
            let mut sigmas = self.schedule(schedule, steps + usize::from(skip_penultimate));
            if skip_penultimate && sigmas.len() >= 2 {
                sigmas.remove(sigmas.len() - 2);
            }
            sigmas
        };
        if denoise > 0.9999 {
            return plan(steps);
        }
        if denoise.is_nan() || denoise <= 0.0 {
            return Vec::new();
        }
        // The cast saturates; a denoise of 0.01 at 500 steps plans 50,000.
        let planned = ((steps as f64 / denoise) as usize).min(100 * steps.max(1));
        let sigmas = plan(planned);
        sigmas[sigmas.len().saturating_sub(steps + 1)..].to_vec()
    }
}

impl Kind {
    fn sigma_of(self, t: f64) -> f32 {
        match self {
            Self::Trained => t as f32,
            Self::Flow { shift: 1.0 } => t as f32,
            Self::Flow { shift } => (shift * t / (1.0 + (shift - 1.0) * t)) as f32,
            Self::Flux { mu } => (mu.exp() / (mu.exp() + (1.0 / t - 1.0))) as f32,
        }
    }
}

/// `n` even values from `start` to `end`, both included; one value is `start`. In f32 and from both ends, as torch does.
pub(crate) fn linspace(start: f64, end: f64, n: usize) -> impl Iterator<Item = f32> {
    let (start, end) = (start as f32, end as f32);
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(move |i| {
        if i < n / 2 || n == 1 {
            start + step * i as f32
        } else {
            end - step * (n - 1 - i) as f32
        }
    })
}
