//! Names and shapes of a checkpoint of Stable Diffusion's form, and a file of random numbers that has them.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};

/// Names in the layout of single-file checkpoints (LDM), with their shapes.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// The sizes of a U-Net.
pub struct UNetShape {
    /// Transformer blocks after each residual block of a level; 0 for none.
    pub depths: &'static [usize],
    /// Channels of each level as multiples of 320.
    pub multiples: &'static [usize],
    /// Width of the text.
    pub context: usize,
    /// Width of the label vector (SDXL).
    pub label: Option<usize>,
}

/// Stable Diffusion 1.5: 860 M parameters.
pub const SD15: UNetShape = UNetShape {
    depths: &[1, 1, 1, 0],
    multiples: &[1, 2, 4, 4],
    context: 768,
    label: None,
};

/// SDXL's levels and widths with 2 instead of 10 transformer blocks in the lowest level, so that every engine fits in
/// 8 GB as f32: 0.9 of 2.6 G parameters.
pub const SDXL: UNetShape = UNetShape {
    depths: &[0, 2, 2],
    multiples: &[1, 2, 4],
    context: 2048,
    label: Some(2816),
};

struct List {
    shapes: Shapes,
    prefix: String,
}

impl List {
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.shapes
            .push((format!("{}{name}.weight", self.prefix), shape.to_vec()));
        self.shapes
            .push((format!("{}{name}.bias", self.prefix), vec![shape[0]]));
    }

    fn bare(&mut self, name: &str, shape: &[usize]) {
        self.shapes
            .push((format!("{}{name}.weight", self.prefix), shape.to_vec()));
    }

    fn res(&mut self, at: &str, c_in: usize, c_out: usize) {
        self.layer(&format!("{at}.in_layers.0"), &[c_in]);
        self.layer(&format!("{at}.in_layers.2"), &[c_out, c_in, 3, 3]);
        self.layer(&format!("{at}.emb_layers.1"), &[c_out, 1280]);
        self.layer(&format!("{at}.out_layers.0"), &[c_out]);
        self.layer(&format!("{at}.out_layers.3"), &[c_out, c_out, 3, 3]);
        if c_in != c_out {
            self.layer(&format!("{at}.skip_connection"), &[c_out, c_in, 1, 1]);
        }
    }

    fn transformer(&mut self, at: &str, c: usize, depth: usize, shape: &UNetShape) {
        // SD 1 projects with 1x1 convolutions, SDXL with linear layers.
        let projection: &[usize] = if shape.label.is_some() { &[c, c] } else { &[c, c, 1, 1] };
        self.layer(&format!("{at}.norm"), &[c]);
        self.layer(&format!("{at}.proj_in"), projection);
        self.layer(&format!("{at}.proj_out"), projection);
        for block in 0..depth {
            let at = format!("{at}.transformer_blocks.{block}");
            for (attention, context) in [("attn1", c), ("attn2", shape.context)] {
                self.bare(&format!("{at}.{attention}.to_q"), &[c, c]);
                self.bare(&format!("{at}.{attention}.to_k"), &[c, context]);
                self.bare(&format!("{at}.{attention}.to_v"), &[c, context]);
                self.layer(&format!("{at}.{attention}.to_out.0"), &[c, c]);
            }
            for norm in ["norm1", "norm2", "norm3"] {
                self.layer(&format!("{at}.{norm}"), &[c]);
            }
            self.layer(&format!("{at}.ff.net.0.proj"), &[8 * c, c]);
            self.layer(&format!("{at}.ff.net.2"), &[c, 4 * c]);
        }
    }
}

/// The U-Net's tensors.
pub fn unet(shape: &UNetShape) -> Shapes {
    let mut list = List {
        shapes: Vec::new(),
        prefix: "model.diffusion_model.".into(),
    };
    list.layer("time_embed.0", &[1280, 320]);
    list.layer("time_embed.2", &[1280, 1280]);
    if let Some(label) = shape.label {
        list.layer("label_emb.0.0", &[1280, label]);
        list.layer("label_emb.0.2", &[1280, 1280]);
    }
    list.layer("input_blocks.0.0", &[320, 4, 3, 3]);
    let levels = shape.multiples.len();
    let mut skips = vec![320];
    let mut c = 320;
    for (level, (multiple, depth)) in shape.multiples.iter().zip(shape.depths).enumerate() {
        for _ in 0..2 {
            let at = format!("input_blocks.{}", skips.len());
            list.res(&format!("{at}.0"), c, 320 * multiple);
            c = 320 * multiple;
            if *depth > 0 {
                list.transformer(&format!("{at}.1"), c, *depth, shape);
            }
            skips.push(c);
        }
        if level + 1 < levels {
            list.layer(&format!("input_blocks.{}.0.op", skips.len()), &[c, c, 3, 3]);
            skips.push(c);
        }
    }
    let depth = shape
        .depths
        .iter()
        .rev()
        .find(|depth| **depth > 0)
        .copied()
        .unwrap_or(1);
    list.res("middle_block.0", c, c);
    list.transformer("middle_block.1", c, depth, shape);
    list.res("middle_block.2", c, c);
    let mut block = 0;
    for level in (0..levels).rev() {
        let depth = shape.depths[level];
        for layer in 0..3 {
            let at = format!("output_blocks.{block}");
            let skip = skips.pop().unwrap_or(0);
            list.res(&format!("{at}.0"), c + skip, 320 * shape.multiples[level]);
            c = 320 * shape.multiples[level];
            if depth > 0 {
                list.transformer(&format!("{at}.1"), c, depth, shape);
            }
            if layer == 2 && level > 0 {
                list.layer(&format!("{at}.{}.conv", 1 + usize::from(depth > 0)), &[c, c, 3, 3]);
            }
            block += 1;
        }
    }
    list.layer("out.0", &[c]);
    list.layer("out.2", &[4, c, 3, 3]);
    list.shapes
}

/// The decoder of the autoencoder.
pub fn vae() -> Shapes {
    let mut list = List {
        shapes: Vec::new(),
        prefix: "first_stage_model.".into(),
    };
    list.layer("post_quant_conv", &[4, 4, 1, 1]);
    list.prefix.push_str("decoder.");
    list.layer("conv_in", &[512, 4, 3, 3]);
    let res = |list: &mut List, at: &str, c_in: usize, c_out: usize| {
        list.layer(&format!("{at}.norm1"), &[c_in]);
        list.layer(&format!("{at}.conv1"), &[c_out, c_in, 3, 3]);
        list.layer(&format!("{at}.norm2"), &[c_out]);
        list.layer(&format!("{at}.conv2"), &[c_out, c_out, 3, 3]);
        if c_in != c_out {
            list.layer(&format!("{at}.nin_shortcut"), &[c_out, c_in, 1, 1]);
        }
    };
    res(&mut list, "mid.block_1", 512, 512);
    res(&mut list, "mid.block_2", 512, 512);
    list.layer("mid.attn_1.norm", &[512]);
    for name in ["q", "k", "v", "proj_out"] {
        list.layer(&format!("mid.attn_1.{name}"), &[512, 512, 1, 1]);
    }
    let mut c = 512;
    for (level, width) in [(3, 512), (2, 512), (1, 256), (0, 128)] {
        for block in 0..3 {
            res(&mut list, &format!("up.{level}.block.{block}"), c, width);
            c = width;
        }
        if level > 0 {
            list.layer(&format!("up.{level}.upsample.conv"), &[c, c, 3, 3]);
        }
    }
    list.layer("norm_out", &[128]);
    list.layer("conv_out", &[3, 128, 3, 3]);
    list.shapes
}

/// OpenAI's CLIP-L text encoder.
pub fn clip_l() -> Shapes {
    let mut list = List {
        shapes: Vec::new(),
        prefix: "cond_stage_model.transformer.text_model.".into(),
    };
    list.bare("embeddings.token_embedding", &[49408, 768]);
    list.bare("embeddings.position_embedding", &[77, 768]);
    for layer in 0..12 {
        let at = format!("encoder.layers.{layer}");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            list.layer(&format!("{at}.self_attn.{name}"), &[768, 768]);
        }
        list.layer(&format!("{at}.layer_norm1"), &[768]);
        list.layer(&format!("{at}.layer_norm2"), &[768]);
        list.layer(&format!("{at}.mlp.fc1"), &[3072, 768]);
        list.layer(&format!("{at}.mlp.fc2"), &[768, 3072]);
    }
    list.layer("final_layer_norm", &[768]);
    list.shapes
}

/// Writes a checkpoint of f16 numbers: norms near 1, all else of a size that keeps the states of a deep network near 1.
pub fn write(shapes: &Shapes, path: &Path) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut start = 0usize;
    for (name, shape) in shapes {
        let end = start + 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let unfinished = path.with_extension("part");
    let file = std::fs::File::create(&unfinished).with_context(|| format!("creating `{}`", unfinished.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::new();
    for (name, shape) in shapes {
        let weight = name.ends_with(".weight");
        let centre = if shape.len() == 1 && weight { 1.0 } else { 0.0 };
        let fan: usize = shape[1..].iter().product();
        let scale = if shape.len() == 1 {
            0.02
        } else {
            (1.0 / fan as f32).sqrt()
        };
        bytes.clear();
        for _ in 0..shape.iter().product::<usize>() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            bytes.extend(half::f16::from_f32(uniform * scale + centre).to_le_bytes());
        }
        out.write_all(&bytes)?;
    }
    out.flush()?;
    std::fs::rename(&unfinished, path)?;
    Ok(())
}
