//! Weights of ncnn's upscaling tools (`.param` and `.bin`) as tensors under the names of the original networks.
//!
//! `.param` is a text: magic, counts, one layer a line. `.bin` holds the weights in the same order: of every convolution
//! a tag, the weights padded to four bytes and the bias as f32; of every PReLU its slopes as f32 (ncnn's wiki,
//! "param and model file structure"). The whole file must be consumed.

use super::Refusal;
use super::tensors::{Dtype, Tensor};

/// Most layers of a network.
const MAX_LAYERS: usize = 10_000;
/// Most elements of one weight: the largest of an upscaler has below a million.
const MAX_ELEMENTS: u64 = 64 << 20;
/// Tag of weights stored as f16.
const TAG_F16: u32 = 0x0130_6B47;

enum Layer {
    Convolution {
        outputs: u64,
        kernel: (u64, u64),
        weights: u64,
        has_bias: bool,
    },
    PRelu {
        slopes: u64,
    },
}

/// Reads an RRDB network (ESRGAN) or a compact one (SRVGG) and names its tensors as their authors did. Every number stays as
/// the file has it: weights mostly f16, biases and slopes f32.
pub fn read_upscaler(param: &str, bin: &[u8]) -> Result<Vec<Tensor>, Refusal> {
    let layers = parse_param(param)?;
    let names = name_layers(&layers)?;
    let mut input = bin;
    let mut tensors = Vec::new();
    for (layer, name) in layers.iter().zip(names) {
        match layer {
            Layer::Convolution {
                outputs,
                kernel,
                weights,
                has_bias,
            } => {
                let per_output = outputs * kernel.0 * kernel.1;
                if per_output == 0 || !weights.is_multiple_of(per_output) {
                    return Err(Refusal::Malformed(format!(
                        "the weights of `{name}` do not divide into its outputs"
                    )));
                }
                let shape = vec![*outputs, weights / per_output, kernel.0, kernel.1]; // (out, in, kh, kw)
                let (dtype, bytes) = take_weights(&mut input, *weights)?;
                tensors.push(Tensor::new(format!("{name}.weight"), dtype, shape, bytes)?);
                if *has_bias {
                    let bytes = take(&mut input, outputs * 4)?.to_vec();
                    tensors.push(Tensor::new(format!("{name}.bias"), Dtype::F32, vec![*outputs], bytes)?);
                }
            }
            Layer::PRelu { slopes } => {
                let bytes = take(&mut input, slopes * 4)?.to_vec();
                tensors.push(Tensor::new(format!("{name}.weight"), Dtype::F32, vec![*slopes], bytes)?);
            }
        }
    }
    if !input.is_empty() {
        return Err(Refusal::Malformed(format!(
            "{} bytes are left over behind the last layer",
            input.len()
        )));
    }
    Ok(tensors)
}

fn parse_param(param: &str) -> Result<Vec<Layer>, Refusal> {
    let mut lines = param.lines();
    if lines.next().map(str::trim) != Some("7767517") {
        return Err(Refusal::Malformed("not an ncnn .param file".into()));
    }
    lines.next();
    let mut layers = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()).take(MAX_LAYERS + 1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let kind = words.first().copied().unwrap_or_default();
        let number = |key: &str| {
            let found = words
                .iter()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok());
            found.unwrap_or(0)
        };
        match kind {
            "Convolution" => {
                let kernel_width = number("1");
                let kernel_height = Some(number("11")).filter(|height| *height > 0).unwrap_or(kernel_width);
                let (outputs, weights) = (number("0"), number("6"));
                if !(1..=4096).contains(&outputs)
                    || !(1..=15).contains(&kernel_width)
                    || kernel_height > 15
                    || !(1..=MAX_ELEMENTS).contains(&weights)
                {
                    return Err(Refusal::Malformed(format!(
                        "an impossible convolution: `{}`",
                        clip(line)
                    )));
                }
                layers.push(Layer::Convolution {
                    outputs,
                    kernel: (kernel_height, kernel_width),
                    weights,
                    has_bias: number("5") == 1,
                });
            }
            "PReLU" => {
                let slopes = number("0");
                if !(1..=4096).contains(&slopes) {
                    return Err(Refusal::Malformed(format!("an impossible PReLU: `{}`", clip(line))));
                }
                layers.push(Layer::PRelu { slopes });
            }
            // These carry no weights.
            "Input" | "Split" | "Concat" | "Eltwise" | "BinaryOp" | "Interp" | "PixelShuffle" | "ReLU" | "Crop"
            | "Padding" => {}
            other => return Err(Refusal::Malformed(format!("a layer of unknown kind `{}`", clip(other)))),
        }
    }
    if layers.len() > MAX_LAYERS {
        return Err(Refusal::TooMuch {
            what: "the number of layers",
            found: layers.len() as u64,
            limit: MAX_LAYERS as u64,
        });
    }
    Ok(layers)
}

/// Layers stand in forward order, so names follow from their number.
fn name_layers(layers: &[Layer]) -> Result<Vec<String>, Refusal> {
    if layers.iter().any(|layer| matches!(layer, Layer::PRelu { .. })) {
        return Ok((0..layers.len()).map(|idx| format!("body.{idx}")).collect());
    }
    let in_blocks = layers.len().checked_sub(6).filter(|n| *n > 0 && n.is_multiple_of(15));
    let Some(in_blocks) = in_blocks else {
        return Err(Refusal::Malformed(format!(
            "{} convolutions are neither an RRDB nor a compact network",
            layers.len()
        )));
    };
    let body = (0..in_blocks).map(|idx| format!("body.{}.rdb{}.conv{}", idx / 15, idx / 5 % 3 + 1, idx % 5 + 1));
    let tail = ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"].map(str::to_owned);
    Ok(std::iter::once("conv_first".to_owned())
        .chain(body)
        .chain(tail)
        .collect())
}

fn take_weights(input: &mut &[u8], count: u64) -> Result<(Dtype, Vec<u8>), Refusal> {
    let tag = take(input, 4)?;
    match u32::from_le_bytes([tag[0], tag[1], tag[2], tag[3]]) {
        TAG_F16 => {
            let bytes = take(input, (count * 2).next_multiple_of(4))?;
            let used = usize::try_from(count * 2).unwrap_or(usize::MAX).min(bytes.len());
            Ok((Dtype::F16, bytes[..used].to_vec()))
        }
        0 => Ok((Dtype::F32, take(input, count * 4)?.to_vec())),
        tag => Err(Refusal::Malformed(format!(
            "weights of unknown kind {tag:#010x} (quantised files are not imported)"
        ))),
    }
}

fn take<'a>(input: &mut &'a [u8], bytes: u64) -> Result<&'a [u8], Refusal> {
    let split = usize::try_from(bytes)
        .ok()
        .and_then(|bytes| input.split_at_checked(bytes));
    let (taken, rest) =
        split.ok_or_else(|| Refusal::Truncated("the .bin ends before the .param's last layer".into()))?;
    *input = rest;
    Ok(taken)
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    const PARAM: &str = "7767517\n4 4\nInput in 0 1 a\nConvolution c 1 1 a b 0=2 1=1 5=1 6=6\nPReLU p 1 1 b c 0=2\nConvolution d 1 1 c o 0=1 1=1 5=1 6=2\n";

    fn bin() -> Vec<u8> {
        let mut bytes = TAG_F16.to_le_bytes().to_vec();
        (0..6).for_each(|n| bytes.extend(f16::from_f32(n as f32).to_le_bytes()));
        [0.5f32, -0.25, 0.1, 0.2]
            .iter()
            .for_each(|f| bytes.extend(f.to_le_bytes()));
        bytes.extend(0u32.to_le_bytes());
        [1.0f32, 2.0, 3.0].iter().for_each(|f| bytes.extend(f.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_compact_network_is_read_to_the_last_byte() {
        let tensors = read_upscaler(PARAM, &bin()).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| (t.name(), t.shape().to_vec())).collect();
        assert_eq!(
            names,
            [
                ("body.0.weight", vec![2, 3, 1, 1]),
                ("body.0.bias", vec![2]),
                ("body.1.weight", vec![2]),
                ("body.2.weight", vec![1, 2, 1, 1]),
                ("body.2.bias", vec![1]),
            ]
        );
        // Weights are stored as f16 or f32, all else as f32, and nothing is rounded on the way.
        let dtypes: Vec<_> = tensors.iter().map(Tensor::dtype).collect();
        assert_eq!(dtypes, [Dtype::F16, Dtype::F32, Dtype::F32, Dtype::F32, Dtype::F32]);
        assert_eq!(tensors[1].bytes(), [0.5f32, -0.25].map(f32::to_le_bytes).concat());
        assert_eq!(tensors[2].bytes(), [0.1f32, 0.2].map(f32::to_le_bytes).concat());
    }

    #[test]
    fn an_odd_number_of_f16_weights_is_padded_to_four_bytes() {
        let param = "7767517\n3 3\nInput in 0 1 a\nConvolution c 1 1 a b 0=1 1=1 6=3\nPReLU p 1 1 b c 0=1\n";
        let mut bytes = TAG_F16.to_le_bytes().to_vec();
        (1..=3).for_each(|n| bytes.extend(f16::from_f32(n as f32).to_le_bytes()));
        bytes.extend([0xaa, 0xbb]);
        bytes.extend(0.25f32.to_le_bytes());
        let tensors = read_upscaler(param, &bytes).unwrap();
        assert_eq!((tensors[0].shape(), tensors[0].bytes().len()), (&[1, 3, 1, 1][..], 6));
        assert_eq!(tensors[1].bytes(), 0.25f32.to_le_bytes());
    }

    #[test]
    fn cut_longer_and_quantised_files_are_refused() {
        let good = bin();
        for cut in 0..good.len() {
            assert!(read_upscaler(PARAM, &good[..cut]).is_err(), "{cut}");
        }
        // The last line is whole without its end.
        for cut in 0..PARAM.len() - 1 {
            assert!(read_upscaler(&PARAM[..cut], &good).is_err(), "{cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(read_upscaler(PARAM, &longer).is_err());
        let mut quantised = good;
        quantised[..4].copy_from_slice(&0x000D_4B38u32.to_le_bytes());
        assert!(read_upscaler(PARAM, &quantised).is_err());
        assert!(read_upscaler(&PARAM.replace("6=6", "6=18446744073709551615"), &longer).is_err());
        assert!(read_upscaler(&PARAM.replace("0=2 1=1", "0=0 1=0"), &longer).is_err());
    }
}
