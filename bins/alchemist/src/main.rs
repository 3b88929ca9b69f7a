//! Upscales, repairs, cuts out and describes pictures for the AI Horde.

fn main() -> std::process::ExitCode {
    worker_app::main::<alchemy_worker::Alchemist>()
}
