//! Runs the cases of a manifest of reference values and has its compare.py judge them.
//!
//! `cargo run -p diffusion --bin fidelity -- PATH [--groups a,b] [--only TEXT] [--out DIR] [--layout file|diffusers]`

mod stage;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use candle_core::{DType, Device, Tensor};
use diffusion::{
    Error, Hires, ModelFiles, Overrides, Pipeline, Progress, Request, Result, Source,
    adapter::{self, Lora},
    embedding::Embedding,
    model::Family,
    nn::unet::{Conditions, Heads},
    safetensors_file::SafetensorsFile,
    sample::{Denoiser, Run, Sampler, StepNoise, sample},
    sigma::Schedule,
};
use imaging::{Limits, Picture, encode_png};
use serde_json::Value;

type Tensors = HashMap<String, Tensor>;

struct Options {
    root: PathBuf,
    out: PathBuf,
    groups: Vec<String>,
    only: String,
    /// Models are read from their diffusers folders, where they have one.
    folders: bool,
}

const USAGE: &str = "usage: fidelity PATH [--groups a,b] [--only TEXT] [--out DIR] [--layout file|diffusers]";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!(
            "{USAGE}\nPATH holds manifest.json, its models and cases, and compare.py. Cases of other engines are left out."
        );
        return ExitCode::SUCCESS;
    }
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(64)
        }
    }
}

fn options() -> Result<Options> {
    let usage = || Error::Request(USAGE.into());
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        root: arguments.next().map(PathBuf::from).ok_or_else(usage)?,
        out: std::env::temp_dir().join("fidelity"),
        groups: Vec::new(),
        only: String::new(),
        folders: false,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(usage)?;
        match name.as_str() {
            "--groups" => options.groups = value.split(',').map(str::to_owned).collect(),
            "--only" => options.only = value,
            "--out" => options.out = PathBuf::from(value),
            "--layout" if matches!(value.as_str(), "file" | "diffusers") => options.folders = value == "diffusers",
            _ => return Err(usage()),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<bool> {
    let manifest: Value = serde_json::from_slice(&read(&options.root.join("manifest.json"))?)
        .map_err(|error| Error::Request(format!("manifest.json: {error}")))?;
    let mut models = Models::default();
    let mut failed = false;
    for case in manifest["cases"].as_array().into_iter().flatten() {
        let (group, id) = (text(&case["group"]), text(&case["id"]));
        let chosen = options.groups.is_empty() || options.groups.iter().any(|chosen| chosen == group);
        if !chosen || !format!("{group}/{id}").contains(&options.only) {
            continue;
        }
        let done = if group == "stage" {
            run_stage(options, case)
        } else {
            run_case(options, &manifest, case, &mut models).and_then(|tensors| save(options, case, tensors))
        };
        if let Err(error) = done {
            println!("{group}/{id}: {error}");
            failed = true;
        }
    }
    let mut judge = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    judge
        .arg(options.root.join("compare.py"))
        .arg(&options.root)
        .arg(&options.out)
        .arg("-v");
    if !options.groups.is_empty() {
        judge.arg("--groups").arg(options.groups.join(","));
    }
    if !options.only.is_empty() {
        judge.arg("--only").arg(&options.only);
    }
    let status = judge.status().map_err(|source| Error::Open {
        path: options.root.join("compare.py"),
        source,
    })?;
    Ok(status.success() && !failed)
}

/// The models in use, and the names of those that are for other engines.
#[derive(Default)]
struct Models {
    pipelines: HashMap<String, Pipeline>,
    others: HashSet<String>,
}

impl Models {
    /// The model of this name, loaded once; `None` if it is none of ours.
    fn get(&mut self, options: &Options, manifest: &Value, name: &str) -> Result<Option<&Pipeline>> {
        if !self.pipelines.contains_key(name) && !self.others.contains(name) {
            if manifest["models"][name].is_null() || !is_ours(options, manifest, name)? {
                self.others.insert(name.to_owned());
            } else {
                self.pipelines.insert(name.to_owned(), load(options, manifest, name)?);
            }
        }
        Ok(self.pipelines.get(name))
    }
}

fn save(options: &Options, case: &Value, tensors: Option<Tensors>) -> Result<()> {
    let Some(tensors) = tensors else { return Ok(()) };
    let folder = options.out.join(text(&case["group"]));
    std::fs::create_dir_all(&folder).map_err(|source| Error::Open {
        path: folder.clone(),
        source,
    })?;
    candle_core::safetensors::save(&tensors, folder.join(format!("{}.safetensors", text(&case["id"]))))?;
    Ok(())
}

fn run_stage(options: &Options, case: &Value) -> Result<()> {
    let name = text(&case["files"]["json"]);
    let reference: Value = serde_json::from_slice(&read(&options.root.join(name))?)
        .map_err(|error| Error::Request(format!("{name}: {error}")))?;
    let folder = options.root.join("models/embeddings");
    let find = |name: &str, big: bool| embedding(&folder, name)?.vectors(big);
    match stage::table(text(&case["id"]), &reference, &find)? {
        Some(table) => stage::write(&options.out.join(name), &table),
        None => Ok(()),
    }
}

/// The tensors of a case, its pictures being written; `None` for cases of other engines.
fn run_case(options: &Options, manifest: &Value, case: &Value, models: &mut Models) -> Result<Option<Tensors>> {
    let (group, id) = (text(&case["group"]), text(&case["id"]));
    if group == "sampler_only" {
        return sampler_only(options, case).map(Some);
    }
    if !case["inputs"]["control_type"].is_null() || id.contains("controlnet") {
        return Ok(None);
    }
    let Some(pipeline) = models.get(options, manifest, text(&case["model"]))? else {
        return Ok(None);
    };
    let reference = options.root.join(text(&case["files"]["tensors"]));
    match group {
        "text" => texts(pipeline, case).map(Some),
        "denoiser" => denoiser(pipeline, &reference).map(Some),
        "vae" => vae(options, pipeline, case, &reference).map(Some),
        _ if case["inputs"]["prompt"].is_string() => whole(options, pipeline, case).map(Some),
        _ => Ok(None),
    }
}

/// Whether a model holds a U-Net. Others of the manifest are for other engines.
fn is_ours(options: &Options, manifest: &Value, name: &str) -> Result<bool> {
    let file = SafetensorsFile::open(&options.root.join(text(&manifest["models"][name]["file"])))?;
    let found = file.names().any(|name| name.ends_with("input_blocks.0.0.weight"));
    Ok(found)
}

fn load(options: &Options, manifest: &Value, name: &str) -> Result<Pipeline> {
    let model = &manifest["models"][name];
    let file = |model: &Value| {
        let folder = text(&model["diffusers"]);
        let is_folder = options.folders && !folder.is_empty();
        options.root.join(if is_folder { folder } else { text(&model["file"]) })
    };
    let mut files = ModelFiles {
        checkpoint: file(model),
        ..ModelFiles::default()
    };
    let mut base = model;
    if let Some(parent) = parent(manifest, name) {
        base = &manifest["models"][parent];
        files.unet = Some(file(model));
        files.checkpoint = file(base);
    }
    let mut overrides = Overrides::default();
    if files.checkpoint.is_file() {
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        // Where no count of heads is told, the description tells their size; the small models' is 16.
        let size = text(&base["kind"]).split_once("head dim ").and_then(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        overrides.norm_groups = number(&model["norm_groups_unet"]).or(number(&base["norm_groups_unet"]));
        overrides.heads = number(&base["unet"]["num_heads"])
            .map(Heads::Count)
            .or(size.map(Heads::Size));
        overrides.text_heads = ["clip_l", "clip_h", "clip_g"]
            .iter()
            .find_map(|clip| number(&base[clip]["heads"]));
        overrides.big_text_heads = ["clip_h", "clip_g"]
            .iter()
            .find_map(|clip| number(&base[clip]["heads"]));
    }
    let mut pipeline = Pipeline::load(&files, &Device::Cpu, overrides)?;
    let folder = options.root.join("models/embeddings");
    pipeline.embeddings = Box::new(move |name, big| embedding(&folder, name)?.vectors(big));
    Ok(pipeline)
}

/// The inversion of this file name, with or without its ending.
fn embedding(folder: &Path, name: &str) -> Option<Embedding> {
    let opened = Embedding::open(&folder.join(name));
    opened
        .or_else(|_| Embedding::open(&folder.join(format!("{name}.safetensors"))))
        .ok()
}

/// The model whose text encoders and VAE a lone U-Net uses: `NAME` for `NAME_inpaint`.
fn parent<'a>(manifest: &Value, name: &'a str) -> Option<&'a str> {
    let parent = name.strip_suffix("_inpaint")?;
    (!manifest["models"][parent].is_null()).then_some(parent)
}

struct Formula;

impl Denoiser for Formula {
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>> {
        let guess = |x: &f32| {
            let y = x / (1.0 + sigma);
            0.8 * y.tanh() + 0.1 * (2.0 * y).sin()
        };
        Ok(x.iter().map(guess).collect())
    }
}

fn sampler_only(options: &Options, case: &Value) -> Result<Tensors> {
    let file = SafetensorsFile::open(&options.root.join(text(&case["files"]["tensors"])))?;
    let inputs = &case["inputs"];
    let get = |name: &str| file.tensor(name, DType::F32, &Device::Cpu);
    let (x, sigmas) = (get("x_init")?, get("sigmas")?);
    let values = sigmas.to_vec1::<f32>()?;
    let mut run = Run {
        sigmas: &values,
        is_flow: inputs["kind"] == "flow",
        seed: inputs["seed"].as_u64().unwrap_or(0),
        step_noise: if inputs["rng"].is_string() {
            StepNoise::Cuda
        } else {
            StepNoise::Cpu
        },
        on_step: &mut |_, _, _| Ok(()),
    };
    let sampler = sampler(inputs)?;
    let out = sample(sampler, &mut Formula, x.flatten_all()?.to_vec1()?, &mut run)?;
    let out = Tensor::from_vec(out, x.shape(), &Device::Cpu)?;
    Ok(HashMap::from([("out".into(), out), ("sigmas".into(), sigmas)]))
}

fn sampler(inputs: &Value) -> Result<Sampler> {
    let name = text(&inputs["sampler_name"]);
    Sampler::from_name(name).ok_or_else(|| Error::Request(format!("no sampler `{name}`")))
}

fn texts(pipeline: &Pipeline, case: &Value) -> Result<Tensors> {
    let mut out = HashMap::new();
    for (name, skip) in [
        ("default", None),
        ("skip1", Some(1)),
        ("skip2", Some(2)),
        ("skip3", Some(3)),
    ] {
        let prompt = text(&case["inputs"]["prompt"]);
        let encoded = pipeline.model().encode(prompt, skip, &*pipeline.embeddings)?;
        out.insert(name.to_owned(), encoded.context);
        // SD 2 has no projection, so nothing uses its pooled state and the reference's is uninitialised memory.
        if pipeline.model().family != Family::Sd2 {
            out.insert(format!("{name}_pooled"), encoded.pooled);
        }
    }
    Ok(out)
}

fn denoiser(pipeline: &Pipeline, reference: &Path) -> Result<Tensors> {
    let file = SafetensorsFile::open(reference)?;
    let get = |name: &str| file.tensor(name, DType::F32, &Device::Cpu);
    let label = if file.shape("y").is_some() {
        Some(get("y")?)
    } else {
        None
    };
    let conditions = Conditions {
        context: &get("context")?,
        label: label.as_ref(),
        residuals: None,
        circular: false,
    };
    let out = pipeline
        .model()
        .unet
        .forward(&get("x")?, &get("t")?.to_vec1::<f32>()?, &conditions)?;
    Ok(HashMap::from([("out".into(), out)]))
}

fn vae(options: &Options, pipeline: &Pipeline, case: &Value, reference: &Path) -> Result<Tensors> {
    let latent = SafetensorsFile::open(reference)?.tensor("latent", DType::F32, &Device::Cpu)?;
    let decoded = pipeline.model().vae.decode(&latent, false)?;
    let source = picture(options, &case["inputs"]["source_image"])?;
    let (w, h) = (source.width() as usize, source.height() as usize);
    let values = source.to_rgb().to_planar().into_data();
    let pixels = Tensor::from_vec(
        values.iter().map(|value| value * 2.0 - 1.0).collect(),
        (1, 3, h, w),
        &Device::Cpu,
    )?;
    let encoded = pipeline.model().vae.encode(&pixels, false)?;
    write(options, case, &diffusion::pipeline::to_pictures(&decoded)?, "")?;
    Ok(HashMap::from([
        ("decoded_raw".into(), decoded),
        ("encoded".into(), encoded),
    ]))
}

/// Keeps what each stage ends with.
struct Keep(HashMap<String, Vec<Tensor>>);

impl Progress for Keep {
    fn step(&mut self, _: usize, _: usize) {}
    fn is_cancelled(&self) -> bool {
        false
    }
    fn stage(&mut self, name: &str, value: &Tensor) {
        self.0.entry(name.to_owned()).or_default().push(value.clone());
    }
}

fn whole(options: &Options, pipeline: &Pipeline, case: &Value) -> Result<Tensors> {
    let inputs = &case["inputs"];
    let count = |key: &str, default: u64| inputs[key].as_u64().unwrap_or(default);
    let number = |key: &str, default: f64| inputs[key].as_f64().unwrap_or(default);
    let mut request = Request::new(
        text(&inputs["prompt"]),
        count("width", 512) as u32,
        count("height", 512) as u32,
    );
    request.steps = count("ddim_steps", 30) as usize;
    request.cfg_scale = number("cfg_scale", 7.5);
    request.seed = count("seed", 0);
    request.sampler = sampler(inputs)?;
    let named = Schedule::from_name(text(&inputs["scheduler"]));
    let karras = if inputs["karras"] == true {
        Schedule::Karras
    } else {
        Schedule::Normal
    };
    request.schedule = named.unwrap_or(karras);
    request.clip_skip = count("clip_skip", 1) as usize;
    request.batch = count("batch", 1) as usize;
    request.tiling = inputs["tiling"] == true;
    request.step_noise = if inputs["rng"].is_string() {
        StepNoise::Cuda
    } else {
        StepNoise::Cpu
    };
    if inputs["source_image"].is_string() {
        let mask = if inputs["source_mask"].is_string() {
            Some(picture(options, &inputs["source_mask"])?.to_grey())
        } else {
            None
        };
        request.source = Some(Source {
            picture: picture(options, &inputs["source_image"])?,
            mask,
            inpaint: matches!(text(&inputs["source_processing"]), "inpainting" | "outpainting"),
            denoise: number("denoising_strength", 1.0),
        });
    }
    if inputs["hires_fix"] == true {
        request.hires = Some(Hires {
            first_width: count("hires_fix_first_pass_width", 512) as u32,
            first_height: count("hires_fix_first_pass_height", 512) as u32,
            steps: count("hires_fix_second_pass_steps", 20) as usize,
            denoise: number("hires_fix_denoising_strength", 0.65),
        });
    }
    let mut loras = Vec::new();
    for lora in inputs["loras"].as_array().into_iter().flatten() {
        let strength = |key: &str| lora[key].as_f64().unwrap_or(1.0);
        loras.push(Lora::open(
            &options.root.join(text(&lora["file"])),
            strength("model"),
            strength("clip"),
        )?);
    }
    let applied = adapter::apply(pipeline.model(), &loras)?;
    let mut keep = Keep(HashMap::new());
    let pictures = pipeline.generate(&request, &mut keep);
    adapter::take_off(pipeline.model(), applied)?;
    write(options, case, &pictures?, "")?;
    let mut out = HashMap::new();
    for (name, values) in keep.0 {
        let value = if name.starts_with("trace_") {
            Tensor::stack(&values, 0)?
        } else {
            match values.into_iter().next_back() {
                Some(value) => value,
                None => continue,
            }
        };
        out.insert(name, value.contiguous()?);
    }
    Ok(out)
}

/// Writes GROUP/ID.png, and GROUP/ID.bN.png where there are several.
fn write(options: &Options, case: &Value, pictures: &[Picture], suffix: &str) -> Result<()> {
    let folder = options.out.join(text(&case["group"]));
    for (i, picture) in pictures.iter().enumerate() {
        let png = encode_png(picture).map_err(|error| Error::Request(error.to_string()))?;
        let mut names = vec![format!("{}{suffix}.b{i}.png", text(&case["id"]))];
        if i == 0 {
            names.push(format!("{}{suffix}.png", text(&case["id"])));
        }
        for name in names {
            let path = folder.join(name);
            std::fs::create_dir_all(&folder)
                .and_then(|()| std::fs::write(&path, &png))
                .map_err(|source| Error::Open { path, source })?;
        }
    }
    Ok(())
}

fn picture(options: &Options, name: &Value) -> Result<Picture> {
    let path = options.root.join("inputs").join(text(name));
    imaging::decode(&read(&path)?, &Limits::image_job()).map_err(|error| Error::Damaged {
        path,
        reason: error.to_string(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
