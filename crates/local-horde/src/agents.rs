//! What a bridge agent unlocks: the server's hard-coded table of names and major versions, as facts.

/// What the server makes of an agent string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    name: String,
    major: u64,
}

const REGEN: &str = "AI Horde Worker reGen";
const OLD_WORKERS: [&str; 3] = [
    "AI Horde Worker",
    "SD-WebUI Stable Horde Worker Bridge",
    "HordeAutoWebBridge",
];
const TEXT_BACKENDS: [&str; 5] = [
    "AI Horde Worker",
    "AI Horde Worker~aphrodite~oai",
    "AI Horde Worker~aphrodite~kai",
    "KoboldCppEmbedWorker",
    "TabbyAPI",
];
/// The newest version in the server's table; it is paid in full.
const NEWEST_REGEN: u64 = 13;

impl Agent {
    /// Parses `Name:version:rest`; whatever does not parse is an unknown agent.
    pub fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        match parts[..] {
            [name, version, _] => match semver_major(version) {
                Some(major) => Self {
                    name: name.to_owned(),
                    major,
                },
                None => Self::unknown(),
            },
            _ => Self::unknown(),
        }
    }

    /// An agent without any feature.
    pub fn unknown() -> Self {
        Self {
            name: "unknown".to_owned(),
            major: 0,
        }
    }

    /// Whether an image feature (by the name used in this crate's image rules) is unlocked.
    pub fn has(&self, feature: &str) -> bool {
        if feature == "samplers" {
            // The official worker's table names its samplers, from level 2 on; others are not asked.
            return self.name != REGEN || self.major >= 2;
        }
        let needed = match feature {
            "lora" | "textual_inversion" | "ddim_karras" => 2,
            "lora_version" | "lcm" => 3,
            "extra_source_images" => 5,
            "cascade_hires" => 6,
            "qr_code" => 7,
            "transparent" => 8,
            "flux" => 9,
            "new_post_processor" => 13,
            _ => 1,
        };
        if self.name == REGEN {
            return self.major >= needed;
        }
        let known_old = OLD_WORKERS.contains(&self.name.as_str());
        known_old && needed <= 2 && !["tiling", "ddim_karras"].contains(&feature) && self.major >= 3
    }

    /// Whether text requests for validated backends only reach it.
    pub fn validated_text(&self) -> bool {
        TEXT_BACKENDS.contains(&self.name.as_str())
    }

    /// What image kudos are multiplied with when they are credited.
    pub fn image_pay(&self) -> f64 {
        match self.name.as_str() {
            REGEN if self.major >= NEWEST_REGEN => 1.0,
            "AI Horde Worker" if self.major >= 24 => 1.0,
            REGEN => 0.9,
            _ => 0.75,
        }
    }
}

/// Major number of a semantic version whose minor and patch may be missing; a pre-release loses its level.
fn semver_major(version: &str) -> Option<u64> {
    let (core, _build) = version.split_once('+').unwrap_or((version, ""));
    let (numbers, pre_release) = core
        .split_once('-')
        .map_or((core, false), |(numbers, _)| (numbers, true));
    let numbers: Vec<&str> = numbers.split('.').collect();
    let sound = |text: &&str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'))
    };
    if numbers.len() > 3 || !numbers.iter().all(sound) {
        return None;
    }
    let major: u64 = numbers.first()?.parse().ok()?;
    Some(if pre_release { major.saturating_sub(1) } else { major })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_follow_name_and_version_and_nothing_else() {
        for (agent, feature, wanted) in [
            ("AI Horde Worker reGen:13.0.0:u", "new_post_processor", true),
            ("AI Horde Worker reGen:13.0.0+dreamer.1:u", "new_post_processor", true),
            ("AI Horde Worker reGen:13.0.0-beta.1:u", "new_post_processor", false),
            ("AI Horde Worker reGen:10:u", "transparent", true),
            ("AI Horde Worker reGen:v13.0.0:u", "r2", false),
            ("AI Horde Worker reGen:13.0.0.1:u", "r2", false),
            ("AI Horde Worker reGen~dreamer:13:u", "r2", false),
            ("AI Horde Worker:24:u", "lora", true),
            ("AI Horde Worker:24:u", "lcm", false),
            ("dreamer:99:u", "r2", false),
            ("dreamer", "r2", false),
            ("dreamer:1:u", "samplers", true),
            ("AI Horde Worker reGen:1:u", "samplers", false),
            ("AI Horde Worker:24:u", "ddim_karras", false),
        ] {
            assert_eq!(Agent::parse(agent).has(feature), wanted, "{agent} {feature}");
        }
    }
}
