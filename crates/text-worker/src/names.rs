//! The Horde's names of text models. Its reference knows each by `ORG/NAME`, `aphrodite/ORG/NAME` and `koboldcpp/NAME`.

/// `koboldcpp/NAME` from a GGUF file's stem, without what says how it was made smaller: the Horde knows models by
/// their plain names, and an unknown name costs most of the kudos.
pub fn horde_name(file_stem: &str) -> String {
    format!("koboldcpp/{}", plain(file_stem))
}

/// The name for what another program calls `model`: a name in the Horde's form is kept (without what says how it was made
/// smaller), of a path the file counts, and `ORG/NAME` is taken as Aphrodite's. Whoever made a model smaller is not who
/// made it: then the name goes without them.
pub fn bridged_name(model: &str) -> String {
    let (model, is_file) = match model.strip_suffix(".gguf") {
        Some(stem) => (stem, true),
        None => (model, false),
    };
    match model.split_once('/') {
        Some((kind @ ("koboldcpp" | "aphrodite" | "tabbyapi"), name)) if !name.is_empty() => {
            format!("{kind}/{}", plain(name))
        }
        Some((organisation, name)) if !is_file && is_organisation(organisation) && is_plain(name) => {
            format!("aphrodite/{organisation}/{name}")
        }
        _ => horde_name(model.rsplit(['/', '\\']).next().unwrap_or(model)),
    }
}

/// Whether `text` may be who made a model, rather than a folder.
fn is_organisation(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) && !text.starts_with('.')
}

/// Whether `name` is a model's own and nothing more.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && plain(name) == name
}

/// `stem` without marks of quantisation, format and part-of-several at its end.
fn plain(stem: &str) -> &str {
    let mut name = stem;
    // Marks hold separators themselves: the longest end that is one goes first.
    while let Some((at, _)) = name
        .char_indices()
        .find(|(at, c)| *at > 0 && "-._:".contains(*c) && is_mark(&name[at + 1..]))
    {
        name = &name[..at];
    }
    name
}

/// Marks that are words.
const WORDS: [&str; 27] = [
    "GGUF",
    "F16",
    "FP16",
    "F32",
    "BF16",
    "MXFP4",
    "NVFP4",
    "FP4",
    "FP8",
    "NF4",
    "INT4",
    "INT8",
    "I1",
    "IMAT",
    "IMATRIX",
    "UD",
    "GPTQ",
    "AWQ",
    "HQQ",
    "AQLM",
    "EXL2",
    "EXL3",
    "MLX",
    "BNB",
    "DYNAMIC",
    "QUANTIZED",
    "LATEST",
];

/// Whether `text` says how a model was made smaller or stored: a word, `Q4_K_M`, `4.25bpw`, `4bit`, `w4a16`, `128g`,
/// `00001-of-00003`.
fn is_mark(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    if WORDS.contains(&upper.as_str()) {
        return true;
    }
    if let Some(bits) = ["IQ", "TQ", "Q"].iter().find_map(|start| upper.strip_prefix(start)) {
        let is_first = bits.starts_with(|c: char| c.is_ascii_digit());
        return is_first && bits.chars().all(|c| c.is_ascii_digit() || "_KSMLXNP".contains(c));
    }
    if let Some(bits) = upper.strip_suffix("BPW") {
        return bits.starts_with(|c: char| c.is_ascii_digit())
            && bits.chars().all(|c| c.is_ascii_digit() || "._".contains(c));
    }
    if let Some((weights, activations)) = upper.strip_prefix('W').and_then(|rest| rest.split_once('A')) {
        return number(weights) && number(activations);
    }
    if let Some((part, of)) = upper.split_once("-OF-") {
        return number(part) && number(of) && part.len() == 5 && of.len() == 5;
    }
    ["BIT", "G"]
        .iter()
        .any(|unit| upper.strip_suffix(unit).is_some_and(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_files_are_no_part_of_a_models_name() {
        for (stem, name) in [
            ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
            ("Llama-3.1-SuperNova-Lite.Q4_K_M", "Llama-3.1-SuperNova-Lite"),
            ("L3-8B-Stheno-v3.2-Q6_K_L", "L3-8B-Stheno-v3.2"),
            ("Mistral-Nemo-12B-i1-GGUF-IQ3_XXS", "Mistral-Nemo-12B"),
            ("Qwen3-30B-A3B-Q8_0-00001-of-00003", "Qwen3-30B-A3B"),
            ("Qwen3-8B-UD-Q4_K_XL", "Qwen3-8B"),
            ("Llama-3.2-3B-Instruct-Q4_0_4_4", "Llama-3.2-3B-Instruct"),
            ("gemma-3-12b-it-bf16", "gemma-3-12b-it"),
            (
                "Phi-3.5-mini-instruct_Uncensored-Q5_K_S",
                "Phi-3.5-mini-instruct_Uncensored",
            ),
            ("Bitnet-2B-TQ1_0", "Bitnet-2B"),
            ("gpt-oss-20b-mxfp4", "gpt-oss-20b"),
            ("plain", "plain"),
            ("Mixtral-8x7B-v0.1", "Mixtral-8x7B-v0.1"),
            ("gemma-2-2b", "gemma-2-2b"),
            ("Q4_0", "Q4_0"),
            ("", ""),
        ] {
            assert_eq!(horde_name(stem), format!("koboldcpp/{name}"));
        }
    }

    #[test]
    fn a_backends_own_name_becomes_the_hordes() {
        for (model, name) in [
            // KoboldCpp says the file, or what its owner named.
            (
                "koboldcpp/SmolLM2-135M-Instruct.Q4_1",
                "koboldcpp/SmolLM2-135M-Instruct",
            ),
            ("koboldcpp/Mistral-7B.Q4_K_M", "koboldcpp/Mistral-7B"),
            ("koboldcpp/L3-8B-Stheno-v3.2", "koboldcpp/L3-8B-Stheno-v3.2"),
            // Aphrodite's own KoboldAI routes, and its models by their repository.
            (
                "aphrodite/PygmalionAI/pygmalion-2-7b",
                "aphrodite/PygmalionAI/pygmalion-2-7b",
            ),
            ("aphrodite/org/Name-7B-GPTQ", "aphrodite/org/Name-7B"),
            ("PygmalionAI/pygmalion-2-7b", "aphrodite/PygmalionAI/pygmalion-2-7b"),
            // vLLM, whose quantised repositories are seldom the maker's.
            (
                "mistralai/Mistral-7B-Instruct-v0.2",
                "aphrodite/mistralai/Mistral-7B-Instruct-v0.2",
            ),
            (
                "TheBloke/Mistral-7B-Instruct-v0.2-AWQ",
                "koboldcpp/Mistral-7B-Instruct-v0.2",
            ),
            (
                "unsloth/Llama-3.3-70B-Instruct-bnb-4bit",
                "koboldcpp/Llama-3.3-70B-Instruct",
            ),
            (
                "RedHatAI/Qwen2.5-7B-Instruct-quantized.w4a16",
                "koboldcpp/Qwen2.5-7B-Instruct",
            ),
            ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "koboldcpp/Qwen2.5-7B-Instruct"),
            // TabbyAPI says the folder.
            (
                "Mistral-7B-Instruct-v0.3-exl2-4.25bpw",
                "koboldcpp/Mistral-7B-Instruct-v0.3",
            ),
            ("Llama-3-8B-exl2_6_5bpw", "koboldcpp/Llama-3-8B"),
            ("tabbyapi/Name-7B-exl3", "tabbyapi/Name-7B"),
            // llama-server says the path, an alias, or repository and quantisation.
            ("/models/Name-7B-Q5_K_S.gguf", "koboldcpp/Name-7B"),
            ("models/Name-7B.gguf", "koboldcpp/Name-7B"),
            ("./Name-7B.gguf", "koboldcpp/Name-7B"),
            (r"C:\models\Name-7B.Q8_0.gguf", "koboldcpp/Name-7B"),
            ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "koboldcpp/gemma-3-4b-it"),
            ("llama3.2:3b-instruct-q4_K_M", "koboldcpp/llama3.2:3b-instruct"),
            // Nothing that is left would be a name.
            ("koboldcpp/", "koboldcpp/"),
        ] {
            assert_eq!(bridged_name(model), name, "{model}");
        }
    }
}
