//! Noise levels of every schedule.

use diffusion::sigma::{Levels, Schedule};

use crate::fixtures;

#[test]
fn every_schedule_gives_the_references_sigmas() {
    let mut wrong = Vec::new();
    for row in fixtures::json("stage/sigmas.json").as_array().unwrap() {
        let levels = match row["model"].as_str().unwrap() {
            "eps" => Levels::stable_diffusion(),
            "zsnr" => Levels::zero_terminal_snr(),
            "flow_shift1" => Levels::flow(1.0),
            _ => Levels::flux(1.15),
        };
        let schedule = Schedule::from_name(row["scheduler"].as_str().unwrap()).unwrap();
        let steps = row["steps"].as_u64().unwrap() as usize;
        let skip = row["sampler"] == "dpm_2";
        let got = levels.run(schedule, steps, row["denoise"].as_f64().unwrap(), skip);
        let expected: Vec<f64> = row["sigmas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect();
        let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 2e-5 + 2e-6 * b.abs();
        if got.len() != expected.len() || !got.iter().zip(&expected).all(close) {
            wrong.push(format!(
                "{} {} {} {} {}: {got:?} {expected:?}",
                row["model"], row["scheduler"], row["steps"], row["denoise"], row["sampler"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_levels_of_zero_snr_name_the_references_timesteps() {
    let levels = Levels::zero_terminal_snr();
    let mut wrong = Vec::new();
    for row in fixtures::json("stage/zero_snr.json").as_array().unwrap() {
        for (sigma, timestep) in row["sigmas"]
            .as_array()
            .unwrap()
            .iter()
            .zip(row["timesteps"].as_array().unwrap())
        {
            let got = levels.timestep(sigma.as_f64().unwrap() as f32);
            if f64::from(got) != timestep.as_f64().unwrap() {
                wrong.push(format!(
                    "{} {}: {sigma} is {got}, not {timestep}",
                    row["scheduler"], row["steps"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn absurd_runs_give_no_sigmas_or_few() {
    let levels = Levels::stable_diffusion();
    assert!(levels.run(Schedule::Normal, 0, 1.0, false).is_empty());
    assert!(levels.run(Schedule::Normal, 4, f64::NAN, false).is_empty());
    assert!(levels.run(Schedule::Normal, 4, -1.0, true).is_empty());
    assert_eq!(levels.run(Schedule::Karras, 4, 1e-9, false).len(), 5);
}
