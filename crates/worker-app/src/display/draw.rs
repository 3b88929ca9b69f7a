//! Draws a status. Pure: the same status and the same size give the same picture.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph, Wrap};
use worker_runtime::status::{JobStatus, Level, Stage};

use super::words::{self, sane, span, why_idle};
use crate::state::StatusFile;
use crate::text::{printable, truncated};

const KEYS: &str = "p pause · r resume · f finish · q drain and quit";
const BAR_CELLS: usize = 24;
/// Longest server message shown, in characters.
const MESSAGE_CHARS: usize = 300;
/// Fewer rows than this show only the most important lines.
const SMALL_ROWS: u16 = 12;

/// Draws `file` over the whole frame, whatever its size.
pub fn draw(frame: &mut Frame<'_>, file: &StatusFile) {
    let area = frame.area();
    if area.height < SMALL_ROWS || area.width < 40 {
        let mut lines = vec![head(file), figures(file)];
        lines.extend(jobs(file, area.width));
        lines.push(Line::from(KEYS));
        frame.render_widget(Paragraph::new(lines), area);
        return;
    }
    let job_lines = jobs(file, area.width.saturating_sub(4));
    let messages = messages(file);
    let rows = |lines: usize, most: u16| u16::try_from(lines).unwrap_or(most).clamp(1, most) + 2;
    let message_rows = if messages.is_empty() {
        0
    } else {
        rows(messages.len() * 2, 6)
    };
    let [top, figures_row, job_box, device_box, event_box, message_box, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(rows(n_rows(&job_lines, area.width - 2), (area.height / 2).max(3) - 2)),
        Constraint::Length(rows(file.status.devices.len(), 4)),
        Constraint::Min(3),
        Constraint::Length(message_rows),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head(file)), top);
    frame.render_widget(Paragraph::new(figures(file)), figures_row);
    boxed(frame, job_box, "Jobs", job_lines);
    boxed(frame, device_box, "Devices", devices(file));
    let event_rows = usize::from(event_box.height.saturating_sub(2));
    let title = event_title(file, usize::from(event_box.width.saturating_sub(4)));
    boxed(frame, event_box, &title, events(file, event_rows));
    if message_rows > 0 {
        boxed(frame, message_box, "Messages from the Horde", messages);
    }
    let dropped = file.log_lines_dropped;
    let keys = if dropped > 0 {
        format!("{KEYS} · {dropped} log lines dropped")
    } else {
        KEYS.to_owned()
    };
    frame.render_widget(
        Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)),
        bottom,
    );
}

/// Where the log with warnings is, by its whole path where that fits.
fn event_title(file: &StatusFile, n_chars: usize) -> String {
    let warnings = match (file.log_warnings, &file.log_file) {
        (0, _) | (_, None) => return "Events".to_owned(),
        (1, _) => "1 warning".to_owned(),
        (several, _) => format!("{several} warnings"),
    };
    let log = file.log_file.as_deref().unwrap_or_default();
    let whole = format!("Events · {warnings} in {}", printable(log));
    if whole.chars().count() <= n_chars {
        return whole;
    }
    let name = log.rsplit('/').next().unwrap_or_default();
    truncated(
        &format!("Events · {warnings} in {} of the state directory", printable(name)),
        n_chars,
    )
}

/// Rows that `lines` take when they are broken at `width`; words may need some more.
fn n_rows(lines: &[Line<'_>], width: u16) -> usize {
    lines
        .iter()
        .map(|line| line.width().div_ceil(usize::from(width.max(1))).max(1))
        .sum()
}

fn boxed(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .title(format!(" {title} "));
    frame.render_widget(Paragraph::new(lines).block(block).wrap(Wrap { trim: false }), area);
}

fn head(file: &StatusFile) -> Line<'static> {
    let colour = match file.status.state {
        worker_runtime::status::State::Running if file.status.rest.is_none() => Color::Green,
        _ => Color::Yellow,
    };
    let host = file
        .horde_url
        .split("://")
        .last()
        .unwrap_or_default()
        .split('/')
        .next()
        .unwrap_or_default();
    Line::from(vec![
        Span::styled(
            format!("{} {}", printable(&file.program), printable(&file.version)),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw(format!(" · {} · {} · ", printable(&file.worker_name), printable(host))),
        Span::styled(
            words::state(&file.status),
            Style::new().fg(colour).add_modifier(Modifier::BOLD),
        ),
    ])
}

fn figures(file: &StatusFile) -> Line<'static> {
    let status = &file.status;
    let totals = &status.totals;
    let mut text = format!(
        "{:.1} kudos ({:.1}/h) · {} delivered, {} handed back, {} expired",
        sane(totals.kudos),
        sane(status.kudos_per_hour),
        totals.submitted,
        totals.faulted,
        totals.expired,
    );
    if status.outbox > 0 {
        text.push_str(&format!(" · {} waiting to be handed in", status.outbox));
    }
    text.push_str(&format!(
        " · busy {:.0} % · up {}",
        sane(status.busy_fraction) * 100.0,
        span(status.uptime_s)
    ));
    Line::from(text)
}

fn jobs(file: &StatusFile, width: u16) -> Vec<Line<'static>> {
    let status = &file.status;
    if status.jobs.is_empty() {
        let why = why_idle(status).unwrap_or_else(|| words::state(status));
        return vec![Line::from(printable(&why))];
    }
    let mut lines = Vec::with_capacity(status.jobs.len() * 2);
    for job in &status.jobs {
        lines.push(Line::from(truncated(&job_words(job), usize::from(width))));
        if job.stage == Stage::Running {
            lines.push(bar(job, &file.unit));
        }
    }
    lines
}

fn job_words(job: &JobStatus) -> String {
    let stage = match job.stage {
        Stage::Preparing => "fetching its inputs",
        Stage::Waiting => "waiting",
        Stage::Running => "running",
        Stage::Delivering => "being delivered",
    };
    let mut text = printable(&job.id);
    if let Some(model) = &job.model {
        text.push_str(&format!("  {}", truncated(&printable(model), 48)));
    }
    if job.generations > 1 {
        text.push_str(&format!("  ×{}", job.generations));
    }
    text.push_str(&format!("  {stage}"));
    if let (Stage::Running, Some(device)) = (job.stage, &job.device) {
        text.push_str(&format!(" on {}", printable(device)));
    }
    text.push_str(&format!("  ({} of {})", span(job.age_s), span(job.ttl_s)));
    text
}

fn bar(job: &JobStatus, unit: &str) -> Line<'static> {
    let share = if job.total == 0 {
        0.0
    } else {
        (f64::from(job.done) / f64::from(job.total)).clamp(0.0, 1.0)
    };
    let n_full = (share * BAR_CELLS as f64).round() as usize;
    let mut text = format!(" {}/{} {}", job.done, job.total, printable(unit));
    if !job.phase.is_empty() {
        text.push_str(&format!(" ({})", printable(&job.phase)));
    }
    if let Some(rate) = job.rate.filter(|rate| rate.is_finite()) {
        text.push_str(&format!(" · {rate:.1} {}/s", printable(unit)));
    }
    if let Some(eta) = job.eta_s {
        text.push_str(&format!(" · {} left", span(eta)));
    }
    Line::from(vec![
        Span::styled("█".repeat(n_full), Style::new().fg(Color::Cyan)),
        Span::styled("░".repeat(BAR_CELLS - n_full), Style::new().add_modifier(Modifier::DIM)),
        Span::raw(text),
    ])
}

fn devices(file: &StatusFile) -> Vec<Line<'static>> {
    file.status
        .devices
        .iter()
        .map(|device| {
            let mut text = format!(
                "{}  {}  {}/{} running  busy {:.0} %",
                printable(&device.name),
                printable(&device.state),
                device.running,
                device.capacity,
                sane(device.busy_fraction) * 100.0
            );
            if let Some(reason) = &device.reason {
                text.push_str(&format!("  {}", printable(reason)));
            }
            Line::from(text)
        })
        .collect()
}

fn events(file: &StatusFile, n_rows: usize) -> Vec<Line<'static>> {
    let status = &file.status;
    status
        .events
        .iter()
        .rev()
        .take(n_rows)
        .map(|event| {
            let style = match event.level {
                Level::Good => Style::new(),
                Level::Warning => Style::new().fg(Color::Yellow),
                Level::Bad => Style::new().fg(Color::Red),
            };
            let age = span(status.updated_unix_ms.saturating_sub(event.at_unix_ms) as f64 / 1000.0);
            Line::from(vec![
                Span::styled(format!("{age:>9} ago  "), Style::new().add_modifier(Modifier::DIM)),
                Span::styled(printable(&event.text), style),
            ])
        })
        .collect()
}

fn messages(file: &StatusFile) -> Vec<Line<'static>> {
    file.status
        .messages
        .iter()
        .rev()
        .take(3)
        .map(|message| {
            let origin = message.origin.as_deref().unwrap_or("the Horde");
            let text = format!("{}: {}", printable(origin), printable(&message.text));
            Line::from(truncated(&text, MESSAGE_CHARS))
        })
        .collect()
}
