//! The report's curves as SVG: one panel below the other, all over the same time.

use std::fmt::Write as _;

use super::{Report, Sample};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 66.0;
const PANEL: f64 = 110.0;
const GAP: f64 = 34.0;

type Panel = (&'static str, &'static str, fn(&Sample) -> f64);

/// Title, colour and value of each panel.
const PANELS: [Panel; 4] = [
    ("sessions", "#2563eb", |sample| sample.sessions),
    ("server CPU, % of one core", "#dc2626", |sample| {
        sample.cpu_percent
    }),
    ("server memory, MiB", "#059669", |sample| sample.memory),
    ("through the tunnel, Mbit/s", "#7c3aed", |sample| {
        sample.megabits
    }),
];

/// A drawing of everything that was sampled.
pub(crate) fn svg(report: &Report) -> String {
    let height = TOP + PANELS.len() as f64 * (PANEL + GAP);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{}</text>\n",
        escaped(&report.title)
    );
    let last = report.samples.last().map_or(0.0, |it| it.at.as_secs_f64());
    let times = Scale::exact(last.max(1.0), LEFT, WIDTH - RIGHT);
    for (index, panel) in PANELS.iter().enumerate() {
        let top = TOP + index as f64 * (PANEL + GAP);
        draw_panel(&mut text, report, panel, top, &times);
    }
    draw_marks(&mut text, report, &times, height);
    text.push_str("</svg>\n");
    text
}

fn draw_panel(text: &mut String, report: &Report, panel: &Panel, top: f64, times: &Scale) {
    let (title, colour, value) = panel;
    let bottom = top + PANEL;
    let largest = report.samples.iter().map(value).fold(0.0, f64::max);
    let values = Scale::new(largest, bottom, top);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
        top - 5.0,
        escaped(title)
    );
    for tick in values.ticks() {
        let y = values.place(tick);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    for tick in times.ticks() {
        let x = times.place(tick);
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{tick} s</text>",
            bottom + 14.0
        );
    }
    let points = report.samples.iter().map(|sample| {
        let x = times.place(sample.at.as_secs_f64());
        format!("{x:.1},{:.1}", values.place(value(sample)))
    });
    let points: Vec<_> = points.collect();
    let _ = writeln!(
        text,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
        points.join(" ")
    );
}

/// Where each step begins.
fn draw_marks(text: &mut String, report: &Report, times: &Scale, height: f64) {
    for (index, (at, name)) in report.marks.iter().enumerate() {
        let x = times.place(at.as_secs_f64());
        // Neighbours have room for their names in two rows.
        let row = if index % 2 == 0 { 0.0 } else { 12.0 };
        let name = name.split(',').next().unwrap_or(name);
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#999\" \
             stroke-dasharray=\"3 3\"/><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{}</text>",
            TOP - 30.0 + row - 8.0,
            height - GAP,
            x + 3.0,
            TOP - 30.0 + row,
            escaped(name)
        );
    }
}

/// From values, beginning with zero, to places.
struct Scale {
    largest: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// With round numbers up to at least `largest`, which lie between two places.
    fn new(largest: f64, from: f64, to: f64) -> Self {
        let step = round_step(largest / 4.0);
        let steps = (largest / step).ceil().max(1.0);
        Self {
            largest: steps * step,
            step,
            from,
            to,
        }
    }

    /// The same, up to exactly `largest`.
    fn exact(largest: f64, from: f64, to: f64) -> Self {
        Self {
            largest,
            ..Self::new(largest, from, to)
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value / self.largest
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.largest / self.step + 1e-9).floor() as u32;
        let step = self.step;
        (0..=count).map(move |index| f64::from(index) * step)
    }
}

/// The next larger 1, 2 or 5 times a power of ten, and 1 at least.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1.0).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    factors
        .into_iter()
        .find(|factor| *factor >= step)
        .unwrap_or(power * 10.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn steps_are_round() {
        for (step, expected) in [
            (0.0, 1.0),
            (0.3, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (2.5, 5.0),
            (7.0, 10.0),
            (250.0, 500.0),
            (600.0, 1000.0),
        ] {
            assert!((round_step(step) - expected).abs() < 1e-9, "{step}");
        }
    }

    #[test]
    fn scales_hold_the_largest_value_and_begin_with_zero() {
        let scale = Scale::new(1000.0, 100.0, 0.0);
        assert!((scale.place(0.0) - 100.0).abs() < 1e-9);
        assert!(scale.place(1000.0).abs() < 1e-9);
        assert_eq!(
            scale.ticks().map(|tick| tick as u32).collect::<Vec<_>>(),
            [0, 500, 1000]
        );
        let scale = Scale::new(1001.0, 100.0, 0.0);
        assert!(scale.place(1001.0) > 0.0);
        let exact = Scale::exact(37.0, 0.0, 100.0);
        assert!((exact.place(37.0) - 100.0).abs() < 1e-9);
        assert_eq!(
            exact.ticks().map(|tick| tick as u32).collect::<Vec<_>>(),
            [0, 10, 20, 30]
        );
        let empty = Scale::new(0.0, 100.0, 0.0);
        assert!((empty.place(0.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn text_is_escaped_and_everything_is_in_the_picture() {
        let sample = |at, sessions| Sample {
            at: Duration::from_secs(at),
            sessions,
            ..Sample::default()
        };
        let report = Report {
            title: "a < b & \"c\"".to_owned(),
            samples: vec![sample(0, 0.0), sample(10, 100.0)],
            marks: vec![(Duration::from_secs(5), "<hold>,x=1".to_owned())],
            ..Report::default()
        };
        let text = svg(&report);
        assert!(text.contains("a &lt; b &amp; &quot;c&quot;"), "{text}");
        assert!(text.contains(">&lt;hold&gt;<") && !text.contains("<hold>"));
        assert_eq!(text.matches("<polyline").count(), PANELS.len());
        // The first panel, from its lower left to its upper right corner.
        let (right, bottom) = (WIDTH - RIGHT - 1e-9, TOP + PANEL);
        let points = format!("points=\"{LEFT:.1},{bottom:.1} {right:.1},{TOP:.1}\"");
        assert!(text.contains(&points), "{points} in {text}");
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }
}
