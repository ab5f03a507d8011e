//! Charts as plain SVG: a bar for each median, with a line from quartile to quartile.

use std::fmt::Write;

use crate::page::number;
use crate::sheet::Measurement;

const WIDTH: f64 = 720.0;
const LABELS: f64 = 130.0;
const VALUES: f64 = 110.0;
const LINE: f64 = 22.0;
const MARGIN: f64 = 12.0;

/// Bars of all cases and peers of one metric, the cases one below the other.
pub(crate) fn bars(metric: &str, measurements: &[&Measurement]) -> String {
    let largest = measurements.iter().map(|one| one.summary.p75).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - VALUES) / largest;
    let unit = measurements.first().map_or("", |one| one.unit.name());
    let mut body = String::new();
    let mut y = MARGIN + LINE;
    _ = writeln!(
        body,
        r#"<text x="{MARGIN}" y="{}" class="title">{}</text>"#,
        MARGIN + 8.0,
        escaped(metric)
    );
    let mut case = "";
    for Measurement { key, summary, .. } in measurements {
        if key.case != case {
            case = &key.case;
            _ = writeln!(
                body,
                r#"<text x="{MARGIN}" y="{}" class="case">{}</text>"#,
                y + 14.0,
                escaped(case)
            );
            y += LINE;
        }
        let [length, low, high] =
            [summary.p50, summary.p25, summary.p75].map(|value| value * scale);
        let (middle, label, value) = (y + LINE / 2.0, y + 15.0, number(summary.p50));
        let end = LABELS + length.max(high) + 8.0;
        let (from, to) = (LABELS + low, LABELS + high);
        let (bar, height, color) = (y + 3.0, LINE - 6.0, color(&key.peer));
        _ = writeln!(
            body,
            r#"<text x="{}" y="{label}" text-anchor="end">{}</text>"#,
            LABELS - 8.0,
            escaped(&key.peer)
        );
        _ = writeln!(
            body,
            r#"<rect x="{LABELS}" y="{bar}" width="{length:.1}" height="{height}" fill="{color}"/>"#
        );
        _ = writeln!(
            body,
            r##"<path d="M{from:.1} {middle}H{to:.1}" stroke="#222" stroke-width="2"/>"##
        );
        _ = writeln!(body, r#"<text x="{end:.1}" y="{label}">{value} {unit}</text>"#);
        y += LINE;
    }
    let height = y + MARGIN;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">
<style>text {{ font: 13px sans-serif; fill: #222 }} .title, .case {{ font-weight: bold }}</style>
<rect width="100%" height="100%" fill="#fff"/>
{body}</svg>
"##
    )
}

/// margay stands out.
fn color(peer: &str) -> &'static str {
    match peer {
        "margay" => "#d9822b",
        "margay linux" => "#ecc392",
        "ptp" => "#6c8ebf",
        "bridge" => "#a9bedd",
        _ => "#b5b5b5",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
