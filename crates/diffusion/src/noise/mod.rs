//! Seeded normal noise: torch's CPU generator to the bit, its CUDA generator, and torchsde's Brownian tree.

mod brownian;
mod philox;
mod seed_sequence;
mod torch_cpu;

pub use brownian::BrownianTree;
pub use philox::Philox;
pub use seed_sequence::SeedSequence;
pub use torch_cpu::TorchCpu;
