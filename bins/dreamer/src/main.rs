//! The dreamer: makes pictures for the AI Horde.

fn main() -> std::process::ExitCode {
    worker_app::main::<image_worker::Dreamer>()
}
