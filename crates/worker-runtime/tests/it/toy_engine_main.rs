//! The toy engine as a program of its own.

mod toy_engine;
mod toy_work;

fn main() -> std::process::ExitCode {
    toy_engine::serve()
}
