//! The report as a table.

use vision::safety::calibrate::{Point, Report, VerdictReport};

/// Prints to standard output.
pub fn report(report: &Report) {
    println!("{} pictures", report.n_pictures);
    for group in &report.groups {
        let of = group.n_positive;
        println!();
        println!(
            "{}: {} positive, {} negative, AUC {}",
            group.group.name(),
            group.n_positive,
            group.n_negative,
            area(group.auc)
        );
        println!("  now       {}", rates(&group.now, of));
        if let Some(proposed) = &group.proposed {
            println!("  proposed  {}", rates(proposed, of));
        }
        if let Some(unseen) = &group.unseen {
            println!("  unseen    {}", rates(unseen, of));
        }
        for point in &group.curve {
            println!("  curve     {}  thresholds {:+.4}", rates(point, of), point.at);
        }
        for phrase in &group.phrases {
            let proposed = phrase.proposed.map_or_else(String::new, |point| {
                format!("  proposed {:.4} {}", point.at, rates(&point, of))
            });
            println!(
                "  AUC {}  now {:.4} {}{proposed}  `{}`",
                area(phrase.auc),
                phrase.now.at,
                rates(&phrase.now, of),
                phrase.text
            );
        }
    }
    for (when, verdicts) in [("now", &report.verdicts_now), ("proposed", &report.verdicts_proposed)] {
        println!();
        println!("the check as a whole, {when}: pictures of each label without a prompt");
        verdicts.iter().for_each(verdict);
    }
    println!();
    if report.doubts.is_empty() {
        println!("the proposed thresholds count as calibrated");
    }
    for doubt in &report.doubts {
        println!("NOT calibrated: {doubt}");
    }
}

fn verdict(verdict: &VerdictReport) {
    println!(
        "  {:<28} {:>6}  ok {:>6}  nsfw {:>6}  csam {:>6}  not ok {}  csam {}",
        verdict.label,
        verdict.n,
        verdict.n_ok,
        verdict.n_nsfw,
        verdict.n_csam,
        between(verdict.not_ok_95),
        between(verdict.csam_95),
    );
}

/// Precision and recall say nothing where no picture is right.
fn rates(point: &Point, n_positive: usize) -> String {
    let of_right = match n_positive {
        0 => String::new(),
        _ => format!(
            "precision {:.3} {} recall {:.3} {} ",
            point.precision,
            between(point.precision_95),
            point.recall,
            between(point.recall_95),
        ),
    };
    format!("{of_right}false {:.4} {}", point.fpr, between(point.fpr_95))
}

/// Bounds of 95 % confidence.
fn between([low, high]: [f64; 2]) -> String {
    format!("[{low:.3} {high:.3}]")
}

fn area(auc: Option<f64>) -> String {
    auc.map_or_else(|| "  -  ".to_owned(), |auc| format!("{auc:.3}"))
}
