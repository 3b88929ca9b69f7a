//! `pause`, `resume`, `finish`, `stop`: one order each, confirmed by the running worker.

use std::path::Path;

use crate::display::span;
use crate::state::{Order, give, holder, not_running};
use crate::stop::Stop;

/// Gives the order and says what will happen.
pub fn control(name: &str, dir: &Path, order: Order) -> Result<String, Stop> {
    if holder(dir).is_none() {
        return Err(not_running(name, dir));
    }
    let taken = give(dir, order)?;
    let pid = taken.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let what = match order {
        Order::Pause { for_s, now } => {
            let how_long = for_s.map_or_else(
                || format!("until `{name} resume`"),
                |seconds| format!("for {}", span(seconds as f64)),
            );
            if now {
                format!("hands back what it holds, pauses {how_long} and frees its devices")
            } else {
                format!("pauses {how_long} once it holds nothing, and frees its devices")
            }
        }
        Order::Resume => "serves again".to_owned(),
        Order::Finish => "takes nothing new, finishes what it holds and ends".to_owned(),
        Order::Stop => "hands back what waits, finishes what ends soon and ends".to_owned(),
    };
    Ok(format!("{name}{pid} {what}\n"))
}
