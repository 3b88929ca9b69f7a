//! What work is paid. Formulas are facts of the public server (release 5.1.5); images use its formula from before the
//! trained network, which is what it falls back to.

/// Facts about an image that decide its pay.
pub struct ImageWork {
    /// Pixels of one picture.
    pub pixels: f64,
    /// Steps as requested.
    pub steps: f64,
    /// Post-processors.
    pub n_post: usize,
    /// ControlNet in use.
    pub control: bool,
    /// LoRAs.
    pub n_loras: usize,
    /// Textual inversions in use.
    pub textual_inversion: bool,
    /// Baseline factor: SDXL 2, Cascade 4, Flux 8.
    pub baseline: f64,
}

/// Kudos of one picture.
pub fn image(work: &ImageWork) -> f64 {
    const BASE: f64 = 0.1232;
    const FLOOR: f64 = 4096.0;
    const MEGAPIXEL: f64 = 1_048_576.0;
    let size = (work.pixels - FLOOR).max(0.0).powf(1.75) / (MEGAPIXEL - FLOOR).powf(1.75);
    let mut kudos = BASE * work.steps + size * BASE * work.steps * 8.75;
    kudos *= 1.2_f64.powi(i32::try_from(work.n_post).unwrap_or(i32::MAX).min(16));
    if work.control {
        kudos *= 3.0;
    }
    kudos *= work.baseline;
    round(kudos + 1.0 + 3.0 * work.n_loras as f64 + f64::from(u8::from(work.textual_inversion)))
}

/// Kudos of a text of `n_chars` characters from a model of `billions` parameters (`None`: unknown to the reference).
pub fn text(n_chars: usize, prompt_chars: usize, max_length: u64, billions: Option<f64>, validated: bool) -> f64 {
    let counted = |chars: usize| ((chars as f64 / 4.0).ceil()).max(20.0).min(max_length as f64);
    let context = (1.2 + 2.2_f64.powf((counted(prompt_chars) / 1024.0).log2())).clamp(0.1, 30.0);
    match billions {
        None => round(context),
        Some(billions) => {
            let kudos = counted(n_chars) * billions * (billions.max(13.0) / 13.0).powf(0.2) / 125.0 * context;
            round(if validated { kudos } else { kudos * 0.3 })
        }
    }
}

/// Kudos of a form whose source spans `tiles` tiles of 512×512.
pub fn form(form: &str, tiles: u64) -> f64 {
    match form {
        "caption" | "nsfw" => 1.0,
        "interrogation" => 3.0,
        _ => 3.0 * tiles.max(1) as f64,
    }
}

/// Parameters in billions as a model's name tells them: `…-8B`, `…135M`.
pub fn billions_in_name(name: &str) -> Option<f64> {
    let name = name.rsplit('/').next()?;
    name.split(['-', '_', ' ']).find_map(|part| {
        let (digits, scale) = match part.chars().last()? {
            'B' | 'b' => (&part[..part.len() - 1], 1.0),
            'M' | 'm' => (&part[..part.len() - 1], 1e-3),
            _ => return None,
        };
        digits
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite() && *number > 0.0)
            .map(|number| number * scale)
    })
}

fn round(kudos: f64) -> f64 {
    (kudos * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_pays_what_was_measured_on_the_real_server() {
        // 200 tokens of an 8B model with a short prompt: 15.51, and 0.3 of it for an unknown backend: 4.65.
        assert!((text(800, 80, 200, Some(8.0), true) - 15.51).abs() < 1.0);
        assert!((text(800, 80, 200, Some(8.0), false) / text(800, 80, 200, Some(8.0), true) - 0.3).abs() < 0.01);
        assert_eq!(billions_in_name("koboldcpp/SmolLM2-135M-Instruct"), Some(0.135));
    }

    #[test]
    fn forms_pay_by_tiles() {
        assert_eq!((form("caption", 9), form("RealESRGAN_x4plus", 2)), (1.0, 6.0));
    }
}
