//! Plots as SVG: small files, text that stays text, no fonts and no image library needed.
//!
//! ```text
//!   ratios-MODE.svg     a bar a workload: rate of dedup-nbd as a part of the peer's, from the worst to the best round a thin line
//!   latency-MODE.svg    two lines a workload, peer and dedup-nbd: p50, p99, p99.9 of each kind of request, logarithmic
//!   fill.svg            rate of a fill, and the p99.9 of its batches, over what was written
//! ```

use crate::fio::Latency;
use crate::server::Mode;
use crate::summary::Summary;
use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Pixels.
const WIDTH: u32 = 940;
/// Where names end and bars begin.
const BARS_LEFT: i32 = 420;
/// Where the longest bar ends; behind it stands its number.
const BARS_RIGHT: i32 = 870;
/// Height of a row, and of what stands above and below all of them.
const ROW: i32 = 22;
/// See [`ROW`].
const HEAD: i32 = 52;
/// See [`ROW`].
const FOOT: i32 = 34;
/// Longer bars are cut here: what is five times as fast need not be compared by eye.
const RATIO_MAX: f64 = 5.0;
/// Ends of the axis of latencies, in microseconds.
const LATENCY_RANGE_US: (f64, f64) = (1.0, 1e6);

const OURS: RGBColor = RGBColor(31, 119, 180);
const PEER: RGBColor = RGBColor(127, 127, 127);
const GRID: RGBColor = RGBColor(221, 221, 221);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws everything of a comparison with peers into `dir`; gives the files' names.
pub(crate) fn peers(summaries: &[Summary], dir: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut written = Vec::new();
    for mode in Mode::ALL {
        let of_mode: Vec<&Summary> = summaries.iter().filter(|s| s.mode == mode).collect();
        for (kind, svg) in [("ratios", ratios(&of_mode, mode)?), ("latency", latencies(&of_mode, mode)?)] {
            let Some(svg) = svg else { continue };
            let name = format!("{kind}-{}.svg", mode.name());
            save(&dir.join(&name), &svg)?;
            written.push(name);
        }
    }
    Ok(written)
}

/// Draws `fill.jsonl` to `svg`.
pub(crate) fn fill(log: &Path, svg: &Path) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let lines: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{}: expected lines of JSON", log.display()))?;
    save(svg, &fill_svg(&crate::fill::of_first_kind(lines))?)
}

fn save(path: &Path, svg: &str) -> Result<()> {
    fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

/// Anything that a backend that writes into a string complains about.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// Text that begins, ends or has its middle at a point.
fn text(area: &Area<'_>, text: impl Into<String>, at: (i32, i32), side: HPos, color: RGBColor) -> Result<()> {
    let style = ("sans-serif", 15).into_text_style(area).color(&color).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.into(), at, style)).map_err(failed)
}

fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> Result<()> {
    area.draw(&PathElement::new([from, to], color.stroke_width(width))).map_err(failed)
}

/// A plot of rows: names on the left, a title above.
fn rows(title: &str, rows: usize, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let height = HEAD + FOOT + ROW * i32::try_from(rows)?;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height.unsigned_abs())).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        text(&area, title, (12, 18), HPos::Left, BLACK)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The middle of a row.
fn row_y(row: usize) -> i32 {
    HEAD + ROW / 2 + ROW * i32::try_from(row).unwrap_or(0)
}

/// Where a part of the axis is.
fn at(part: f64) -> i32 {
    BARS_LEFT + (f64::from(BARS_RIGHT - BARS_LEFT) * part.clamp(0.0, 1.0)) as i32
}

fn ratios(summaries: &[&Summary], mode: Mode) -> Result<Option<String>> {
    let bars: Vec<_> = summaries.iter().filter_map(|s| Some((s, s.ratio?))).collect();
    let Some(highest) = bars.iter().map(|(_, ratio)| ratio.max).max_by(f64::total_cmp) else {
        return Ok(None);
    };
    let end = highest.clamp(1.2, RATIO_MAX);
    let peer = crate::server::Kind::Peer.name(mode);
    let title = format!("Rate of dedup-nbd, as a part of {peer} ({})", mode.name());
    let bottom = row_y(bars.len()) - ROW / 2;
    rows(&title, bars.len(), |area| {
        for tick in 0..=(end / 0.5) as u32 {
            let value = f64::from(tick) * 0.5;
            let color = if tick == 2 { PEER } else { GRID };
            line(area, (at(value / end), HEAD), (at(value / end), bottom), color, 1)?;
            text(area, format!("{value}"), (at(value / end), bottom + 14), HPos::Center, BLACK)?;
        }
        for (row, (summary, ratio)) in bars.iter().enumerate() {
            let y = row_y(row);
            text(area, summary.workload.name, (BARS_LEFT - 8, y), HPos::Right, BLACK)?;
            let bar = [(at(0.0), y - 6), (at(ratio.median / end), y + 6)];
            area.draw(&Rectangle::new(bar, OURS.filled())).map_err(failed)?;
            line(area, (at(ratio.min / end), y), (at(ratio.max / end), y), BLACK, 1)?;
            text(area, format!("{:.2}", ratio.median), (BARS_RIGHT + 12, y), HPos::Left, BLACK)?;
        }
        Ok(())
    })
    .map(Some)
}

fn latencies(summaries: &[&Summary], mode: Mode) -> Result<Option<String>> {
    // Peer and dedup-nbd of a workload follow one another.
    let pairs: Vec<_> = summaries
        .iter()
        .filter(|s| s.ratio.is_some())
        .flat_map(|ours| {
            let peer = summaries.iter().find(|s| s.workload == ours.workload && s.is_peer());
            let kinds = ["read", "write", "trim", "flush"];
            kinds.into_iter().filter_map(move |kind| {
                Some((ours.workload, kind, ours.latencies.of(kind)?, peer?.latencies.of(kind)?))
            })
        })
        .collect();
    if pairs.is_empty() {
        return Ok(None);
    }
    let (first, last) = LATENCY_RANGE_US;
    let place = |us: f64| at((us.max(first) / first).log10() / (last / first).log10());
    let peer = crate::server::Kind::Peer.name(mode);
    let title = format!("Latency, p50 to p99 to p99.9 ({}); blue: dedup-nbd, grey: {peer}", mode.name());
    let bottom = row_y(pairs.len()) - ROW / 2;
    rows(&title, pairs.len(), |area| {
        for (us, name) in [
            (1.0, "1 us"),
            (1e1, "10 us"),
            (1e2, "100 us"),
            (1e3, "1 ms"),
            (1e4, "10 ms"),
            (1e5, "100 ms"),
            (1e6, "1 s"),
        ] {
            line(area, (place(us), HEAD), (place(us), bottom), GRID, 1)?;
            text(area, name, (place(us), bottom + 14), HPos::Center, BLACK)?;
        }
        for (row, (workload, kind, ours, peer)) in pairs.iter().enumerate() {
            let y = row_y(row);
            text(area, format!("{}: {kind}", workload.name), (BARS_LEFT - 8, y), HPos::Right, BLACK)?;
            for (latency, y, color) in [(peer, y - 4, PEER), (ours, y + 4, OURS)] {
                percentiles(area, *latency, y, color, place)?;
            }
        }
        Ok(())
    })
    .map(Some)
}

fn percentiles(
    area: &Area<'_>,
    latency: Latency,
    y: i32,
    color: RGBColor,
    place: impl Fn(f64) -> i32,
) -> Result<()> {
    let Latency { p50_us, p99_us, p99_9_us } = latency;
    line(area, (place(p50_us), y), (place(p99_9_us), y), color, 2)?;
    for us in [p50_us, p99_us, p99_9_us] {
        area.draw(&Circle::new((place(us), y), 3, color.filled())).map_err(failed)?;
    }
    Ok(())
}

/// Two charts, one above the other, over GiB written.
fn fill_svg(lines: &[Value]) -> Result<String> {
    ensure!(!lines.is_empty(), "there is no line to draw");
    let series = |name: &str, factor: f64| -> Result<Vec<(f64, f64)>> {
        let point = |line: &Value| {
            let blocks = line["blocks"].as_f64()?;
            Some((blocks * 4096.0 / (1_u64 << 30) as f64, line[name].as_f64()? * factor))
        };
        lines
            .iter()
            .map(|line| point(line).with_context(|| format!("a line lacks blocks or {name}")))
            .collect()
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 560)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (upper, lower) = root.split_vertically(280);
        chart(&upper, "Blocks a second, in thousands", &[(series("blocks_per_second", 1e-3)?, OURS)])?;
        let p99_9 = (series("p999_ms", 1.0)?, OURS);
        let longest = (series("max_ms", 1.0)?, PEER);
        chart(&lower, "A batch: p99.9 (blue) and longest (grey), ms", &[longest, p99_9])?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn chart(area: &Area<'_>, title: &str, series: &[(Vec<(f64, f64)>, RGBColor)]) -> Result<()> {
    let highest = |of: fn(&(f64, f64)) -> f64| {
        series.iter().flat_map(|(points, _)| points).map(of).fold(1e-9, f64::max)
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..highest(|p| p.0), 0.0..highest(|p| p.1) * 1.05)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("GiB written")
        .x_label_formatter(&|gib| format!("{gib:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 14))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .draw()
        .map_err(failed)?;
    for (points, color) in series {
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart.draw_series(line).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::summaries;
    use crate::summary::tests::samples_of_two_rounds;
    use serde_json::json;

    #[test]
    fn a_plot_of_ratios_has_a_name_and_a_number_for_each_workload() {
        let summaries = summaries(&samples_of_two_rounds());
        let dir = tempfile::tempdir().unwrap();
        let written = peers(&summaries, dir.path()).unwrap();
        assert_eq!(written, ["ratios-direct.svg", "latency-direct.svg"]);
        let svg = fs::read_to_string(dir.path().join("ratios-direct.svg")).unwrap();
        for expected in ["4K random write, unique, QD32", "0.50", "qemu-nbd"] {
            assert!(svg.contains(expected), "{expected} is missing in {svg}");
        }
        let svg = fs::read_to_string(dir.path().join("latency-direct.svg")).unwrap();
        assert_eq!(svg.matches("<circle").count(), 6, "three percentiles of two servers");
        assert!(svg.contains("QD32: write"));
    }

    #[test]
    fn a_plot_of_a_fill_has_a_line_with_a_point_for_each_interval() {
        let line = |blocks: u64| json!({"blocks": blocks, "blocks_per_second": 250_000.0, "p999_ms": 3.0, "max_ms": 9.0});
        let mut again = line(1 << 10);
        again["pass"] = json!(2);
        let dir = tempfile::tempdir().unwrap();
        let (log, drawn) = (dir.path().join("fill.jsonl"), dir.path().join("fill.svg"));
        let lines = [line(1 << 18), line(2 << 18), line(3 << 18), again].map(|line| line.to_string() + "\n");
        fs::write(&log, lines.concat()).unwrap();
        fill(&log, &drawn).unwrap();
        let svg = fs::read_to_string(drawn).unwrap();
        let points = |color: &str| -> Vec<usize> {
            let lines = svg.split("<polyline").skip(1).filter(|line| line.contains(color));
            lines
                .filter_map(|line| {
                    Some(line.split("points=\"").nth(1)?.split('"').next()?.matches(',').count())
                })
                .collect()
        };
        assert_eq!((points("#1F77B4"), points("#7F7F7F")), (vec![3, 3], vec![3]), "{svg}");
        assert!(svg.contains("GiB written"));
        assert!(fill_svg(&[json!({"blocks": 1})]).unwrap_err().to_string().contains("blocks_per_second"));
        assert!(fill_svg(&[]).is_err());
    }
}
