//! Panels of points and lines, drawn into one SVG file.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;

/// Panels beside each other.
const COLUMNS: usize = 2;
/// Width and height of a panel, in points.
const PANEL: (u32, u32) = (560, 420);
/// Sizes of the titles, of the axes' labels and the legend, and of what stands at points, in points.
const TITLE: u32 = 17;
const TEXT: u32 = 13;
const NOTE: u32 = 11;
const FONT: &str = "sans-serif";
/// They differ in print without colour too.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 68, 136),
    RGBColor(214, 110, 0),
    RGBColor(0, 150, 110),
    RGBColor(160, 40, 130),
    RGBColor(110, 110, 110),
];
/// An axis goes on so far past its points, as a part of it.
const MARGIN: f64 = 0.08;
/// So much of the upper end is left to the legend.
const HEADROOM: f64 = 0.3;
/// Ticks on an axis, at most, of values.
const TICKS: f64 = 8.0;

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From 0 on.
    Linear,
    /// By factors; what is not above 0 has no place.
    Log,
    /// 0, 1, 2, ... by name.
    Names,
}

/// One axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What it shows, with its unit.
    pub(crate) label: String,
    pub(crate) scale: Scale,
    /// With [`Scale::Names`]: of the values 0, 1, 2, ...
    pub(crate) names: Vec<String>,
    /// Values that lie on it besides its points: so panels have the same axis.
    pub(crate) holds: Vec<f64>,
}

impl Axis {
    /// An axis from 0 on.
    pub(crate) fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Linear, names: Vec::new(), holds: Vec::new() }
    }

    /// An axis by factors.
    pub(crate) fn log(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Log, names: Vec::new(), holds: Vec::new() }
    }

    /// An axis of names.
    pub(crate) fn names(label: &str, names: Vec<String>) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Names, names, holds: Vec::new() }
    }
}

/// A point, and what is written beside it.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) note: String,
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// What the legend says.
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// One picture of those in the file.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// Whether lines join the points of a series: not where nothing lies between them.
    pub(crate) lines: bool,
    pub(crate) series: Vec<Series>,
}

impl Axis {
    /// Where a value lies.
    fn place(&self, value: f64) -> f64 {
        if self.scale == Scale::Log { value.log10() } else { value }
    }

    /// From where to where the axis goes, in places.
    fn range(&self, values: impl Iterator<Item = f64>, headroom: f64) -> Range<f64> {
        if self.scale == Scale::Names {
            return -0.5..self.names.len() as f64 - 0.5;
        }
        let values = values.chain(self.holds.iter().copied());
        let places = values.map(|value| self.place(value)).filter(|place| place.is_finite());
        let (low, high) = places
            .fold((f64::MAX, f64::MIN), |(low, high), place| (low.min(place), high.max(place)));
        if low > high {
            return 0.0..1.0;
        }
        let low = if self.scale == Scale::Linear { low.min(0.0) } else { low };
        let length = (high - low).max(if self.scale == Scale::Log { 0.3 } else { 1e-9 });
        let below = if self.scale == Scale::Log { MARGIN * length } else { 0.0 };
        low - below..high + length * (MARGIN + headroom)
    }

    /// The places that are named.
    fn ticks(&self, range: &Range<f64>) -> Vec<f64> {
        let inside = |place: &f64| range.contains(place);
        match self.scale {
            Scale::Names => (0..self.names.len()).map(|i| i as f64).collect(),
            Scale::Linear => {
                let rough = (range.end - range.start) / TICKS;
                let power = 10f64.powf(rough.log10().floor());
                let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
                let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                let first = (range.start / step).ceil() as i64;
                (first..).map(|i| i as f64 * step).take_while(|at| *at < range.end).collect()
            }
            Scale::Log => {
                let decades = range.start.floor() as i32..=range.end.ceil() as i32;
                let within: &[f64] = match range.end - range.start {
                    length if length < 1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
                    length if length < 2.7 => &[1.0, 2.0, 5.0],
                    _ => &[1.0],
                };
                let each =
                    |decade: i32| within.iter().map(move |f| (f * 10f64.powi(decade)).log10());
                decades.flat_map(each).filter(inside).collect()
            }
        }
    }

    /// What stands at a place.
    fn name(&self, place: f64) -> String {
        match self.scale {
            Scale::Names => self.names.get(place.round() as usize).cloned().unwrap_or_default(),
            Scale::Linear => number(place),
            Scale::Log => number(10f64.powf(place)),
        }
    }
}

/// An axis as it is drawn: places from where to where, and which of them are named.
struct Places {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (place - self.range.start) / (self.range.end - self.range.start);
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// 1500 as 1500, 80000 as 80k, 0.25 as 0.25.
fn number(value: f64) -> String {
    let short = |value: f64| {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        v if v >= 1e6 => short(value / 1e6) + "M",
        v if v >= 1e4 => short(value / 1e3) + "k",
        _ => short(value),
    }
}

/// The panels as an SVG document.
pub(crate) fn render(panels: &[Panel]) -> Result<String> {
    let mut svg = String::new();
    let columns = COLUMNS.min(panels.len()).max(1);
    let rows = panels.len().div_ceil(columns).max(1);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        // Its errors name the string's lifetime.
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("cannot draw the figures: {error}");
        root.fill(&WHITE).map_err(failed)?;
        for (area, panel) in root.split_evenly((rows, columns)).iter().zip(panels) {
            draw_panel(area, panel).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panel: &Panel) -> Drawn<B> {
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let xs = panel.x.range(points().map(|point| point.x), 0.0);
    let ys = panel.y.range(points().map(|point| point.y), HEADROOM);
    let (x_ticks, y_ticks) = (panel.x.ticks(&xs), panel.y.ticks(&ys));
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, TITLE))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(62)
        .build_cartesian_2d(
            Places { range: xs, ticks: x_ticks },
            Places { range: ys, ticks: y_ticks },
        )?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .label_style((FONT, TEXT))
        .axis_desc_style((FONT, TEXT))
        .x_desc(&panel.x.label)
        .y_desc(&panel.y.label)
        .x_label_formatter(&|place| panel.x.name(*place))
        .y_label_formatter(&|place| panel.y.name(*place))
        .draw()?;
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let placed = |point: &Point| (panel.x.place(point.x), panel.y.place(point.y));
        let there = |place: &(f64, f64)| place.0.is_finite() && place.1.is_finite();
        let places: Vec<_> = series.points.iter().map(placed).filter(there).collect();
        if panel.lines {
            chart.draw_series(LineSeries::new(places.iter().copied(), colour.stroke_width(2)))?;
        }
        chart
            .draw_series(places.iter().map(|place| Circle::new(*place, 4, colour.filled())))?
            .label(&series.name)
            .legend(|(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        let notes = series.points.iter().filter(|point| !point.note.is_empty());
        chart.draw_series(notes.filter(|point| there(&placed(point))).map(|point| {
            let text =
                Text::new(point.note.clone(), (7, -13), (FONT, NOTE).into_font().color(colour));
            EmptyElement::at(placed(point)) + text
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, TEXT))
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> Panel {
        let point = |x, y: f64| Point { x, y, note: number(y) };
        let points = vec![point(0.0, 80.0), point(1.0, 160.0), point(2.0, 0.0)];
        let names = ["0/0", "0/4096", "a < b & c"].map(str::to_owned).to_vec();
        Panel {
            title: "Figure 3a".into(),
            x: Axis::names("payload (bytes)", names),
            y: Axis::log("latency (us)"),
            lines: true,
            series: vec![Series { name: "p50 <median>".into(), points }],
        }
    }

    #[test]
    fn what_is_written_stands_in_the_picture() {
        let svg = render(&[panel(), panel(), panel()]).unwrap();
        for text in ["Figure 3a", "payload (bytes)", "latency (us)", "a &lt; b &amp; c", "160"] {
            assert!(svg.contains(text), "no {text}: {svg}");
        }
        assert!(svg.contains("width=\"1120\" height=\"840\""), "{svg}");
    }

    #[test]
    fn panels_without_points_are_drawn_too() {
        let empty = Panel { series: Vec::new(), ..panel() };
        assert!(render(&[empty]).unwrap().contains("Figure 3a"));
        assert!(render(&[]).is_ok());
    }

    #[test]
    fn axes_hold_their_points_and_name_round_places() {
        let axis = Axis::linear("requests/s");
        let range = axis.range([900.0, 88_000.0].into_iter(), 0.0);
        assert!(range.start == 0.0 && range.end > 88_000.0 && range.end < 100_000.0, "{range:?}");
        let names: Vec<_> = axis.ticks(&range).iter().map(|tick| axis.name(*tick)).collect();
        assert_eq!(names, ["0", "20k", "40k", "60k", "80k"]);
        let axis = Axis { holds: vec![900.0], ..Axis::log("latency (us)") };
        let range = axis.range([70.0].into_iter(), 0.0);
        let names: Vec<_> = axis.ticks(&range).iter().map(|tick| axis.name(*tick)).collect();
        assert_eq!(names, ["100", "200", "500", "1000"]);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.25, 1500.0, 80_000.0, 2.5e6].map(number);
        assert_eq!(texts, ["0", "0.25", "1500", "80k", "2.5M"]);
    }
}
