//! Whether a model's tensors belong together: nothing missing in between, and shapes that fit each other. Told from the
//! headers alone, so that a damaged checkpoint is refused by the name of its tensor before a picture is begun.

use super::Family;
use crate::{
    Result,
    weights::{SCALE, Weights},
};

/// Below these every tensor is part of a layer.
const STRUCTURE: [&str; 9] = [
    "unet.input_blocks.",
    "unet.middle_block.",
    "unet.output_blocks.",
    "clip_l.text_model.encoder.",
    "clip_g.text_model.encoder.",
    "clip_h.text_model.encoder.",
    "vae.encoder.",
    "vae.decoder.",
    "unet.time_embed.",
];

/// Layers that have no bias.
const WITHOUT_BIAS: [&str; 3] = [".to_q.weight", ".to_k.weight", ".to_v.weight"];

/// A dimension of one tensor that equals a dimension of another of the same layer.
type Fit = ((&'static str, usize), (&'static str, usize));

const FITS: [Fit; 19] = [
    ((".in_layers.2.weight", 1), (".in_layers.0.weight", 0)),
    ((".out_layers.0.weight", 0), (".in_layers.2.weight", 0)),
    ((".out_layers.3.weight", 1), (".out_layers.0.weight", 0)),
    ((".emb_layers.1.weight", 0), (".in_layers.2.weight", 0)),
    ((".skip_connection.weight", 1), (".in_layers.0.weight", 0)),
    ((".skip_connection.weight", 0), (".in_layers.2.weight", 0)),
    ((".attn1.to_q.weight", 1), (".norm1.weight", 0)),
    ((".attn1.to_k.weight", 1), (".norm1.weight", 0)),
    ((".attn1.to_v.weight", 1), (".norm1.weight", 0)),
    ((".attn2.to_q.weight", 1), (".norm2.weight", 0)),
    ((".attn2.to_v.weight", 1), (".attn2.to_k.weight", 1)),
    ((".to_k.weight", 0), (".to_q.weight", 0)),
    ((".to_out.0.weight", 1), (".to_v.weight", 0)),
    ((".ff.net.0.proj.weight", 1), (".norm3.weight", 0)),
    ((".conv1.weight", 1), (".norm1.weight", 0)),
    ((".conv2.weight", 1), (".norm2.weight", 0)),
    ((".self_attn.q_proj.weight", 1), (".layer_norm1.weight", 0)),
    ((".mlp.fc1.weight", 1), (".layer_norm2.weight", 0)),
    ((".mlp.fc2.weight", 1), (".mlp.fc1.weight", 0)),
];

/// Looks at the names and shapes of all layers.
///
/// # Errors
/// A tensor is missing or does not fit, by its name and its file.
pub fn check(weights: &Weights, family: Family) -> Result<()> {
    let context = context_width(weights, family);
    let embedding = weights.shape("unet.time_embed.2.weight").unwrap_or_default();
    for prefix in STRUCTURE {
        for rest in weights.names_under(prefix) {
            let name = format!("{prefix}{rest}");
            whole(weights, &name)?;
            for ((mine, my_place), (theirs, place)) in FITS {
                let Some(layer) = name.strip_suffix(mine) else { continue };
                let other = format!("{layer}{theirs}");
                let expected = weights.shape(&other).and_then(|shape| shape.get(place).copied());
                dimension(weights, &name, my_place, expected, &format!("`{other}`"))?;
            }
            if name.ends_with(".emb_layers.1.weight") {
                dimension(
                    weights,
                    &name,
                    1,
                    embedding.first().copied(),
                    "`unet.time_embed.2.weight`",
                )?;
            }
            if name.ends_with(".attn2.to_k.weight") {
                dimension(weights, &name, 1, context, "the text encoder")?;
            }
            if let Some(layer) = name.strip_suffix(".ff.net.2.weight") {
                let other = format!("{layer}.ff.net.0.proj.weight");
                let doubled = weights.shape(&other).and_then(|shape| shape.first().copied());
                dimension(weights, &name, 1, doubled.map(|width| width / 2), &format!("`{other}`"))?;
            }
        }
    }
    Ok(())
}

/// Every tensor of a layer has been read; one that has not belongs to a layer of which something is missing.
///
/// # Errors
/// Such a tensor, by its name and its file.
pub fn check_all_used(weights: &Weights, is_used: impl Fn(&str) -> bool) -> Result<()> {
    let of_layers = |prefix: &'static str| weights.names_under(prefix).map(move |rest| format!("{prefix}{rest}"));
    let mut alone = STRUCTURE.into_iter().flat_map(of_layers).filter(|name| !is_used(name));
    // Scales of eight-bit weights are read with these, and those of inputs only matter to cards that multiply in eight bits.
    match alone.find(|name| !name.ends_with(SCALE) && !name.ends_with(".scale_input")) {
        None => Ok(()),
        Some(name) => Err(weights.damaged(&name, "stands alone: the layer or the block before it is missing")),
    }
}

/// A weight has its bias and a bias its weight, of one length.
fn whole(weights: &Weights, name: &str) -> Result<()> {
    if let Some(module) = name.strip_suffix(".bias") {
        let weight = format!("{module}.weight");
        return match weights.shape(&weight).and_then(|shape| shape.first().copied()) {
            None => Err(weights.damaged(&weight, "is missing")),
            rows => dimension(weights, name, 0, rows, &format!("`{weight}`")),
        };
    }
    let Some(module) = name.strip_suffix(".weight") else {
        return Ok(());
    };
    let bias = format!("{module}.bias");
    if weights.has(&bias) || WITHOUT_BIAS.iter().any(|end| name.ends_with(end)) {
        Ok(())
    } else {
        Err(weights.damaged(&bias, "is missing"))
    }
}

fn dimension(weights: &Weights, name: &str, place: usize, expected: Option<usize>, other: &str) -> Result<()> {
    let shape = weights.shape(name).unwrap_or_default();
    match expected {
        Some(expected) if shape.get(place) != Some(&expected) => Err(weights.damaged(
            name,
            &format!("has the shape {shape:?}, but {expected} at place {place} would fit {other}"),
        )),
        _ => Ok(()),
    }
}

/// Numbers per token that the text encoders give together; `None` where one is missing.
fn context_width(weights: &Weights, family: Family) -> Option<usize> {
    let width = |encoder: &str| {
        let name = format!("{encoder}.text_model.embeddings.token_embedding.weight");
        weights.shape(&name)?.last().copied()
    };
    match family {
        Family::Sd1 => width("clip_l"),
        Family::Sd2 => width("clip_h"),
        Family::Sdxl => width("clip_l")?.checked_add(width("clip_g")?),
    }
}
