//! The Horde's names of text models.

/// `koboldcpp/NAME` from a GGUF file's stem, without what says how it was made smaller: the Horde knows models by
/// their plain names, and an unknown name costs most of the kudos.
pub fn horde_name(file_stem: &str) -> String {
    format!("koboldcpp/{}", plain(file_stem))
}

/// The name for what another program calls `model`: a name in the Horde's form is kept (without what says how it was made
/// smaller), of a path the file counts.
pub fn bridged_name(model: &str) -> String {
    let model = model.strip_suffix(".gguf").unwrap_or(model);
    match model.split_once('/') {
        Some((kind @ ("koboldcpp" | "aphrodite" | "tabbyapi"), name)) if !name.is_empty() => {
            format!("{kind}/{}", plain(name))
        }
        _ => horde_name(model.rsplit(['/', '\\']).next().unwrap_or(model)),
    }
}

/// `stem` without quantisation, format and part-of-several suffixes.
fn plain(stem: &str) -> &str {
    let mut name = stem;
    while let Some((rest, last)) = name.rsplit_once(['-', '.', '_']).filter(|(rest, _)| !rest.is_empty()) {
        // Quantisations hold underscores themselves: look at everything behind the last `-` or `.` first.
        let whole = name
            .rsplit_once(['-', '.'])
            .filter(|(rest, last)| !rest.is_empty() && is_suffix(last));
        name = match whole {
            Some((rest, _)) => rest,
            None if is_part(name) => part_of(name),
            None if is_suffix(last) && !last.is_empty() => rest,
            None => break,
        };
    }
    name
}

fn is_suffix(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    const WORDS: [&str; 10] = [
        "GGUF", "F16", "FP16", "F32", "BF16", "MXFP4", "I1", "IMAT", "IMATRIX", "UD",
    ];
    if WORDS.contains(&upper.as_str()) {
        return true;
    }
    let bits = ["IQ", "TQ", "Q"].iter().find_map(|start| upper.strip_prefix(start));
    let Some(bits) = bits else {
        return false;
    };
    bits.starts_with(|c: char| c.is_ascii_digit()) && bits.chars().all(|c| c.is_ascii_digit() || "_KSMLXN".contains(c))
}

/// Whether it ends like `-00001-of-00003`.
fn is_part(name: &str) -> bool {
    part_of(name) != name
}

fn part_of(name: &str) -> &str {
    let Some((rest, count)) = name.rsplit_once("-of-") else {
        return name;
    };
    let Some((rest, number)) = rest.rsplit_once('-') else {
        return name;
    };
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(count) && digits(number) { rest } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_files_are_no_part_of_a_models_name() {
        for (stem, name) in [
            ("SmolLM2-135M-Instruct.Q4_1", "koboldcpp/SmolLM2-135M-Instruct"),
            ("Llama-3.1-SuperNova-Lite.Q4_K_M", "koboldcpp/Llama-3.1-SuperNova-Lite"),
            ("Mistral-Nemo-12B-i1-GGUF-IQ3_XXS", "koboldcpp/Mistral-Nemo-12B"),
            ("Qwen3-30B-A3B-Q8_0-00001-of-00003", "koboldcpp/Qwen3-30B-A3B"),
            ("gemma-3-12b-it-bf16", "koboldcpp/gemma-3-12b-it"),
            ("plain", "koboldcpp/plain"),
            ("Mixtral-8x7B-v0.1", "koboldcpp/Mixtral-8x7B-v0.1"),
            ("Q4_0", "koboldcpp/Q4_0"),
        ] {
            assert_eq!(horde_name(stem), name);
        }
    }

    #[test]
    fn a_backends_own_name_becomes_the_hordes() {
        for (model, name) in [
            ("koboldcpp/Mistral-7B.Q4_K_M", "koboldcpp/Mistral-7B"),
            ("aphrodite/org/Name-7B", "aphrodite/org/Name-7B"),
            ("/models/Name-7B-Q5_K_S.gguf", "koboldcpp/Name-7B"),
            ("org/Name-7B", "koboldcpp/Name-7B"),
        ] {
            assert_eq!(bridged_name(model), name);
        }
    }
}
