//! What the public Horde gives a worker for its bridge agent, in plain words. Facts about the server (AI-Horde 5.1), read
//! and measured in August 2026; whether a build can do what an agent claims is asked of the program.

use horde_client::agent::BridgeAgent;

use crate::stop::Check;

/// The level from which the server pays image jobs in full.
const FULL_PAY_LEVEL: u64 = 13;
/// Agents whose text requests count as validated.
const VALIDATED_TEXT: [&str; 5] = [
    "AI Horde Worker",
    "AI Horde Worker~aphrodite~oai",
    "AI Horde Worker~aphrodite~kai",
    "KoboldCppEmbedWorker",
    "TabbyAPI",
];

/// The check of doctor for `agent` and a kind of work (`image`, `text`, `alchemy`).
pub fn check(kind: &str, agent: &BridgeAgent) -> Check {
    let name = agent.name();
    let shown = format!("`{agent}`");
    match kind {
        "image" => image(name, agent.major(), &shown),
        "text" if VALIDATED_TEXT.contains(&name) => Check::ok(
            "bridge agent",
            format!("{shown}: requests for validated backends too, full pay for known models"),
        ),
        "text" => Check::warn(
            "bridge agent",
            format!("{shown} is unknown to the Horde: no requests for validated backends, and 0.3 of the pay for known models"),
        )
        .hint("the Horde's operators can add the name to their list; docs/OPERATING.md says how `bridge_agent` works"),
        _ => Check::ok("bridge agent", format!("{shown}: the Horde does not look at it for this kind of work")),
    }
}

fn image(name: &str, level: u64, shown: &str) -> Check {
    let hint = "the Horde's operators can add the name to their list; docs/OPERATING.md says how `bridge_agent` works";
    match name {
        "AI Horde Worker reGen" => {
            let features = regen_features(level);
            if level >= FULL_PAY_LEVEL {
                Check::ok("bridge agent", format!("{shown}: {features}; full pay"))
            } else {
                Check::warn("bridge agent", format!("{shown}: {features}; 0.9 of the pay"))
                    .hint("version 13 unlocks everything, where this build can do it")
            }
        }
        "AI Horde Worker" => Check::warn(
            "bridge agent",
            format!("{shown}: most image features, but no Flux, tiling, LoRA versions, lcm, QR codes or extra images"),
        )
        .hint(hint),
        "SD-WebUI Stable Horde Worker Bridge" | "HordeAutoWebBridge" => Check::warn(
            "bridge agent",
            format!("{shown}: the features of that bridge; 0.75 of the pay"),
        )
        .hint(hint),
        _ => Check::warn(
            "bridge agent",
            format!(
                "{shown} is unknown to the Horde: only plain text-to-image requests that ask for no object store, \
                 so in practice next to no work, and 0.75 of the pay"
            ),
        )
        .hint(hint),
    }
}

/// What each level of that agent adds.
fn regen_features(level: u64) -> String {
    const ADDED: [(u64, &str); 9] = [
        (
            1,
            "image-to-image, inpainting, hires fix, tiling, ControlNet, the older post-processors",
        ),
        (2, "LoRA, textual inversion, most samplers"),
        (3, "LoRA versions, lcm"),
        (5, "extra source images"),
        (6, "two-pass Cascade"),
        (7, "QR codes"),
        (8, "transparent images"),
        (9, "Flux"),
        (13, "the newer upscalers and face fixers"),
    ];
    let features: Vec<_> = ADDED
        .iter()
        .filter(|(from, _)| *from <= level)
        .map(|(_, what)| *what)
        .collect();
    if features.is_empty() {
        "no feature beyond plain text-to-image".to_owned()
    } else {
        features.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Verdict;

    fn of(kind: &str, agent: &str) -> Check {
        check(kind, &agent.parse().unwrap())
    }

    #[test]
    fn an_unknown_name_is_told_what_it_loses_and_a_known_one_what_it_gets() {
        assert_eq!(of("image", "dreamer:0.1.0:u").verdict, Verdict::Warn);
        assert!(of("image", "dreamer:0.1.0:u").message.contains("next to no work"));
        assert_eq!(
            of("image", "AI Horde Worker reGen:13.0.0+dreamer:u").verdict,
            Verdict::Ok
        );
        let nine = of("image", "AI Horde Worker reGen:9:u");
        assert!(nine.message.contains("Flux") && !nine.message.contains("newer upscalers"));
        assert_eq!(of("text", "scribe:0.1.0:u").verdict, Verdict::Warn);
        assert_eq!(of("text", "AI Horde Worker:0.1.0+scribe:u").verdict, Verdict::Ok);
        assert_eq!(of("alchemy", "alchemist:0.1.0:u").verdict, Verdict::Ok);
    }
}
