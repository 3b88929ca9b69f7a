//! Every sampler on a denoiser that is a formula.

use diffusion::{
    Result,
    sample::{Denoiser, Run, Sampler, StepNoise, sample},
};

use crate::fixtures::{self, Case};

/// `0.8 tanh(x / (1 + s)) + 0.1 sin(2x / (1 + s))`.
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

/// `eps_dpm_2_a_karras_s8_d5` is the variance-exploding space, k_dpm_2_a; the seed stands in `seeds.json`.
fn check(id: &str, seed: u64, limit: f32) -> Result<(), String> {
    let case = Case::open(&format!("cases/sampler_only/{id}.safetensors"));
    let name = id
        .strip_prefix("eps_")
        .or(id.strip_prefix("flow_"))
        .unwrap_or("euler_a_karras");
    let name = name
        .find("_karras")
        .or(name.find("_normal"))
        .map_or(name, |at| &name[..at]);
    let mut steps = 0;
    let sigmas = case.values("sigmas");
    let mut run = Run {
        sigmas: &sigmas,
        is_flow: id.starts_with("flow"),
        seed,
        step_noise: if id.starts_with("cuda") {
            StepNoise::Cuda
        } else {
            StepNoise::Cpu
        },
        on_step: &mut |_, _, _| {
            steps += 1;
            Ok(())
        },
    };
    let sampler = Sampler::from_name(name).ok_or_else(|| format!("no sampler {name}"))?;
    let out = sample(sampler, &mut Formula, case.values("x_init"), &mut run).map_err(|error| error.to_string())?;
    let error = fixtures::distance(&out, &case.values("out"));
    if error > limit {
        return Err(format!("{id}: {error} above {limit}"));
    }
    // With one step there is nothing between the first and the last positive sigma for the adaptive one to do.
    if steps == 0 && id != "eps_dpm_adaptive_normal_s1" {
        return Err(format!("{id} told of no step"));
    }
    Ok(())
}

#[test]
fn every_sampler_ends_where_the_reference_ends() {
    let cases = fixtures::json("cases/sampler_only.json");
    let mut wrong = Vec::new();
    for case in cases.as_array().unwrap() {
        let limit = case["max_abs"].as_f64().unwrap() as f32;
        if let Err(reason) = check(case["id"].as_str().unwrap(), case["seed"].as_u64().unwrap(), limit) {
            wrong.push(reason);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        cases.as_array().unwrap().len(),
        wrong.join("\n")
    );
}
