//! Times the kernels against candle's own operations in one run, on one thread and on two.
//!
//! `cargo run -p tensor-ops --example bench-kernels -- [--json]`

use std::time::Instant;

use candle_core::{D, Device, Result, Tensor};
use tensor_ops::{Activation, Attention, Conv, GroupNorm, attention, conv2d, geglu, group_norm, linear_act, silu};

/// The least of two runs, in seconds.
fn time(mut work: impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..2 {
        let start = Instant::now();
        work()?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

struct Report {
    json: bool,
    threads: usize,
}

impl Report {
    fn compare(
        &self,
        name: &str,
        ours: impl FnMut() -> Result<Tensor>,
        candle: impl FnMut() -> Result<Tensor>,
    ) -> Result<()> {
        let (ours, candle) = (time(ours)?, time(candle)?);
        let (threads, ratio) = (self.threads, ours / candle);
        if self.json {
            println!(
                r#"{{"name":"{name}","threads":{threads},"ours_s":{ours:.5},"candle_s":{candle:.5},"ratio":{ratio:.3}}}"#
            );
        } else {
            println!("{name:28} {threads} thread(s)  ours {ours:8.4} s  candle {candle:8.4} s  ratio {ratio:.2}");
        }
        Ok(())
    }
}

fn run(report: &Report) -> Result<()> {
    let noise = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
    for (batch, c_in, c_out, size) in [
        (2, 320, 320, 64),
        (2, 640, 640, 32),
        (2, 1280, 1280, 16),
        (1, 192, 64, 128),
    ] {
        let (x, w) = (noise(&[batch, c_in, size, size])?, noise(&[c_out, c_in, 3, 3])?);
        report.compare(
            &format!("conv3x3 {c_in}->{c_out} {size}x{size} b{batch}"),
            || conv2d(&x, &w, None, &Conv::padded(1)),
            || x.conv2d(&w, 1, 1, 1, 1),
        )?;
    }
    for (n, heads, size) in [(4096, 8, 40), (1024, 8, 80)] {
        let q = noise(&[1, n, heads * size])?;
        let split = |x: &Tensor| x.reshape((heads, n, size));
        report.compare(
            &format!("attention {heads}x{n}x{size}"),
            || attention(&q, &q, &q, &Attention::new(heads)),
            || {
                let q = split(&q)?;
                let scores = (q.matmul(&q.t()?)? * (1.0 / (size as f64).sqrt()))?;
                candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&q)
            },
        )?;
    }
    let (x, one) = (noise(&[2, 320, 64, 64])?, noise(&[320])?);
    let norm = GroupNorm {
        groups: 32,
        eps: 1e-5,
        silu: true,
    };
    let theirs = candle_nn::GroupNorm::new(one.clone(), one.clone(), 320, 32, 1e-5)?;
    report.compare(
        "group norm + silu 320 64x64",
        || group_norm(&x, &one, &one, &norm),
        || candle_core::Module::forward(&theirs, &x)?.silu(),
    )?;
    report.compare("silu 320 64x64", || silu(&x), || x.silu())?;
    let x = noise(&[2, 4096, 2560])?;
    report.compare(
        "geglu 2x4096x2560",
        || geglu(&x),
        || {
            let parts = x.chunk(2, 2)?;
            &parts[0] * parts[1].gelu_erf()?
        },
    )?;
    let (x, w, b) = (noise(&[8192, 320])?, noise(&[2560, 320])?, noise(&[2560])?);
    report.compare(
        "linear 8192x320->2560",
        || linear_act(&x, &w, Some(&b), Activation::None),
        || x.matmul(&w.t()?)?.broadcast_add(&b),
    )
}

fn main() -> Result<()> {
    let json = std::env::args().any(|argument| argument == "--json");
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(candle_core::Error::wrap)?;
        pool.install(|| run(&Report { json, threads }))?;
    }
    Ok(())
}
