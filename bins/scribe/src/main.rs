//! Writes text for the AI Horde.

fn main() -> std::process::ExitCode {
    worker_app::main::<text_worker::Scribe>()
}
