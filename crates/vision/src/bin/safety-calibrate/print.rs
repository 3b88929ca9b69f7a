//! The report as a table.

use vision::safety::calibrate::{Point, Report};

/// Prints to standard output.
pub fn report(report: &Report) {
    println!("{} pictures", report.n_pictures);
    for group in &report.groups {
        println!();
        println!(
            "{}: {} positive, {} negative, AUC {}",
            group.group.name(),
            group.n_positive,
            group.n_negative,
            area(group.auc)
        );
        println!("  now       {}", rates(&group.now));
        if let Some(proposed) = &group.proposed {
            println!("  proposed  {}", rates(proposed));
        }
        for point in &group.curve {
            println!("  curve     {}  thresholds {:+.4}", rates(point), point.at);
        }
        for phrase in &group.phrases {
            let proposed = phrase.proposed.map_or_else(String::new, |point| {
                format!("  proposed {:.4} {}", point.at, rates(&point))
            });
            println!(
                "  AUC {}  now {:.4} {}{proposed}  `{}`",
                area(phrase.auc),
                phrase.now.at,
                rates(&phrase.now),
                phrase.text
            );
        }
    }
    println!();
    if report.doubts.is_empty() {
        println!("the proposed thresholds count as calibrated");
    }
    for doubt in &report.doubts {
        println!("NOT calibrated: {doubt}");
    }
}

fn rates(point: &Point) -> String {
    format!(
        "precision {:.3} recall {:.3} false {:.4}",
        point.precision, point.recall, point.fpr
    )
}

fn area(auc: Option<f64>) -> String {
    auc.map_or_else(|| "  -  ".to_owned(), |auc| format!("{auc:.3}"))
}
