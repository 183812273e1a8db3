//! Draws a session as an SVG: a window with text on a grid, in colours for light and dark pages.

use super::terminal::{Span, Style};

/// Width of a character, height of a row and of the window's title, and the margin, in pixels.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 19.0;
const TITLE: f64 = 36.0;
const MARGIN: f64 = 16.0;

/// The sixteen colours for a light and for a dark background. Black and white are chosen to stand out on it.
const COLORS: [(&str, &str); 16] = [
    ("#24292f", "#e6edf3"),
    ("#cf222e", "#ff7b72"),
    ("#116329", "#3fb950"),
    ("#7d4e00", "#d29922"),
    ("#0969da", "#58a6ff"),
    ("#8250df", "#bc8cff"),
    ("#1b7c83", "#39c5cf"),
    ("#57606a", "#b1bac4"),
    ("#6e7781", "#8b949e"),
    ("#a40e26", "#ffa198"),
    ("#1a7f37", "#56d364"),
    ("#633c01", "#e3b341"),
    ("#218bff", "#79c0ff"),
    ("#a475f9", "#d2a8ff"),
    ("#3192aa", "#56d4dd"),
    ("#24292f", "#ffffff"),
];

/// A command, its output on the screen, and how long it took.
pub(super) struct Entry {
    pub(super) line: String,
    pub(super) screen: Vec<Vec<Span>>,
    pub(super) seconds: f64,
}

/// Draws the window.
pub(super) fn draw(entries: &[Entry], columns: usize) -> String {
    let width = columns as f64 * WIDTH + 2.0 * MARGIN;
    let mut text = String::new();
    let mut row = 0;
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            row += 1;
        }
        for span in prompt(entry, columns) {
            text.push_str(&draw_span(&span, row));
        }
        row += 1;
        for spans in &entry.screen {
            spans.iter().for_each(|s| text.push_str(&draw_span(s, row)));
            row += 1;
        }
    }
    let height = TITLE + row as f64 * HEIGHT + MARGIN;
    let dots: String = ["#ff5f57", "#febc2e", "#28c840"]
        .iter()
        .enumerate()
        .map(|(at, color)| {
            let x = 20 + 18 * at;
            format!("<circle cx=\"{x}\" cy=\"18\" r=\"5.5\" fill=\"{color}\"/>\n")
        })
        .collect();
    let commands: Vec<_> = entries.iter().map(|entry| entry.line.as_str()).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" xml:space=\"preserve\">\n<title>A terminal session: {}</title>\n<style>\n{}</style>\n\
         <rect class=\"window\" x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\"/>\n{dots}{text}</svg>\n",
        escape(&commands.join("; ")),
        style(),
        width - 1.0,
        height - 1.0,
    )
}

/// The line with the command, and its time at the end of the row if there is room.
fn prompt(entry: &Entry, columns: usize) -> Vec<Span> {
    let span = |column, text: &str, bold, dim| Span {
        column,
        text: text.to_owned(),
        style: Style {
            bold,
            dim,
            color: None,
        },
    };
    let mut spans = vec![span(0, "$", false, true), span(2, &entry.line, true, false)];
    let digits = if entry.seconds < 1.0 { 2 } else { 1 };
    let time = format!("{:.digits$} s", entry.seconds);
    let start = columns.saturating_sub(time.len());
    if start > entry.line.chars().count() + 3 {
        spans.push(span(start, &time, false, true));
    }
    spans
}

fn draw_span(span: &Span, row: usize) -> String {
    let mut classes = Vec::new();
    classes.extend(span.style.bold.then(|| "b".to_owned()));
    classes.extend(span.style.dim.then(|| "d".to_owned()));
    classes.extend(span.style.color.map(|color| format!("c{color}")));
    let class = if classes.is_empty() {
        String::new()
    } else {
        format!(" class=\"{}\"", classes.join(" "))
    };
    // The length keeps columns under each other whatever font there is.
    format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\"{class}>{}</text>\n",
        MARGIN + span.column as f64 * WIDTH,
        TITLE + (row as f64 + 0.75) * HEIGHT,
        span.text.chars().count() as f64 * WIDTH,
        escape(&span.text)
    )
}

fn style() -> String {
    let colors = |dark: bool| -> String {
        COLORS
            .iter()
            .enumerate()
            .map(|(at, (on_light, on_dark))| {
                let color = if dark { on_dark } else { on_light };
                format!(".c{at} {{ fill: {color} }}\n")
            })
            .collect()
    };
    format!(
        "text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; \
         white-space: pre; fill: #24292f }}\n.window {{ fill: #f6f8fa; stroke: #d0d7de }}\n.b {{ font-weight: 600 }}\n\
         .d {{ fill: #6e7781 }}\n{}@media (prefers-color-scheme: dark) {{\ntext {{ fill: #e6edf3 }}\n\
         .window {{ fill: #161b22; stroke: #30363d }}\n.d {{ fill: #8b949e }}\n{}}}\n",
        colors(false),
        colors(true)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::terminal::rows;
    use super::*;

    #[test]
    fn text_stands_on_its_row_and_column_in_its_colour() {
        let entries = [
            Entry {
                line: "first <1>".into(),
                screen: rows("a \x1b[31mred & bold\x1b[0m\r\n", 60),
                seconds: 1.25,
            },
            Entry {
                line: "second".into(),
                screen: Vec::new(),
                seconds: 90.0,
            },
        ];
        let svg = draw(&entries, 60);
        assert!(svg.contains(">first &lt;1&gt;</text>"), "{svg}");
        assert!(
            svg.contains(
                "<text x=\"32.8\" y=\"69.2\" textLength=\"84.0\" class=\"c1\">red &amp; bold</text>"
            ),
            "{svg}"
        );
        // The second command is two rows below the first one's output, with its time at the end of the row.
        assert!(
            svg.contains("y=\"107.2\" textLength=\"50.4\" class=\"b\">second<"),
            "{svg}"
        );
        assert!(
            svg.contains("<text x=\"469.6\" y=\"107.2\" textLength=\"50.4\" class=\"d\">90.0 s<"),
            "{svg}"
        );
        assert!(svg.contains("viewBox=\"0 0 536 128\""), "{svg}");
    }
}
