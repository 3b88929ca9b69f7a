//! The names tensors have in the files people share, and ours.

use candle_core::Tensor;

use crate::weights::Part;

/// What of a file's tensor is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    Whole,
    /// One of three equal parts of its rows (0, 1 or 2).
    Third(usize),
    /// Its transpose.
    Transposed,
}

impl Cut {
    /// The shape of what is ours.
    pub fn shape(self, whole: &[usize]) -> Vec<usize> {
        let mut shape = whole.to_vec();
        match self {
            Self::Whole => {}
            Self::Third(_) => {
                if let Some(rows) = shape.first_mut() {
                    *rows /= 3;
                }
            }
            Self::Transposed => shape.reverse(),
        }
        shape
    }

    /// Cuts it out.
    pub fn apply(self, whole: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Whole => Ok(whole.clone()),
            Self::Third(which) => {
                let rows = whole.dim(0)? / 3;
                whole.narrow(0, which * rows, rows)?.force_contiguous()
            }
            Self::Transposed => whole.t()?.contiguous(),
        }
    }
}

/// For each tensor that we know of the files of one part: our name, its name, and what of it is ours.
pub fn names(theirs: &[&str], part: Part) -> Vec<(String, String, Cut)> {
    let names = theirs.iter().copied();
    match part {
        Part::Whole => names.flat_map(|name| whole(name, name)).collect(),
        Part::UNet => {
            let diffusers = UNetNames::new(names.clone());
            names
                .filter_map(|name| {
                    let ours = match name.strip_prefix("model.diffusion_model.") {
                        Some(rest) => rest.to_owned(),
                        None if diffusers.is_empty() => name.to_owned(),
                        None => diffusers.to_ldm(name)?,
                    };
                    Some((format!("unet.{ours}"), name.to_owned(), Cut::Whole))
                })
                .collect()
        }
        Part::Vae => {
            let levels = count(names.clone(), "decoder.up_blocks.");
            names
                .map(|name| {
                    let rest = name.strip_prefix("first_stage_model.").unwrap_or(name);
                    (format!("vae.{}", vae_to_ldm(rest, levels)), name.to_owned(), Cut::Whole)
                })
                .collect()
        }
        Part::Text(encoder) => names.flat_map(|name| text(encoder, name, name)).collect(),
    }
}

fn whole(full: &str, name: &str) -> Vec<(String, String, Cut)> {
    const TEXT: [(&str, &str); 5] = [
        ("conditioner.embedders.0.transformer.", "clip_l"),
        // Alone, as in Stability's own files of SD 2 for their newer code.
        ("conditioner.embedders.0.model.", "clip_h"),
        ("conditioner.embedders.1.model.", "clip_g"),
        ("cond_stage_model.transformer.", "clip_l"),
        ("cond_stage_model.model.", "clip_h"),
    ];
    if let Some(rest) = name.strip_prefix("model.diffusion_model.") {
        return vec![(format!("unet.{rest}"), full.to_owned(), Cut::Whole)];
    }
    if let Some(rest) = name.strip_prefix("first_stage_model.") {
        return vec![(format!("vae.{rest}"), full.to_owned(), Cut::Whole)];
    }
    for (prefix, encoder) in TEXT {
        if let Some(rest) = name.strip_prefix(prefix) {
            return text(encoder, full, rest);
        }
    }
    // `v_pred`, `ztsnr` and the like say how the model was trained.
    vec![(name.to_owned(), full.to_owned(), Cut::Whole)]
}

/// Hugging Face's and OpenCLIP's text encoders.
fn text(encoder: &str, full: &str, name: &str) -> Vec<(String, String, Cut)> {
    let one = |ours: String, cut| vec![(format!("{encoder}.{ours}"), full.to_owned(), cut)];
    if name.starts_with("text_model.") || name == "text_projection.weight" {
        return one(name.to_owned(), Cut::Whole);
    }
    if name.starts_with("embeddings.") || name.starts_with("encoder.") || name.starts_with("final_layer_norm.") {
        return one(format!("text_model.{name}"), Cut::Whole);
    }
    match name {
        "positional_embedding" => return one("text_model.embeddings.position_embedding.weight".into(), Cut::Whole),
        "token_embedding.weight" => return one("text_model.embeddings.token_embedding.weight".into(), Cut::Whole),
        "text_projection" => return one("text_projection.weight".into(), Cut::Transposed),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("ln_final.") {
        return one(format!("text_model.final_layer_norm.{rest}"), Cut::Whole);
    }
    let Some((layer, rest)) = name
        .strip_prefix("transformer.resblocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Vec::new();
    };
    let base = format!("text_model.encoder.layers.{layer}");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        return ["q_proj", "k_proj", "v_proj"]
            .into_iter()
            .enumerate()
            .flat_map(|(i, head)| one(format!("{base}.self_attn.{head}.{kind}"), Cut::Third(i)))
            .collect();
    }
    let rest = rest
        .replace("ln_1.", "layer_norm1.")
        .replace("ln_2.", "layer_norm2.")
        .replace("mlp.c_fc.", "mlp.fc1.")
        .replace("mlp.c_proj.", "mlp.fc2.")
        .replace("attn.out_proj.", "self_attn.out_proj.");
    one(format!("{base}.{rest}"), Cut::Whole)
}

/// One more than the largest number that follows `prefix`.
fn count<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> usize {
    names
        .filter_map(|name| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok())
        .max()
        .map_or(0, |n| n + 1)
}

fn vae_to_ldm(name: &str, levels: usize) -> String {
    let mut name = name.to_owned();
    for side in ["encoder.down_blocks.", "decoder.up_blocks."] {
        let Some(rest) = name.strip_prefix(side) else { continue };
        let Some((level, rest)) = rest.split_once('.') else {
            continue;
        };
        let Ok(level) = level.parse::<usize>() else { continue };
        let rest = rest
            .replace("resnets.", "block.")
            .replace("downsamplers.0.", "downsample.")
            .replace("upsamplers.0.", "upsample.");
        name = if side.starts_with('e') {
            format!("encoder.down.{level}.{rest}")
        } else {
            format!("decoder.up.{}.{rest}", levels.saturating_sub(level + 1))
        };
    }
    const PAIRS: [(&str, &str); 13] = [
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("attn_1.group_norm.", "attn_1.norm."),
        ("attn_1.to_q.", "attn_1.q."),
        ("attn_1.to_k.", "attn_1.k."),
        ("attn_1.to_v.", "attn_1.v."),
        ("attn_1.to_out.0.", "attn_1.proj_out."),
        ("attn_1.query.", "attn_1.q."),
        ("attn_1.key.", "attn_1.k."),
        ("attn_1.value.", "attn_1.v."),
        ("conv_norm_out.", "norm_out."),
        ("conv_shortcut.", "nin_shortcut."),
    ];
    for (theirs, ours) in PAIRS {
        name = name.replace(theirs, ours);
    }
    name.replace("attn_1.proj_attn.", "attn_1.proj_out.")
}

/// The U-Net's blocks in diffusers' names and in LDM's, both without trailing dots, found by walking its structure.
pub struct UNetNames {
    pairs: Vec<(String, String)>, // (diffusers, LDM)
}

impl UNetNames {
    /// Empty unless the names are diffusers'.
    pub fn new<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let mut pairs = Vec::new();
        let levels = count(names.clone(), "down_blocks.");
        if levels == 0 {
            return Self { pairs };
        }
        let exists = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
        let mut block = 1;
        for level in 0..levels {
            let base = format!("down_blocks.{level}");
            for layer in 0..count(names.clone(), &format!("{base}.resnets.")) {
                pairs.push((format!("{base}.resnets.{layer}"), format!("input_blocks.{block}.0")));
                pairs.push((format!("{base}.attentions.{layer}"), format!("input_blocks.{block}.1")));
                block += 1;
            }
            if exists(&format!("{base}.downsamplers.")) {
                pairs.push((
                    format!("{base}.downsamplers.0.conv"),
                    format!("input_blocks.{block}.0.op"),
                ));
                block += 1;
            }
        }
        pairs.extend(middle());
        let mut block = 0;
        for level in 0..levels {
            let base = format!("up_blocks.{level}");
            let layers = count(names.clone(), &format!("{base}.resnets."));
            for layer in 0..layers {
                pairs.push((format!("{base}.resnets.{layer}"), format!("output_blocks.{block}.0")));
                pairs.push((format!("{base}.attentions.{layer}"), format!("output_blocks.{block}.1")));
                if layer + 1 == layers {
                    let slot = 1 + usize::from(exists(&format!("{base}.attentions.")));
                    pairs.push((
                        format!("{base}.upsamplers.0.conv"),
                        format!("output_blocks.{block}.{slot}.conv"),
                    ));
                }
                block += 1;
            }
        }
        pairs.extend(ends());
        Self { pairs }
    }

    /// The same from LDM's names.
    pub fn from_ldm<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let exists = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
        let mut pairs: Vec<(String, String)> = Vec::new();
        let (mut level, mut layer) = (0, 0);
        for block in 1..count(names.clone(), "input_blocks.") {
            let ldm = format!("input_blocks.{block}");
            if exists(&format!("{ldm}.0.op.")) {
                pairs.push((
                    format!("down_blocks.{level}.downsamplers.0.conv"),
                    format!("{ldm}.0.op"),
                ));
                (level, layer) = (level + 1, 0);
            } else {
                pairs.push((format!("down_blocks.{level}.resnets.{layer}"), format!("{ldm}.0")));
                pairs.push((format!("down_blocks.{level}.attentions.{layer}"), format!("{ldm}.1")));
                layer += 1;
            }
        }
        pairs.extend(middle());
        (level, layer) = (0, 0);
        for block in 0..count(names.clone(), "output_blocks.") {
            let ldm = format!("output_blocks.{block}");
            pairs.push((format!("up_blocks.{level}.resnets.{layer}"), format!("{ldm}.0")));
            pairs.push((format!("up_blocks.{level}.attentions.{layer}"), format!("{ldm}.1")));
            layer += 1;
            for slot in 1..3 {
                if exists(&format!("{ldm}.{slot}.conv.")) {
                    pairs.push((
                        format!("up_blocks.{level}.upsamplers.0.conv"),
                        format!("{ldm}.{slot}.conv"),
                    ));
                    (level, layer) = (level + 1, 0);
                }
            }
        }
        pairs.extend(ends());
        Self { pairs }
    }

    fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// A whole tensor name in LDM's terms.
    pub fn to_ldm(&self, name: &str) -> Option<String> {
        let (ldm, rest) = self.pairs.iter().find_map(|(theirs, ldm)| {
            let rest = name.strip_prefix(theirs.as_str())?;
            rest.starts_with('.').then_some((ldm, rest))
        })?;
        Some(format!("{ldm}{}", replace_first(rest, RESNET, false)))
    }

    /// A module name (no `.weight`) in diffusers' terms.
    pub fn to_diffusers(&self, module: &str) -> Option<String> {
        self.pairs.iter().find_map(|(diffusers, ldm)| {
            let rest = module.strip_prefix(ldm.as_str())?;
            if !(rest.is_empty() || rest.starts_with('.')) {
                return None;
            }
            // An upsampler's `output_blocks.2.1.conv` is no attention.
            if diffusers.contains("attentions") && rest == ".conv" {
                return None;
            }
            let rest = replace_first(&format!("{rest}."), RESNET, true);
            Some(format!("{diffusers}{}", rest.trim_end_matches('.')))
        })
    }
}

const RESNET: &[(&str, &str)] = &[
    (".norm1.", ".in_layers.0."),
    (".conv1.", ".in_layers.2."),
    (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."),
    (".conv2.", ".out_layers.3."),
    (".conv_shortcut.", ".skip_connection."),
];

/// Replaces a resnet's part at the beginning of `rest`.
fn replace_first(rest: &str, pairs: &[(&str, &str)], backwards: bool) -> String {
    for (theirs, ours) in pairs {
        let (from, to) = if backwards { (ours, theirs) } else { (theirs, ours) };
        if let Some(tail) = rest.strip_prefix(from) {
            return format!("{to}{tail}");
        }
    }
    rest.to_owned()
}

fn middle() -> Vec<(String, String)> {
    vec![
        ("mid_block.resnets.0".into(), "middle_block.0".into()),
        ("mid_block.attentions.0".into(), "middle_block.1".into()),
        ("mid_block.resnets.1".into(), "middle_block.2".into()),
    ]
}

fn ends() -> Vec<(String, String)> {
    vec![
        ("time_embedding.linear_1".into(), "time_embed.0".into()),
        ("time_embedding.linear_2".into(), "time_embed.2".into()),
        ("add_embedding.linear_1".into(), "label_emb.0.0".into()),
        ("add_embedding.linear_2".into(), "label_emb.0.2".into()),
        ("conv_in".into(), "input_blocks.0.0".into()),
        ("conv_norm_out".into(), "out.0".into()),
        ("conv_out".into(), "out.2".into()),
    ]
}
