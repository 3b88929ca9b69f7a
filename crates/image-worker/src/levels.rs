//! What each bridge agent promises the Horde, and whether this worker keeps it.
//!
//! The Horde gives features by the agent's name and major version. Some of them it withholds when the pop says so or
//! when no offered model could use them; the others come, and a worker that cannot do them would hand them back. Facts of
//! AI-Horde 5.1.5.

use horde_client::agent::BridgeAgent;
use horde_client::alchemy::Form;
use model_store::reference::Baseline;

/// What keeps jobs with a feature away from a worker that cannot do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Nothing: it comes.
    None,
    /// A flag of the pop, which this worker sends as its configuration says.
    Flag,
    /// It comes only for models of this family.
    Family(&'static str),
}

/// One promise.
struct Promise {
    /// From which major version.
    from: u64,
    /// What, for people.
    what: &'static str,
    gate: Gate,
    /// Whether this build does it.
    kept: bool,
}

const fn promise(from: u64, what: &'static str, gate: Gate, kept: bool) -> Promise {
    Promise { from, what, gate, kept }
}

/// What the name `AI Horde Worker reGen` promises.
const REGEN: [Promise; 24] = [
    promise(1, "img2img", Gate::Flag, true),
    promise(1, "inpainting", Gate::Flag, true),
    promise(1, "karras", Gate::None, true),
    promise(1, "r2", Gate::None, true),
    promise(1, "r2_source", Gate::None, true),
    promise(1, "clip_skip", Gate::None, true),
    promise(1, "hires_fix", Gate::None, true),
    promise(1, "tiling", Gate::None, true),
    promise(1, "post_processing", Gate::Flag, true),
    // `allow_controlnet` is never sent as true.
    promise(1, "controlnet", Gate::Flag, false),
    promise(1, "image_is_control", Gate::Flag, false),
    promise(1, "return_control_map", Gate::Flag, false),
    promise(2, "textual_inversion", Gate::None, true),
    promise(2, "lora", Gate::Flag, true),
    promise(3, "lora by version", Gate::Flag, true),
    promise(3, "lcm", Gate::None, true),
    promise(5, "extra_source_images", Gate::Family("stable_cascade"), false),
    promise(6, "two-pass Stable Cascade", Gate::Family("stable_cascade"), false),
    // Withheld by `allow_sdxl_controlnet` for SDXL; with SD 1 it comes whatever the pop says. Workflows and further texts
    // come with nothing else.
    promise(7, "qr_code", Gate::Family("SD15"), false),
    promise(7, "workflow", Gate::Family("SD15"), false),
    promise(7, "extra_texts", Gate::Family("SD15"), false),
    promise(8, "transparent", Gate::Flag, false),
    promise(9, "flux", Gate::Family("FLUX"), false),
    promise(13, "the post-processors of 2025", Gate::Flag, true),
];

/// What the older `AI Horde Worker` and the bridges of other programs promise.
const OLDER: [Promise; 11] = [
    promise(0, "img2img", Gate::Flag, true),
    promise(0, "inpainting", Gate::Flag, true),
    promise(0, "karras", Gate::None, true),
    promise(0, "r2", Gate::None, true),
    promise(0, "r2_source", Gate::None, true),
    promise(0, "hires_fix", Gate::None, true),
    promise(0, "clip_skip", Gate::None, true),
    promise(0, "post_processing", Gate::Flag, true),
    promise(0, "textual_inversion", Gate::None, true),
    promise(0, "lora", Gate::Flag, true),
    promise(0, "controlnet", Gate::Flag, false),
];

/// Post-processors that the reGen name has promised since version 1, and those since 13.
const FIRST_POST: [Form; 8] = [
    Form::Gfpgan,
    Form::CodeFormers,
    Form::RealEsrganX4Plus,
    Form::RealEsrganX2Plus,
    Form::RealEsrganX4PlusAnime6B,
    Form::NmkdSiax,
    Form::AnimeSharp4x,
    Form::StripBackground,
];
const LATER_POST: [Form; 8] = [
    Form::Nomos8kSc4x,
    Form::LsdirPlus4x,
    Form::NomosWebPhotoRealPlksr4x,
    Form::Nomos2RealPlksrDysample4x,
    Form::Nomos2HqDat24x,
    Form::ModernSpanimationV12x,
    Form::GfpganV13,
    Form::RestoreFormer,
];

/// The promises of an agent; none for a name the Horde does not know.
fn promises(agent: &BridgeAgent) -> &'static [Promise] {
    match agent.name() {
        "AI Horde Worker reGen" => &REGEN,
        "AI Horde Worker" | "SD-WebUI Stable Horde Worker Bridge" | "HordeAutoWebBridge" => &OLDER,
        _ => &[],
    }
}

/// The first promise of `agent` that a worker with models of these baselines would break, in words for the owner.
pub fn broken(agent: &BridgeAgent, baselines: &[Option<Baseline>]) -> Option<String> {
    let level = agent.major();
    let claimed = promises(agent).iter().filter(|promise| promise.from <= level);
    for promise in claimed.filter(|promise| !promise.kept) {
        let comes = match promise.gate {
            Gate::None => true,
            Gate::Flag => false,
            // A model of an unknown family may be of this one.
            Gate::Family(family) => baselines
                .iter()
                .any(|baseline| baseline.as_ref().is_none_or(|baseline| baseline.family() == family)),
        };
        if comes {
            return Some(promise.what.to_owned());
        }
    }
    None
}

/// The highest version up to that of `agent` whose promises can be kept, for a hint.
pub fn highest_kept(agent: &BridgeAgent, baselines: &[Option<Baseline>]) -> Option<u64> {
    (1..agent.major()).rev().find(|major| {
        let lower: Result<BridgeAgent, _> = format!("{}:{major}:hint", agent.name()).parse();
        lower.is_ok_and(|lower| broken(&lower, baselines).is_none())
    })
}

/// The post-processors that jobs for `agent` may ask for once the pop allows any.
pub fn post_processors(agent: &BridgeAgent) -> Vec<Form> {
    match (agent.name(), agent.major()) {
        ("AI Horde Worker reGen", 13..) => FIRST_POST.iter().chain(&LATER_POST).cloned().collect(),
        ("AI Horde Worker reGen" | "AI Horde Worker" | "HordeAutoWebBridge", 1..) => FIRST_POST.to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(agent: &str, baselines: &[Baseline], expected: Option<&str>) {
        let agent: BridgeAgent = agent.parse().unwrap();
        let baselines: Vec<_> = baselines.iter().cloned().map(Some).collect();
        assert_eq!(broken(&agent, &baselines).as_deref(), expected, "{agent}");
    }

    #[test]
    fn an_agent_may_claim_what_the_build_does_or_what_can_be_withheld() {
        check("dreamer:99:u", &[Baseline::Sd1], None);
        check("AI Horde Worker:24:u", &[Baseline::Sd1, Baseline::Sdxl], None);
        check("AI Horde Worker reGen:6:u", &[Baseline::Sd1, Baseline::Sdxl], None);
        // QR codes on SD 1 come whatever the pop allows.
        check("AI Horde Worker reGen:7:u", &[Baseline::Sd1], Some("qr_code"));
        check(
            "AI Horde Worker reGen:13:u",
            &[Baseline::Sdxl, Baseline::Sd2At512],
            None,
        );
        check("AI Horde Worker reGen:9:u", &[Baseline::Flux1], Some("flux"));
        let regen: BridgeAgent = "AI Horde Worker reGen:10:u".parse().unwrap();
        assert_eq!(broken(&regen, &[None]).as_deref(), Some("extra_source_images"));
        assert_eq!(highest_kept(&regen, &[Some(Baseline::Sd1)]), Some(6));
    }

    #[test]
    fn the_newer_post_processors_come_from_version_13() {
        let of = |agent: &str| post_processors(&agent.parse().unwrap()).len();
        assert_eq!(of("AI Horde Worker reGen:13:u"), 16);
        assert_eq!(of("AI Horde Worker reGen:12:u"), 8);
        assert_eq!(of("dreamer:0.1.0:u"), 0);
    }
}
