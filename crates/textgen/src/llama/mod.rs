//! llama.cpp inside this process: one thread owns the model and its context, requests come to it by channel.

mod batcher;
mod guide;
mod sequence;
mod vocabulary;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::{LlamaModelParams, LlamaSplitMode};
use llama_cpp_2::{LlamaBackendDeviceType, LogOptions, list_llama_ggml_backend_devices, send_logs_to_tracing};

use self::batcher::{BatchLimits, Batcher};
use self::guide::{Guides, Words};
use self::sequence::{Job, Shared};
use self::vocabulary::Vocabulary;
use crate::chat::ChatTemplate;
use crate::engine::{EngineFacts, TextEngine, TextError, Watch};
use crate::gguf::{self, Header};
use crate::request::{TextAnswer, TextRequest};
pub use crate::settings::{CacheType, Flash, LlamaSettings, Plan, Split, available_memory};

/// A loaded model. Dropping it ends its thread and frees the model.
#[derive(Debug)]
pub struct LlamaEngine {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    facts: EngineFacts,
    plan: Plan,
    prefill_tokens: u32,
    guides: Guides,
}

/// Requests that may wait in the channel: callers block beyond that, each with a thread of its own.
const WAITING: usize = 256;
/// How often a caller looks at its [`Watch`].
const LOOK: Duration = Duration::from_millis(50);

impl LlamaEngine {
    /// Checks the file, loads it and runs a few tokens through it. `progress` hears 0..=1 and returns false to give up.
    ///
    /// # Errors
    /// [`TextError::Model`] where the file is missing or not acceptable, or its memory cannot be had.
    pub fn load(
        settings: LlamaSettings,
        progress: impl FnMut(f32) -> bool + Send + 'static,
    ) -> Result<Self, TextError> {
        let header = check_model(&settings)?;
        let backend = backend();
        let plan = plan_for(&settings, &header);
        check_room(&settings, &header, plan)?;
        tracing::info!(%plan, model = %settings.model.display(), "loading a text model");
        let model_name = header.name().map(str::to_owned).unwrap_or_else(|| file_stem(&settings));
        let source = header.chat_template().map(str::to_owned);
        let mut facts = EngineFacts {
            chat: None,
            program: None,
            model: model_name,
            context_tokens: plan.context_tokens,
            max_length: None,
            slots: plan.slots as usize,
        };
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        let (ready, loaded) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("llama".into())
            .spawn(move || serve(backend, &settings, plan, receiver, progress, &ready))
            .map_err(|error| TextError::Unavailable(error.to_string()))?;
        match loaded.recv() {
            Ok(Ok((words, limits))) => {
                facts.chat = source.map(|source| ChatTemplate {
                    source,
                    begin: words.begin_text.clone(),
                    end: words.end_text.clone(),
                });
                Ok(Self {
                    jobs: Some(sender),
                    thread: Some(thread),
                    facts,
                    plan,
                    prefill_tokens: u32::try_from(limits.prefill_tokens).unwrap_or(u32::MAX),
                    guides: Guides::new(words),
                })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TextError::Model("llama.cpp failed while it loaded the model".into())),
        }
    }

    /// What it takes.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Most prompt tokens of one batch, as set or measured.
    pub fn prefill_tokens(&self) -> u32 {
        self.prefill_tokens
    }
}

/// What loading would take, without loading anything.
///
/// # Errors
/// [`TextError::Model`] where the file is missing or not acceptable.
pub fn plan(settings: &LlamaSettings) -> Result<Plan, TextError> {
    let header = check_model(settings)?;
    backend();
    Ok(plan_for(settings, &header))
}

/// The header of the settings' model, checked.
///
/// # Errors
/// [`TextError::Model`] where the file is missing or not acceptable.
pub fn check_model(settings: &LlamaSettings) -> Result<Header, TextError> {
    gguf::check_file(&settings.model)
        .map_err(|error| TextError::Model(format!("`{}`: {error}", settings.model.display())))
}

/// A device llama.cpp could use.
#[derive(Clone, Debug)]
pub struct Device {
    /// Index for [`LlamaSettings::devices`].
    pub index: usize,
    /// What drives it: `CUDA`, `Vulkan`, `MTL`, `ROCm`, `CPU`.
    pub backend: String,
    /// What it is.
    pub description: String,
    /// Free memory in bytes.
    pub free_bytes: u64,
    /// Whether it is a GPU.
    pub gpu: bool,
}

/// Every device this build can see.
pub fn devices() -> Vec<Device> {
    backend();
    let is_gpu = |kind| {
        matches!(
            kind,
            LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu
        )
    };
    list_llama_ggml_backend_devices()
        .into_iter()
        .map(|device| Device {
            index: device.index,
            gpu: is_gpu(device.device_type),
            backend: device.backend,
            description: device.description,
            free_bytes: device.memory_free as u64,
        })
        .collect()
}

impl TextEngine for LlamaEngine {
    fn facts(&self) -> Result<EngineFacts, TextError> {
        Ok(self.facts.clone())
    }

    fn generate(&self, request: TextRequest, watch: &dyn Watch) -> Result<TextAnswer, TextError> {
        let gone = || TextError::Unavailable("the thread that ran the model has ended".into());
        let request = request.clamped();
        let total = request.max_length;
        // Here and not on the engine's thread: a large schema takes its time, and others write on meanwhile.
        let guide = request
            .constraint
            .as_ref()
            .map(|form| self.guides.guide(form))
            .transpose()?;
        let (reply, answers) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let job = Job {
            seed: request.seed.unwrap_or_else(rand::random),
            request,
            guide,
            reply,
            shared: Arc::clone(&shared),
            submitted: Instant::now(),
        };
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        let mut told = 0;
        loop {
            match answers.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if watch.is_cancelled() {
                shared.cancelled.store(true, Ordering::Relaxed);
            }
            let done = shared.done.load(Ordering::Relaxed);
            if done != told {
                told = done;
                watch.progress(done, total);
            }
        }
    }
}

impl Drop for LlamaEngine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that ran the model had panicked");
        }
    }
}

/// llama.cpp's global state, set up once, with its messages sent to `tracing`.
fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        send_logs_to_tracing(LogOptions::default());
        LlamaBackend::init().expect("nobody else in this process sets llama.cpp up")
    })
}

fn file_stem(settings: &LlamaSettings) -> String {
    settings
        .model
        .file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

fn plan_for(settings: &LlamaSettings, header: &Header) -> Plan {
    let gpus = gpus(settings);
    let free = if gpus.is_empty() {
        available_memory()
    } else {
        Some(gpus.iter().map(|device| device.free_bytes).sum())
    };
    settings.plan(header, free, !gpus.is_empty())
}

/// The GPUs that the settings use.
fn gpus(settings: &LlamaSettings) -> Vec<Device> {
    let is_used = |device: &Device| {
        device.gpu
            && settings.gpu_layers != Some(0)
            && (settings.devices.is_empty() || settings.devices.contains(&device.index))
    };
    devices().into_iter().filter(is_used).collect()
}

/// Whether the memory is there that cannot be mapped from the file. A processor's is promised by the system and taken later,
/// from whoever is in the way: it is refused here, where the plan is no mere upper bound. A GPU's is refused by its driver.
fn check_room(settings: &LlamaSettings, header: &Header, plan: Plan) -> Result<(), TextError> {
    let weights = if settings.mmap && !settings.mlock {
        0
    } else {
        plan.weight_bytes
    };
    let needed = plan
        .cache_bytes
        .saturating_add(plan.compute_bytes)
        .saturating_add(weights);
    match available_memory() {
        Some(free) if needed > free && header.is_cache_exact() && gpus(settings).is_empty() => {
            Err(TextError::Model(format!(
                "{plan}, but {} MiB are free; fewer slots, a shorter context or smaller cache types need less",
                free >> 20
            )))
        }
        _ => Ok(()),
    }
}

/// The engine's thread: loads, reports, serves.
fn serve(
    backend: &LlamaBackend,
    settings: &LlamaSettings,
    plan: Plan,
    jobs: Receiver<Job>,
    progress: impl FnMut(f32) -> bool + Send + 'static,
    ready: &mpsc::Sender<Result<(Words, BatchLimits), TextError>>,
) {
    let loaded = model_params(settings, progress).and_then(|params| {
        LlamaModel::load_from_file(backend, &settings.model, &params)
            .map_err(|_| TextError::Model(format!("llama.cpp cannot load `{}`", settings.model.display())))
    });
    // The loader's sender is dropped or told in every case: nobody waits for ever.
    let model = match loaded {
        Ok(model) => model,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let context = match model.new_context(backend, context_params(settings, plan)) {
        Ok(context) => context,
        Err(error) => {
            let message =
                format!("no context for it can be made ({error}); fewer slots or a shorter context need less");
            let _ = ready.send(Err(TextError::Model(message)));
            return;
        }
    };
    let vocabulary = Vocabulary::new(&model);
    let mut limits = BatchLimits {
        context_tokens: plan.context_tokens as usize,
        batch_tokens: settings.batch() as usize,
        prefill_tokens: settings.batch() as usize,
        can_share: !model.is_recurrent() && !model.is_hybrid(),
    };
    let mut context = context;
    // The first round pages the weights in, the second is timed where its time is wanted.
    let rounds = if settings.prefill_tokens == 0 { 2 } else { 1 };
    match (
        settings.prefill_tokens,
        warm_up(&mut context, limits.batch_tokens, rounds),
    ) {
        (_, Err(error)) => {
            let _ = ready.send(Err(error));
            return;
        }
        (0, Ok(per_token)) => limits.prefill_tokens = chunk(per_token, limits.batch_tokens),
        (wanted, Ok(_)) => limits.prefill_tokens = (wanted as usize).clamp(16, limits.batch_tokens),
    }
    tracing::debug!(?limits, "text model ready");
    if ready.send(Ok((vocabulary.words(), limits))).is_ok() {
        Batcher::new(context, vocabulary, jobs, plan.slots, limits).run();
    }
}

fn model_params(
    settings: &LlamaSettings,
    progress: impl FnMut(f32) -> bool + Send + 'static,
) -> Result<LlamaModelParams, TextError> {
    let mut params = LlamaModelParams::default()
        .with_use_mmap(settings.mmap)
        .with_use_mlock(settings.mlock)
        .with_n_gpu_layers(settings.gpu_layers.unwrap_or(u32::MAX))
        .with_split_mode(match settings.split {
            Split::None => LlamaSplitMode::None,
            Split::Layer => LlamaSplitMode::Layer,
            Split::Row => LlamaSplitMode::Row,
        })
        .with_progress_callback(progress);
    if let Some(main_gpu) = settings.main_gpu {
        params = params.with_main_gpu(i32::try_from(main_gpu).unwrap_or(0));
    }
    if !settings.devices.is_empty() {
        params = params
            .with_devices(&settings.devices)
            .map_err(|error| TextError::Model(format!("the devices {:?} cannot be used: {error}", settings.devices)))?;
    }
    Ok(params)
}

fn context_params(settings: &LlamaSettings, plan: Plan) -> LlamaContextParams {
    let cache = |kind| match kind {
        CacheType::F32 => KvCacheType::F32,
        CacheType::F16 => KvCacheType::F16,
        CacheType::Bf16 => KvCacheType::BF16,
        CacheType::Q8_0 => KvCacheType::Q8_0,
        CacheType::Q5_0 => KvCacheType::Q5_0,
        CacheType::Q4_0 => KvCacheType::Q4_0,
    };
    let flash = match settings.flash_attention {
        Flash::Auto => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
        Flash::On => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        Flash::Off => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(plan.context_tokens.saturating_mul(plan.slots)))
        .with_n_batch(settings.batch())
        .with_n_ubatch(settings.batch())
        .with_n_seq_max(plan.slots)
        .with_n_threads(settings.thread_count())
        .with_n_threads_batch(settings.thread_count())
        .with_type_k(cache(settings.cache_keys))
        .with_type_v(cache(settings.cache_values))
        .with_flash_attention_policy(flash)
        // One cache for all slots: a shared beginning is stored once, and copying it copies nothing.
        .with_kv_unified(true)
        .with_swa_full(false)
}

/// Runs a few tokens `rounds` times and says how long one of the last took in a prompt.
fn warm_up(context: &mut LlamaContext<'_>, batch_tokens: usize, rounds: usize) -> Result<Duration, TextError> {
    let tokens = batch_tokens.min(32);
    let mut batch = LlamaBatch::new(tokens, 1);
    let mut took = Duration::ZERO;
    for _ in 0..rounds {
        batch.clear();
        let start = Instant::now();
        for (position, place) in (0..).zip(0..tokens) {
            batch
                .add(llama_cpp_2::token::LlamaToken(0), position, &[0], place + 1 == tokens)
                .map_err(|error| TextError::Model(error.to_string()))?;
        }
        context
            .decode(&mut batch)
            .map_err(|error| TextError::Model(format!("it cannot be run: {error}")))?;
        context.synchronize();
        took = start.elapsed();
        context.clear_kv_cache();
    }
    Ok(took / u32::try_from(tokens).unwrap_or(1))
}

/// Prompt tokens per batch such that one batch takes about half a second: others write on, a cancel is heard.
fn chunk(per_token: Duration, batch_tokens: usize) -> usize {
    let fitting = Duration::from_millis(500).as_nanos() / per_token.as_nanos().max(1);
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX).clamp(16, batch_tokens);
    // A power of two, so that small differences in speed do not change the batches and with them the rounding.
    1 << fitting.ilog2()
}
