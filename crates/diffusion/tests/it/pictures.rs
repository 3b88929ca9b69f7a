//! Whole runs, from the prompt to the final latent.

use candle_core::Tensor;
use diffusion::{
    Error, Hires, Progress, Request, Source,
    adapter::{self, Lora},
    sample::{Sampler, StepNoise},
    sigma::Schedule,
};

use crate::{
    fixtures::{self, Case},
    networks::{close, input, pipeline},
};

const CAT: &str = "a red cat in the forest, oil painting";

#[derive(Default)]
struct Last {
    latent: Option<Tensor>,
    steps: Vec<usize>,
    stop_at: Option<usize>,
}

impl Progress for Last {
    fn step(&mut self, step: usize, _: usize) {
        self.steps.push(step);
    }
    fn is_cancelled(&self) -> bool {
        self.stop_at.is_some_and(|stop| self.steps.len() >= stop)
    }
    fn stage(&mut self, name: &str, value: &Tensor) {
        if name == "latent" {
            self.latent = Some(value.clone());
        }
    }
}

fn request(prompt: &str, seed: u64, sampler: Sampler) -> Request {
    Request {
        steps: 8,
        seed,
        sampler,
        step_noise: StepNoise::Cpu,
        ..Request::new(prompt, 64, 64)
    }
}

fn source(denoise: f64, mask: bool, inpaint: bool) -> Option<Source> {
    Some(Source {
        picture: input("init_64x64.png"),
        mask: mask.then(|| input("mask_64x64.png").to_grey()),
        inpaint,
        denoise,
    })
}

fn check(model: &str, case: &str, request: &Request, loras: &[Lora], limit: f32) {
    let pipeline = pipeline(model);
    let before = pipeline.model().params().get("unet.input_blocks.1.1.proj_in.weight");
    let applied = adapter::apply(pipeline.model(), loras).unwrap();
    let mut last = Last::default();
    let pictures = pipeline.generate(request, &mut last).unwrap();
    assert_eq!(pictures.len(), request.batch);
    close(
        &last.latent.unwrap(),
        &Case::open(&format!("cases/{case}.safetensors")),
        "latent",
        limit,
    );
    adapter::take_off(pipeline.model(), applied).unwrap();
    if let Some(param) = before {
        let name = "unet.input_blocks.1.1.proj_in.weight";
        let now = param.get();
        let file = pipeline
            .model()
            .weights()
            .tensor(name, now.dtype(), now.device())
            .unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&now), values(&file), "the LoRA was not taken off exactly");
    }
}

#[test]
fn a_plain_picture_ends_in_the_references_latent() {
    let case = "txt2img/dpmpp_2m_karras_s8";
    let prompt = "portrait of an old woman, soft light, bokeh ### angry, fog";
    check("sd15", case, &request(prompt, 12345, Sampler::Dpmpp2m), &[], 0.0036);
}

#[test]
fn steps_half_way_between_two_timesteps_take_the_references() {
    let prompt = "a lighthouse on a cliff at dawn, thick paint ### people, text";
    let request = Request {
        steps: 7,
        cfg_scale: 6.5,
        schedule: Schedule::Normal,
        ..request(prompt, 1020, Sampler::Euler)
    };
    check("sd15", "txt2img/euler_normal_s7", &request, &[], 0.003);
}

#[test]
fn a_picture_of_odd_levels_follows_the_sizes_of_its_skips() {
    let prompt = "(golden:1.4) dragon over a (burning castle), [night], 8k ### (ugly:1.3), rain";
    let request = Request {
        width: 128,
        height: 96,
        ..request(prompt, 12345, Sampler::Euler)
    };
    check("sd15", "sizes/edge_128x96", &request, &[], 0.0085);
}

#[test]
fn sdxl_takes_its_sizes_and_pooled_text() {
    let prompt = "portrait of an old woman, soft light, bokeh ### angry, fog";
    let request = Request {
        clip_skip: 2,
        ..request(prompt, 121, Sampler::Euler)
    };
    check("sdxl", "sdxl/euler_skip2", &request, &[], 0.011);
}

#[test]
fn a_source_picture_is_changed_by_the_asked_amount() {
    let request = Request {
        steps: 7,
        source: source(0.6, false, false),
        ..request(CAT, 52, Sampler::EulerAncestral)
    };
    check("sd15", "img2img/s6_64x64", &request, &[], 0.001);
}

#[test]
fn a_mask_holds_what_it_does_not_cover() {
    let masked = Request {
        source: source(0.7, true, false),
        ..request(CAT, 61, Sampler::Euler)
    };
    check("sd15", "img2img/masked_64", &masked, &[], 0.0016);
    let inpaint = Request {
        source: source(1.0, true, true),
        ..request(CAT, 64, Sampler::Euler)
    };
    check("sd15", "inpaint/inpaint4ch_64", &inpaint, &[], 0.0063);
}

#[test]
fn a_hires_fix_runs_its_second_pass_on_the_enlarged_latent() {
    let request = Request {
        width: 128,
        height: 128,
        hires: Some(Hires {
            first_width: 64,
            first_height: 64,
            steps: 6,
            denoise: 0.65,
        }),
        ..request(CAT, 71, Sampler::Euler)
    };
    check("sd15", "hires/hires_euler", &request, &[], 0.0053);
}

#[test]
fn a_lora_acts_as_in_the_reference_and_is_taken_off_exactly() {
    let lora = |name: &str| Lora::open(&fixtures::path(&format!("models/lora/{name}.safetensors")), 0.6, 0.6).unwrap();
    check(
        "sd15",
        "lora/lora_0.6",
        &request(CAT, 91, Sampler::Euler),
        &[lora("sd15_lora_r4")],
        0.0086,
    );
    let request = Request {
        clip_skip: 2,
        ..request(CAT, 124, Sampler::Euler)
    };
    check("sdxl", "sdxl/lora_0.6", &request, &[lora("sdxl_lora_r2")], 0.0095);
}

#[test]
fn a_cancelled_run_stops_at_the_next_step() {
    let mut last = Last {
        stop_at: Some(3),
        ..Last::default()
    };
    let result = pipeline("sd15").generate(&request(CAT, 1, Sampler::Euler), &mut last);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(last.steps, [0, 1, 2]);
}

#[test]
fn tiles_meet_at_their_edges_and_batches_differ() {
    let request = Request {
        tiling: true,
        batch: 2,
        steps: 2,
        schedule: Schedule::Simple,
        ..request(CAT, 5, Sampler::Lcm)
    };
    let pictures = pipeline("sd15").generate(&request, &mut ()).unwrap();
    assert_ne!(pictures[0].data(), pictures[1].data());
    let plain = Request {
        tiling: false,
        ..request
    };
    let plain = pipeline("sd15").generate(&plain, &mut ()).unwrap();
    assert_ne!(pictures[0].data(), plain[0].data());
}
