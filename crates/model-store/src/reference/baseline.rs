//! The architecture families and all the ways their names are written.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Architecture family of a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Baseline {
    /// Stable Diffusion 1.x, 512 px.
    Sd1,
    /// Stable Diffusion 2.x with v-prediction, 768 px.
    Sd2At768,
    /// Stable Diffusion 2.x base, 512 px.
    Sd2At512,
    /// Stable Diffusion XL, 1024 px.
    Sdxl,
    /// Stable Cascade.
    StableCascade,
    /// Flux.1 where the reference does not say which.
    Flux1,
    /// Flux.1 schnell.
    FluxSchnell,
    /// Flux.1 dev.
    FluxDev,
    /// Qwen-Image.
    QwenImage,
    /// Z-Image turbo.
    ZImageTurbo,
    /// To be found out by looking into the file.
    Infer,
    /// A family newer than this program, as written.
    Other(String),
}

impl Baseline {
    /// By any spelling of either reference: spaces, dashes and underscores are the same, case is not looked at.
    pub fn parse(text: &str) -> Self {
        let key: String = text
            .trim()
            .to_ascii_lowercase()
            .chars()
            .map(|c| if matches!(c, ' ' | '-' | '.') { '_' } else { c })
            .collect();
        match key.as_str() {
            "stable_diffusion_1" | "stable_diffusion_1_5" | "sd1" | "sd15" | "sd_1_5" | "sd_1" => Baseline::Sd1,
            "stable_diffusion_2"
            | "stable_diffusion_2_768"
            | "stable_diffusion_2_1"
            | "sd2"
            | "sd21"
            | "sd_2"
            | "sd_2_1"
            | "sd_2_1_768" => Baseline::Sd2At768,
            "stable_diffusion_2_512" | "sd_2_0" | "sd_2_1_512" => Baseline::Sd2At512,
            "stable_diffusion_xl" | "sdxl" | "sdxl_1_0" | "pony" | "illustrious" | "noobai" => Baseline::Sdxl,
            "stable_cascade" | "cascade" => Baseline::StableCascade,
            "flux_1" | "flux" => Baseline::Flux1,
            "flux_schnell" | "flux_1_s" | "flux_1_schnell" => Baseline::FluxSchnell,
            "flux_dev" | "flux_1_d" | "flux_1_dev" => Baseline::FluxDev,
            "qwen_image" | "qwen" => Baseline::QwenImage,
            "z_image_turbo" | "zimageturbo" | "z_image" => Baseline::ZImageTurbo,
            "infer" => Baseline::Infer,
            _ => Baseline::Other(text.trim().to_owned()),
        }
    }

    /// The name the newer reference uses.
    pub fn as_str(&self) -> &str {
        match self {
            Baseline::Sd1 => "stable_diffusion_1",
            Baseline::Sd2At768 => "stable_diffusion_2_768",
            Baseline::Sd2At512 => "stable_diffusion_2_512",
            Baseline::Sdxl => "stable_diffusion_xl",
            Baseline::StableCascade => "stable_cascade",
            Baseline::Flux1 => "flux_1",
            Baseline::FluxSchnell => "flux_schnell",
            Baseline::FluxDev => "flux_dev",
            Baseline::QwenImage => "qwen_image",
            Baseline::ZImageTurbo => "z_image_turbo",
            Baseline::Infer => "infer",
            Baseline::Other(text) => text,
        }
    }

    /// Families whose LoRAs and embeddings fit each other.
    pub fn is_compatible_with(&self, other: &Baseline) -> bool {
        self.family() == other.family()
    }

    /// True for the members of one of the selection words `SD15`, `SD21`, `SDXL`, `FLUX`.
    pub fn family(&self) -> &str {
        match self {
            Baseline::Sd1 => "SD15",
            Baseline::Sd2At768 | Baseline::Sd2At512 => "SD21",
            Baseline::Sdxl => "SDXL",
            Baseline::Flux1 | Baseline::FluxSchnell | Baseline::FluxDev => "FLUX",
            other => other.as_str(),
        }
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Baseline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Baseline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_references_and_civitai_spell_the_same_families() {
        for (text, expected) in [
            ("stable diffusion 1", Baseline::Sd1),
            ("stable_diffusion_1", Baseline::Sd1),
            ("SD 1.5", Baseline::Sd1),
            ("stable diffusion 2", Baseline::Sd2At768),
            ("stable_diffusion_2_768", Baseline::Sd2At768),
            ("stable diffusion 2 512", Baseline::Sd2At512),
            ("stable_diffusion_xl", Baseline::Sdxl),
            ("SDXL 1.0", Baseline::Sdxl),
            ("Pony", Baseline::Sdxl),
            ("flux_1", Baseline::Flux1),
            ("Flux.1 D", Baseline::FluxDev),
            ("z_image_turbo", Baseline::ZImageTurbo),
            ("anima", Baseline::Other("anima".into())),
        ] {
            assert_eq!(Baseline::parse(text), expected, "{text}");
            assert_eq!(Baseline::parse(expected.as_str()), expected);
        }
        assert!(Baseline::FluxDev.is_compatible_with(&Baseline::Flux1));
        assert!(!Baseline::Sd1.is_compatible_with(&Baseline::Sdxl));
    }
}
