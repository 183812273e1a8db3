//! Columns that line up, lines that fit a terminal, and numbers for people.

use fleetbox::{Size, VmState};

use crate::output::Context;
use crate::stdout;

/// Fewest columns for which lines are broken. A narrower terminal breaks them itself.
const NARROWEST: usize = 20;

/// Prints a table, with coloured states on a terminal. On one that is too narrow for it, each row is a block of lines.
pub(crate) fn print<const N: usize>(context: &Context, head: [&str; N], rows: &[[String; N]]) {
    let colours = stdout::colours();
    let text = render(head, rows, colours);
    let widest = || text.lines().map(columns).max().unwrap_or(0);
    match stdout::width() {
        Some(width) if widest() > width => context.say(blocks(head, rows, colours, width)),
        _ => context.say(text),
    }
}

/// The first cell of each row, and below it a line for each other cell, with its head.
fn blocks<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    colours: bool,
    width: usize,
) -> String {
    let label = head.iter().skip(1).map(|head| columns(head)).max();
    let label = label.unwrap_or(0) + 1;
    let mut out = Vec::new();
    for row in rows {
        for (index, (head, cell)) in head.iter().zip(row).enumerate() {
            let shown = match colour(cell).filter(|_| colours) {
                Some(colour) => format!("\x1b[{colour}m{cell}\x1b[0m"),
                None => cell.clone(),
            };
            if index == 0 {
                out.push(wrap(&shown, width, 2));
            } else if !cell.is_empty() {
                out.push(wrap(&format!("  {head:label$}{shown}"), width, 4));
            }
        }
    }
    if rows.is_empty() {
        return wrap(&head.join(" "), width, 2);
    }
    out.join("\n")
}

/// Breaks each line of `text` at spaces, so that it has at most `width` columns. What follows a break is indented. A
/// word that is longer stays whole, so that it can be copied.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    if width < NARROWEST {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let mut at = 0;
        // Spaces that begin a line, or line columns up, stay with the word that follows them.
        let mut spaces = 0;
        for word in line.split(' ') {
            if word.is_empty() {
                spaces += 1;
                continue;
            }
            let length = columns(word);
            if at > 0 && at + spaces + length > width {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                at = indent;
            } else {
                out.push_str(&" ".repeat(spaces));
                at += spaces;
            }
            out.push_str(word);
            at += length;
            spaces = 1;
        }
    }
    out
}

/// Columns that text takes on a terminal, without its colours.
fn columns(text: &str) -> usize {
    let mut coloured = false;
    let visible = |c: &char| {
        let shown = !coloured && *c != '\x1b';
        coloured = (coloured || *c == '\x1b') && *c != 'm';
        shown
    };
    text.chars().filter(visible).count()
}

/// A number of things: `1 file`, `2 files`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// A table with a header line. The last column is not padded. With `colours`, states are coloured.
fn render<const N: usize>(head: [&str; N], rows: &[[String; N]], colours: bool) -> String {
    let mut widths = head.map(|text| text.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let mut line = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            match colour(cell).filter(|_| colours) {
                Some(colour) => {
                    text.push_str(&format!("\x1b[{colour}m{cell:width$}\x1b[0m  "));
                }
                None => text.push_str(&format!("{cell:width$}  ")),
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(head);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    out.pop();
    out
}

/// What a VM is doing, and whether this host fails it.
pub(crate) fn state(state: VmState, device_error: bool) -> String {
    match device_error {
        true => format!("{state}{TROUBLE}"),
        false => state.to_string(),
    }
}

/// What follows the state of a VM whose device has failed.
const TROUBLE: &str = ", device error";

/// The colour of a state (ECMA-48, 8.3.117), if it has one.
fn colour(cell: &str) -> Option<u8> {
    match cell {
        "running" => Some(32),
        "failed" => Some(31),
        state if state.ends_with(TROUBLE) => Some(31),
        _ => None,
    }
}

/// A number of bytes in whole MiB or larger units, rounded up: `350M`.
pub(crate) fn size(bytes: u64) -> String {
    Size::mib(bytes.div_ceil(1 << 20)).to_string()
}

/// A span of time in its largest unit: `45s`, `3m`, `2h`, `5d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["web".to_owned(), "running".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        assert_eq!(
            render(["NAME", "STATE"], &rows, false),
            "NAME  STATE\nweb   running\na"
        );
        assert_eq!(render(["NAME"], &[], false), "NAME");
        assert_eq!(
            render(["NAME", "STATE"], &rows, true),
            "NAME  STATE\nweb   \x1b[32mrunning\x1b[0m\na"
        );
    }

    #[test]
    fn a_narrow_terminal_gets_a_block_for_each_row() {
        let rows = [
            ["web".to_owned(), "running".to_owned(), "a b".to_owned()],
            ["x".to_owned(), String::new(), "0123456789".repeat(3)],
        ];
        let head = ["NAME", "STATE", "IMAGE"];
        assert_eq!(
            blocks(head, &rows, false, 20),
            "web\n  STATE running\n  IMAGE a b\nx\n  IMAGE\n    012345678901234567890123456789"
        );
        let coloured = blocks(head, &rows[..1], true, 20);
        assert!(coloured.contains("STATE \x1b[32mrunning\x1b[0m\n"));
        assert_eq!(blocks(head, &[], false, 20), "NAME STATE IMAGE");
    }

    #[test]
    fn lines_break_at_spaces_only() {
        let text = "warn ping: guests cannot ping other hosts\n     run `sudo sysctl`";
        let wrapped = wrap(text, 20, 5);
        assert_eq!(
            wrapped,
            "warn ping: guests\n     cannot ping\n     other hosts\n     run `sudo\n     sysctl`"
        );
        assert_eq!(wrap("a  b", 20, 2), "a  b");
        assert_eq!(wrap("", 20, 2), "");
        let long = "x".repeat(50);
        assert_eq!(
            wrap(&format!("a {long} b"), 40, 2),
            format!("a\n  {long}\n  b")
        );
        assert_eq!(columns("\x1b[32mrunning\x1b[0m"), 7);
        // Too narrow for any layout.
        assert_eq!(wrap(text, 5, 2), text);
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(
            [0, 1, 2].map(|n| count(n, "file")),
            ["0 files", "1 file", "2 files"]
        );
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        assert_eq!(
            [0, 59, 60, 3599, 7200, 200_000].map(age),
            ["0s", "59s", "1m", "59m", "2h", "2d"]
        );
    }
}
