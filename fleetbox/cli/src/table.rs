//! Columns that line up, and numbers for people.

use fleetbox::Size;

/// A table with a header line. The last column is not padded. With `colours`, states are coloured.
pub(crate) fn render<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    colours: bool,
) -> String {
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

/// The colour of a state (ECMA-48, 8.3.117), if it has one.
fn colour(cell: &str) -> Option<u8> {
    match cell {
        "running" => Some(32),
        "failed" => Some(31),
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
    fn ages_are_in_their_largest_unit() {
        assert_eq!(
            [0, 59, 60, 3599, 7200, 200_000].map(age),
            ["0s", "59s", "1m", "59m", "2h", "2d"]
        );
    }
}
