//! Which forms fit a machine: what `setup` proposes before anything was measured.
//!
//! The figures are rough on purpose. What a form really takes is measured at the first start, and one that is too slow for
//! the Horde is left out then.

use horde_client::alchemy::Form;

use crate::pace::LEASE_SECONDS;

/// A machine as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Whether forms would run on a card.
    pub has_card: bool,
    /// Cores of the processor.
    pub cores: usize,
    /// Memory that forms would lie in, where known: the card's, or the machine's.
    pub memory_bytes: Option<u64>,
}

/// What one form needs.
pub struct Needs {
    /// 10¹² operations for a tile, or for any picture where the size does not matter: twice the weights of every convolution
    /// times the pixels it sees.
    tera_operations: f64,
    /// Bytes of its weights as f32, and of work beside them.
    memory_bytes: u64,
    /// Whether that grows with the picture.
    pub is_per_tile: bool,
    /// Names for `models pull`; none where it needs no file, or where no address is known.
    pub models: &'static [&'static str],
    /// What it does, for people.
    pub about: &'static str,
}

/// 10¹² operations a second of one core with AVX2 through our kernels, and of the smallest card worth the name.
const CORE_TERA: f64 = 0.025;
const CARD_TERA: f64 = 2.0;
/// A form is proposed if a tile takes at most this part of the lease: sources are larger than a tile as often as not.
const SHARE: f64 = 0.4;
/// Part of the memory that all proposed forms together may fill.
const FILL: f64 = 0.6;

const MIB: u64 = 1 << 20;

impl Needs {
    /// Of a form that this worker can do.
    pub fn of(form: &Form) -> Self {
        let needs = |tera_operations: f64, mib: u64, models: &'static [&'static str], about: &'static str| Self {
            tera_operations,
            memory_bytes: mib * MIB,
            is_per_tile: !matches!(form, Form::Caption | Form::Interrogation | Form::Nsfw | Form::Aesthetic),
            models,
            about,
        };
        match form {
            Form::Vectorize => needs(0.02, 200, &[], "turns a picture into a drawing"),
            Form::Palette => needs(0.001, 50, &[], "names the colours"),
            Form::Describe => needs(0.001, 50, &[], "size, format, fingerprints"),
            Form::Aesthetic => needs(
                0.17,
                1300,
                &["clip-vit-large-patch14", "aesthetic-predictor"],
                "how much people would like it",
            ),
            Form::Annotation => needs(0.001, 50, &[], "control pictures: canny, scribble"),
            Form::Nsfw => needs(0.005, 150, &["open-nsfw"], "safe for work or not"),
            Form::StripBackground => needs(0.05, 400, &["u2netp"], "cuts out what stands in front"),
            Form::Caption => needs(0.5, 1100, &["blip-base"], "says in a sentence what is shown"),
            Form::Interrogation => needs(
                0.2,
                1900,
                &["clip-vit-large-patch14", "interrogation-words"],
                "ranks words that fit",
            ),
            Form::RealEsrganX4Plus => needs(9.6, 900, &["realesrgan-x4plus"], "enlarges photographs 4×"),
            Form::RealEsrganX2Plus => needs(2.6, 700, &["realesrgan-x2plus"], "enlarges photographs 2×"),
            Form::RealEsrganX4PlusAnime6B => needs(3.2, 700, &["realesrgan-x4plus-anime-6b"], "enlarges drawings 4×"),
            Form::NmkdSiax => needs(9.6, 900, &["nmkd-siax"], "enlarges 4×"),
            Form::AnimeSharp4x => needs(9.6, 900, &["4x-animesharp"], "enlarges drawings 4×"),
            Form::Nomos8kSc4x => needs(9.6, 900, &["4xnomos8ksc"], "enlarges photographs 4×"),
            Form::LsdirPlus4x => needs(9.6, 900, &["4xlsdirplus"], "enlarges photographs 4×"),
            Form::NomosWebPhotoRealPlksr4x => needs(
                3.9,
                700,
                &["4xnomoswebphoto-realplksr"],
                "enlarges photographs of the web 4×",
            ),
            Form::Nomos2RealPlksrDysample4x => {
                needs(3.9, 700, &["4xnomos2-realplksr-dysample"], "enlarges photographs 4×")
            }
            Form::Nomos2HqDat24x => needs(8.0, 1500, &["4xnomos2-hq-dat2"], "enlarges good photographs 4×, slowly"),
            Form::ModernSpanimationV12x => needs(0.4, 400, &["2xmodernspanimationv1"], "enlarges drawings 2×, quickly"),
            Form::Gfpgan => needs(
                0.3,
                700,
                &["gfpgan-v1.4", "retinaface-resnet50", "parsenet"],
                "repairs faces",
            ),
            Form::GfpganV13 => needs(
                0.3,
                700,
                &["gfpgan-v1.3", "retinaface-resnet50", "parsenet"],
                "repairs faces",
            ),
            Form::RestoreFormer => needs(0.7, 700, &["restoreformer", "retinaface-resnet50"], "repairs faces"),
            Form::CodeFormers => needs(0.6, 800, &["codeformer", "retinaface-resnet50"], "repairs faces"),
            _ => needs(0.0, 0, &[], ""),
        }
    }

    /// Expected seconds for a tile.
    pub fn seconds(&self, machine: &Machine) -> f64 {
        let tera = if machine.has_card {
            CARD_TERA
        } else {
            CORE_TERA * machine.cores.max(1) as f64
        };
        self.tera_operations / tera
    }
}

/// Which of `forms` fit together, the quickest first into the memory. In the order of `forms`.
pub fn proposed(forms: &[Form], machine: &Machine) -> Vec<Form> {
    let mut order: Vec<(f64, &Form)> = forms
        .iter()
        .map(|form| (Needs::of(form).seconds(machine), form))
        .filter(|(seconds, _)| *seconds <= LEASE_SECONDS * SHARE)
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut left = machine.memory_bytes.map(|bytes| (bytes as f64 * FILL) as u64);
    let mut taken = Vec::new();
    for (_, form) in order {
        let needs = Needs::of(form).memory_bytes;
        match &mut left {
            Some(left) if *left < needs => continue,
            Some(left) => *left -= needs,
            None => {}
        }
        taken.push(form);
    }
    forms.iter().filter(|form| taken.contains(form)).cloned().collect()
}

/// Memory of this machine in bytes (Linux; elsewhere unknown).
pub fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use model_store::reference::local;

    use super::*;
    use crate::config::Config;
    use crate::forms::KNOWN;

    fn fits(has_card: bool, cores: usize, gib: u64) -> Vec<Form> {
        let forms: Vec<Form> = KNOWN
            .into_iter()
            .filter(|form| Config::default().wanted().has(form))
            .collect();
        let machine = Machine {
            has_card,
            cores,
            memory_bytes: Some(gib << 30),
        };
        proposed(&forms, &machine)
    }

    #[test]
    fn a_laptop_without_a_card_gets_what_it_can_do_in_time() {
        let small = fits(false, 4, 8);
        for form in [Form::Vectorize, Form::Nsfw, Form::StripBackground, Form::Gfpgan] {
            assert!(small.contains(&form), "{form:?}: {small:?}");
        }
        let laptop = fits(false, 4, 16);
        for form in [
            Form::Vectorize,
            Form::Nsfw,
            Form::StripBackground,
            Form::Caption,
            Form::RealEsrganX2Plus,
            Form::ModernSpanimationV12x,
        ] {
            assert!(laptop.contains(&form), "{form:?}: {laptop:?}");
        }
        assert!(!laptop.contains(&Form::RealEsrganX4Plus) && !laptop.contains(&Form::Nomos2HqDat24x));
    }

    #[test]
    fn a_tiny_machine_gets_less_and_a_card_everything() {
        let tiny = fits(false, 1, 1);
        assert!(tiny.contains(&Form::Nsfw) && !tiny.contains(&Form::Caption), "{tiny:?}");
        assert!(tiny.len() >= 2);
        let large = fits(true, 8, 32);
        assert_eq!(large.len(), KNOWN.len() - 3, "{large:?}");
        let small_card = fits(true, 8, 4);
        assert!(small_card.len() < large.len() && small_card.contains(&Form::Nsfw));
    }

    #[test]
    fn every_name_to_pull_is_one_of_the_catalogue() {
        let catalogue = local::builtin();
        for form in &KNOWN {
            for model in Needs::of(form).models {
                assert!(catalogue.find(model).is_some(), "{form:?}: {model}");
            }
        }
    }
}
