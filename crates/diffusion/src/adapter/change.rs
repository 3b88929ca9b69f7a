//! What a LoRA's tensors for one layer add to its weight; checked by shapes alone before anything is computed.
//!
//! Formulas: Hu et al. 2021 (LoRA), Yeh et al. 2023 (LyCORIS: LoCon, LoHa, LoKr and their Tucker forms), Liu et al. 2024
//! (DoRA).

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, safetensors_file::SafetensorsFile};

/// The endings of a pair of factors, up first.
const PAIRS: [(&str, &str); 6] = [
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
];

/// Whole differences, and the tensor of the layer they are for.
const WHOLE: [(&str, &str); 4] = [
    (".diff", "weight"),
    (".diff_b", "bias"),
    (".w_norm", "weight"),
    (".b_norm", "bias"),
];

/// What the layers of a file are called there, sorted.
pub fn prefixes(file: &SafetensorsFile) -> Vec<String> {
    let endings: Vec<&str> = PAIRS
        .iter()
        .flat_map(|(up, down)| [*up, *down])
        .chain(WHOLE.iter().map(|(ending, _)| *ending))
        .chain([
            ".hada_w1_a",
            ".hada_w2_a",
            ".lokr_w1",
            ".lokr_w1_a",
            ".lokr_w2",
            ".lokr_w2_a",
        ])
        .collect();
    let prefix = |name: &str| {
        let found = endings.iter().find_map(|ending| name.strip_suffix(ending))?;
        Some(found.to_owned())
    };
    let mut prefixes: Vec<String> = file.names().filter_map(prefix).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// One change of one tensor of a layer.
pub struct Change {
    kind: Kind,
    target: &'static str,
    /// Of the layer's tensor.
    elements: usize,
    /// alpha / rank, or 1.
    scale: f64,
    /// The name of DoRA's magnitudes.
    magnitudes: Option<String>,
}

/// The names of what is multiplied.
enum Kind {
    Whole(String),
    Product(Factor),
    Hadamard(Factor, Factor),
    Kronecker(Factor, Factor),
}

enum Factor {
    Whole(String),
    /// `up (o, r, ..) · down (r, i, ..)`.
    Two {
        up: String,
        down: String,
    },
    /// With a core `(r, r, kh, kw)` between them; `up` is `(o, r)`, or `(r, o)` where `turned`.
    Tucker {
        up: String,
        down: String,
        core: String,
        turned: bool,
    },
}

/// A factor with the shape of what it gives.
struct Shaped {
    factor: Factor,
    shape: Vec<usize>,
    rank: Option<usize>,
}

type Checked<T> = std::result::Result<T, String>;

/// A product, the shape of what it gives, and the rank that alpha is divided by.
type Factored = (Kind, Vec<usize>, Option<usize>);

impl Change {
    /// All changes of the layer called `prefix`; the reason where a part is missing or misshapen.
    pub fn all_of(file: &SafetensorsFile, prefix: &str) -> Checked<Vec<Self>> {
        let mut changes = Vec::new();
        for (ending, target) in WHOLE {
            let name = format!("{prefix}{ending}");
            if let Some(shape) = file.shape(&name) {
                changes.push(Self {
                    elements: shape.iter().product(),
                    kind: Kind::Whole(name),
                    target,
                    scale: 1.0,
                    magnitudes: None,
                });
            }
        }
        if let Some((kind, shape, rank)) = factored(file, prefix)? {
            let magnitudes = format!("{prefix}.dora_scale");
            changes.push(Self {
                kind,
                target: "weight",
                elements: count(&shape)?,
                scale: scale(file, prefix, rank)?,
                magnitudes: file.shape(&magnitudes).is_some().then_some(magnitudes),
            });
        }
        Ok(changes)
    }

    /// `weight` or `bias`.
    pub fn target(&self) -> &'static str {
        self.target
    }

    /// How many values it changes.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The weight (f32) with this change at `strength`.
    pub fn apply(&self, file: &SafetensorsFile, weight: &Tensor, strength: f64) -> Result<Tensor> {
        let difference = match &self.kind {
            Kind::Whole(name) => read(file, name)?,
            Kind::Product(factor) => factor.tensor(file)?,
            Kind::Hadamard(one, two) => (one.tensor(file)? * two.tensor(file)?)?,
            Kind::Kronecker(one, two) => kronecker(&one.tensor(file)?, &two.tensor(file)?)?,
        };
        let difference = difference.reshape(weight.dims())?.to_device(weight.device())?;
        let Some(magnitudes) = &self.magnitudes else {
            return Ok((weight + (difference * (self.scale * strength))?)?);
        };
        let magnitudes = read(file, magnitudes)?.to_device(weight.device())?;
        let whole = (weight + (difference * self.scale)?)?;
        let turned = turn(&whole, weight, &magnitudes)?;
        // At other strengths, the way to the decomposed weight is gone in part.
        Ok((weight + ((turned - weight)? * strength)?)?)
    }
}

/// `whole` with the length of each of its rows (or of each input's weights, by the shape of `magnitudes`) replaced. Rows are
/// divided by their length in the plain `weight`, inputs by theirs in `whole`: so ComfyUI does it, and pictures are to be
/// the same here and there.
fn turn(whole: &Tensor, weight: &Tensor, magnitudes: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = (whole.dim(0)?, whole.dim(1)?);
    let by_output = magnitudes.dim(0)? == outputs && magnitudes.elem_count() == outputs;
    let lengths = if by_output {
        weight.flatten_from(1)?.sqr()?.sum(1)?.sqrt()? // (o)
    } else {
        let kernel = whole.elem_count() / (outputs * inputs).max(1);
        let each = whole.reshape((outputs, inputs, kernel))?;
        each.sqr()?.sum(2)?.sum(0)?.sqrt()? // (i)
    };
    if magnitudes.elem_count() != lengths.elem_count() {
        return Err(Error::Weights(format!(
            "{} magnitudes for a weight of {:?}",
            magnitudes.elem_count(),
            whole.dims()
        )));
    }
    let factor = (magnitudes.flatten_all()? / (lengths + f64::from(f32::EPSILON))?)?;
    let mut shape = vec![1; whole.rank()];
    shape[usize::from(!by_output)] = factor.elem_count();
    Ok(whole.broadcast_mul(&factor.reshape(shape)?)?)
}

fn read(file: &SafetensorsFile, name: &str) -> Result<Tensor> {
    file.tensor(name, DType::F32, &Device::Cpu)
}

/// alpha / rank; 1 where the file tells no alpha.
fn scale(file: &SafetensorsFile, prefix: &str, rank: Option<usize>) -> Checked<f64> {
    let name = format!("{prefix}.alpha");
    let (Some(shape), Some(rank)) = (file.shape(&name), rank) else {
        return Ok(1.0);
    };
    let alpha = match shape.iter().product::<usize>() {
        1 => read(file, &name).and_then(|alpha| Ok(alpha.flatten_all()?.to_vec1::<f32>()?)),
        n => return Err(format!("`{name}` holds {n} values")),
    };
    match alpha.map_err(|error| error.to_string())?.first() {
        Some(alpha) if alpha.is_finite() => Ok(f64::from(*alpha) / rank.max(1) as f64),
        _ => Err(format!("`{name}` is no number")),
    }
}

/// What the factors of a layer give, its shape, and the rank that alpha is divided by.
fn factored(file: &SafetensorsFile, prefix: &str) -> Checked<Option<Factored>> {
    let full = |ending: &str| format!("{prefix}{ending}");
    let has = |ending: &str| file.shape(&full(ending)).is_some();
    for (up, down) in PAIRS {
        if !has(up) && !has(down) {
            continue;
        }
        let core = full(".lora_mid.weight");
        let core = file.shape(&core).is_some().then_some(core);
        let shaped = pair(file, (full(up), full(down)), core, false)?;
        return Ok(Some((Kind::Product(shaped.factor), shaped.shape, shaped.rank)));
    }
    let hadamard = |i: usize| -> Checked<Shaped> {
        let core = full(&format!(".hada_t{i}"));
        let core = file.shape(&core).is_some().then_some(core);
        let names = (full(&format!(".hada_w{i}_a")), full(&format!(".hada_w{i}_b")));
        pair(file, names, core, true)
    };
    if has(".hada_w1_a") || has(".hada_w2_a") {
        let (one, two) = (hadamard(1)?, hadamard(2)?);
        if count(&one.shape)? != count(&two.shape)? {
            return Err(format!(
                "the factors of `{prefix}` give {:?} and {:?}",
                one.shape, two.shape
            ));
        }
        return Ok(Some((Kind::Hadamard(one.factor, two.factor), one.shape, one.rank)));
    }
    let part = |i: usize| -> Checked<Shaped> {
        let whole = full(&format!(".lokr_w{i}"));
        if let Some(shape) = file.shape(&whole) {
            return Ok(Shaped {
                shape: shape.to_vec(),
                factor: Factor::Whole(whole),
                rank: None,
            });
        }
        let core = full(&format!(".lokr_t{i}"));
        let core = file.shape(&core).is_some().then_some(core);
        let names = (full(&format!(".lokr_w{i}_a")), full(&format!(".lokr_w{i}_b")));
        pair(file, names, core, true)
    };
    if [".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lokr_w2_a"]
        .into_iter()
        .any(has)
    {
        let (one, two) = (part(1)?, part(2)?);
        let shape = match (&one.shape[..], &two.shape[..]) {
            ([a, b], [c, d, rest @ ..]) => [&[times(*a, *c)?, times(*b, *d)?][..], rest].concat(),
            _ => {
                return Err(format!("`{prefix}` multiplies {:?} and {:?}", one.shape, two.shape));
            }
        };
        let rank = two.rank.or(one.rank);
        return Ok(Some((Kind::Kronecker(one.factor, two.factor), shape, rank)));
    }
    Ok(None)
}

/// Two factors, with a core between them where there is one; LyCORIS stores the first one turned beside a core.
fn pair(file: &SafetensorsFile, (up, down): (String, String), core: Option<String>, turned: bool) -> Checked<Shaped> {
    let flat = |name: &str| -> Checked<(usize, usize)> {
        let shape = file.shape(name).ok_or_else(|| format!("`{name}` is missing"))?;
        match shape {
            [first, rest @ ..] if !rest.is_empty() => Ok((*first, count(rest)?)),
            _ => Err(format!("`{name}` has the shape {shape:?}")),
        }
    };
    let ((out, up_rank), (rank, rest)) = (flat(&up)?, flat(&down)?);
    let Some(core) = core else {
        if up_rank != rank || rank == 0 {
            return Err(format!("`{up}` and `{down}` have the ranks {up_rank} and {rank}"));
        }
        return Ok(Shaped {
            shape: vec![out, rest],
            factor: Factor::Two { up, down },
            rank: Some(rank),
        });
    };
    let (out, up_rank) = if turned { (up_rank, out) } else { (out, up_rank) };
    match file.shape(&core) {
        Some([first, second, height, width]) if *first == up_rank && *second == rank && rank > 0 => Ok(Shaped {
            shape: vec![out, rest, *height, *width],
            factor: Factor::Tucker { up, down, core, turned },
            rank: Some(rank),
        }),
        shape => Err(format!(
            "`{core}` has the shape {shape:?}, the ranks are {up_rank} and {rank}"
        )),
    }
}

fn count(shape: &[usize]) -> Checked<usize> {
    shape.iter().try_fold(1, |product, dim| times(product, *dim))
}

fn times(a: usize, b: usize) -> Checked<usize> {
    // No layer has more; products of factors may promise any number.
    const MOST: usize = 1 << 30;
    a.checked_mul(b)
        .filter(|n| *n <= MOST)
        .ok_or_else(|| format!("a weight of {a} times {b} values"))
}

impl Factor {
    fn tensor(&self, file: &SafetensorsFile) -> Result<Tensor> {
        match self {
            Self::Whole(name) => read(file, name),
            Self::Two { up, down } => {
                let (up, down) = (read(file, up)?.flatten_from(1)?, read(file, down)?.flatten_from(1)?);
                Ok(up.matmul(&down)?)
            }
            Self::Tucker { up, down, core, turned } => {
                let up = read(file, up)?.flatten_from(1)?;
                let up = if *turned { up.t()?.contiguous()? } else { up }; // (o, r1)
                let (down, core) = (read(file, down)?.flatten_from(1)?, read(file, core)?); // (r2, i), (r1, r2, kh, kw)
                let (r1, r2, kh, kw) = core.dims4()?;
                let (o, i) = (up.dim(0)?, down.dim(1)?);
                let left = up.matmul(&core.reshape((r1, r2 * kh * kw))?)?; // (o, r2·k)
                let left = left.reshape((o, r2, kh * kw))?.transpose(1, 2)?.contiguous()?; // (o, k, r2)
                let all = left.reshape((o * kh * kw, r2))?.matmul(&down)?; // (o·k, i)
                let all = all.reshape((o, kh * kw, i))?.transpose(1, 2)?.contiguous()?;
                Ok(all.reshape((o, i, kh, kw))?)
            }
        }
    }
}

/// `(a, b) ⊗ (c, d, ..) -> (a·c, b·d, ..)`.
fn kronecker(one: &Tensor, two: &Tensor) -> Result<Tensor> {
    let one = one.flatten_from(1)?;
    let (a, b) = one.dims2()?;
    let (c, d) = (two.dim(0)?, two.dim(1)?);
    let rest: usize = two.dims()[2..].iter().product();
    let one = one.reshape(vec![a, 1, b, 1, 1])?;
    let two = two.reshape(vec![1, c, 1, d, rest])?;
    Ok(one.broadcast_mul(&two)?.reshape((a * c, b * d, rest))?)
}
