//! Devices by the names that owners write: `cpu`, `cuda:0`, `metal:0`.

use candle_core::{Device, Result};

/// Cards of a kind that are looked for.
const MOST_CARDS: usize = 16;

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As [`open`] takes it.
    pub name: String,
    /// For people.
    pub description: String,
}

/// Opens a device; a kind without a number is its first card.
///
/// # Errors
/// The name is none, the card is not there, or this build has no support for its kind.
pub fn open(name: &str) -> Result<Device> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let Ok(index) = index.parse::<usize>() else {
        candle_core::bail!("`{index}` is no number of a card");
    };
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Device::new_cuda(index),
        "metal" if cfg!(feature = "metal") => Device::new_metal(index),
        "cuda" | "metal" => {
            candle_core::bail!("this program was built without `{kind}` (cargo build --features {kind})")
        }
        _ => candle_core::bail!("the kind `{kind}` is unknown"),
    }
}

/// Every card that can be opened, best first, and the processor.
pub fn found() -> Vec<Found> {
    let mut found = Vec::new();
    for (kind, description) in [("cuda", "NVIDIA card"), ("metal", "Apple GPU")] {
        let names = (0..MOST_CARDS).map(|index| format!("{kind}:{index}"));
        found.extend(names.take_while(|name| open(name).is_ok()).map(|name| Found {
            name,
            description: description.to_owned(),
        }));
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    found.push(Found {
        name: "cpu".to_owned(),
        description: format!("{threads} threads"),
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there_and_last() {
        assert_eq!(found().last().map(|device| device.name.as_str()), Some("cpu"));
        assert!(open("cpu").is_ok_and(|device| device.is_cpu()));
    }

    #[test]
    fn what_is_no_device_is_told_by_its_name() {
        let told = |name: &str| open(name).map(drop).map_err(|error| error.to_string());
        assert!(told("tpu:0").is_err_and(|why| why.contains("`tpu` is unknown")));
        assert!(told("cuda:x").is_err_and(|why| why.contains("`x` is no number")));
        assert!(told("cuda:-1").is_err());
        if cfg!(not(feature = "metal")) {
            assert!(told("metal:0").is_err_and(|why| why.contains("without `metal`")));
        }
    }
}
