//! A small terminal emulator, which computes the content of the screen when a command has ended.

/// The style of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Style {
    pub(super) bold: bool,
    pub(super) dim: bool,
    /// One of the sixteen colours.
    pub(super) color: Option<u8>,
}

/// Characters of the same style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// The column of the first.
    pub(super) column: usize,
    pub(super) text: String,
    pub(super) style: Style,
}

type Cell = (char, Style);

#[derive(Default)]
struct Terminal {
    columns: usize,
    rows: Vec<Vec<Cell>>,
    row: usize,
    column: usize,
    style: Style,
}

/// The rows of a terminal with `columns` columns after `output`, without empty rows at the end.
pub(super) fn rows(output: &str, columns: usize) -> Vec<Vec<Span>> {
    let mut terminal = Terminal {
        columns,
        ..Terminal::default()
    };
    terminal.feed(output);
    let mut rows: Vec<_> = terminal.rows.iter().map(|row| spans(row)).collect();
    while rows.last().is_some_and(Vec::is_empty) {
        rows.pop();
    }
    rows
}

impl Terminal {
    fn feed(&mut self, output: &str) {
        let mut chars = output.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\r' => self.column = 0,
                '\n' => self.row += 1,
                '\x08' => self.column = self.column.saturating_sub(1),
                '\t' => self.column = (self.column / 8 + 1) * 8,
                '\x1b' => match chars.next() {
                    Some('[') => {
                        let mut arguments = String::new();
                        while let Some(c) = chars.next_if(|c| !('@'..='~').contains(c)) {
                            arguments.push(c);
                        }
                        if let Some(end) = chars.next() {
                            self.control(&arguments, end);
                        }
                    }
                    // A title or a link, up to BEL or ESC `\`.
                    Some(']') => {
                        while let Some(c) = chars.next() {
                            if c == '\x07' || (c == '\x1b' && chars.next() == Some('\\')) {
                                break;
                            }
                        }
                    }
                    _ => {}
                },
                c if c.is_control() => {}
                c => self.put(c),
            }
        }
    }

    fn put(&mut self, char: char) {
        if self.column >= self.columns {
            self.column = 0;
            self.row += 1;
        }
        let (column, style) = (self.column, self.style);
        let row = self.current();
        if row.len() <= column {
            row.resize(column + 1, (' ', Style::default()));
        }
        if let Some(cell) = row.get_mut(column) {
            *cell = (char, style);
        }
        self.column += 1;
    }

    fn current(&mut self) -> &mut Vec<Cell> {
        if self.rows.len() <= self.row {
            self.rows.resize(self.row + 1, Vec::new());
        }
        &mut self.rows[self.row]
    }

    /// Runs a control sequence: ESC `[`, arguments, and a letter for the action. Other sequences do nothing.
    fn control(&mut self, arguments: &str, end: char) {
        let numbers: Vec<usize> = arguments
            .split(';')
            .map(|number| number.parse().unwrap_or(0))
            .collect();
        let first = numbers.first().copied().unwrap_or(0);
        let count = first.max(1);
        match end {
            'A' => self.row = self.row.saturating_sub(count),
            'B' => self.row += count,
            'C' => self.column = (self.column + count).min(self.columns),
            'D' => self.column = self.column.saturating_sub(count),
            'F' => (self.row, self.column) = (self.row.saturating_sub(count), 0),
            'G' => self.column = count - 1,
            'K' => self.erase_in_row(first),
            'J' => {
                self.erase_in_row(first);
                if first == 0 {
                    self.rows.truncate(self.row + 1);
                }
            }
            'm' => self.set_style(&numbers),
            _ => {}
        }
    }

    fn erase_in_row(&mut self, what: usize) {
        let column = self.column;
        let row = self.current();
        match what {
            0 => row.truncate(column),
            1 => {
                let end = row.len().min(column + 1);
                row[..end].fill((' ', Style::default()));
            }
            _ => row.clear(),
        }
    }

    fn set_style(&mut self, numbers: &[usize]) {
        let mut numbers = numbers.iter();
        while let Some(number) = numbers.next() {
            match *number {
                0 => self.style = Style::default(),
                1 => self.style.bold = true,
                2 => self.style.dim = true,
                22 => (self.style.bold, self.style.dim) = (false, false),
                number @ 30..=37 => self.style.color = u8::try_from(number - 30).ok(),
                number @ 90..=97 => self.style.color = u8::try_from(number - 82).ok(),
                39 => self.style.color = None,
                // One of 256 colours, of which the first sixteen are known.
                38 if numbers.next() == Some(&5) => {
                    let color = numbers.next().and_then(|n| u8::try_from(*n).ok());
                    self.style.color = color.filter(|color| *color < 16);
                }
                _ => {}
            }
        }
    }
}

/// Splits a row into spans: words of one style with single blanks between them. A column of a table is a separate span,
/// because a renderer may merge several blanks.
fn spans(row: &[Cell]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let end = row.iter().rposition(|(char, _)| *char != ' ');
    let row = end.map_or(&[][..], |end| &row[..=end]);
    for (column, (char, style)) in row.iter().enumerate() {
        match spans.last_mut() {
            Some(span) if span.style == *style && !(span.text.ends_with("  ") && *char != ' ') => {
                span.text.push(*char);
            }
            _ => spans.push(Span {
                column,
                text: char.to_string(),
                style: *style,
            }),
        }
    }
    for span in &mut spans {
        let text = span.text.trim_start_matches(' ');
        span.column += span.text.len() - text.len();
        span.text = text.trim_end_matches(' ').to_owned();
    }
    spans.retain(|span| !span.text.is_empty());
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(output: &str) -> Vec<String> {
        rows(output, 10)
            .iter()
            .map(|row| {
                let mut line = String::new();
                for span in row {
                    let width = line.chars().count();
                    line.push_str(&" ".repeat(span.column - width));
                    line.push_str(&span.text);
                }
                line
            })
            .collect()
    }

    #[test]
    fn a_moving_line_leaves_what_was_written_last() {
        assert_eq!(
            text("50 %\r100 %\r\x1b[2Kdone\r\nnext\r\n"),
            ["done", "next"]
        );
        assert_eq!(text("abcdef\rxy\x1b[K"), ["xy"]);
        assert_eq!(text("one\r\ntwo\r\n\x1b[2A\x1b[Jthree\r\n"), ["three"]);
    }

    #[test]
    fn long_lines_are_wrapped_and_tabs_expanded() {
        assert_eq!(text("0123456789ab"), ["0123456789", "ab"]);
        assert_eq!(text("a\tb"), ["a       b"]);
        assert_eq!(text("a\x1b[3Cb\x08c"), ["a   c"]);
    }

    #[test]
    fn looks_are_told_apart_and_unknown_sequences_are_ignored() {
        let rows = rows(
            "\x1b]0;title\x07\x1b[?25l\x1b[1;32mok\x1b[0m no such   a \x1b[38;5;3mx\x1b[39m",
            80,
        );
        let style = |bold, color| Style {
            bold,
            dim: false,
            color,
        };
        let span = |column, text: &str, style| Span {
            column,
            text: text.into(),
            style,
        };
        assert_eq!(
            rows,
            [[
                span(0, "ok", style(true, Some(2))),
                span(3, "no such", style(false, None)),
                span(13, "a", style(false, None)),
                span(15, "x", style(false, Some(3))),
            ]]
        );
    }
}
