//! Output on narrow terminals: lines break between words.

use std::path::Path;

use crate::host::Host;

/// Asserts that a line is longer than the terminal only if it is one word that is, and that no word was cut.
#[track_caller]
fn fits(narrow: &str, wide: &str, columns: usize) {
    for line in narrow.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(
            line.chars().count() <= columns || words.len() <= 1,
            "{columns}: {line:?} in\n{narrow}"
        );
    }
    let words = |text: &str| {
        // Numbers, such as the free memory, change between two looks.
        let plain = |word: &str| word.replace(|c: char| c.is_ascii_digit(), "");
        text.split_whitespace().map(plain).collect::<Vec<_>>()
    };
    let known = words(wide);
    for word in words(narrow) {
        assert!(known.contains(&word), "{word:?} is no word of\n{wide}");
    }
}

#[test]
fn lines_and_tables_fit_forty_columns() {
    let host = Host::new();
    let image = "/images/a-rather-long-name-of-an-image.raw";
    host.vm("web", "web", Path::new(image));
    for columns in [40, 60] {
        for args in [
            &["doctor"][..],
            &["images", "ls"],
            &["ls"],
            &["show", "web"],
        ] {
            let wide = host.on_terminal(4000, args);
            let narrow = host.on_terminal(columns, args);
            assert!(wide.len() > 100, "{args:?}: {wide}");
            fits(&narrow, &wide, columns.into());
        }
    }
    let table = host.on_terminal(40, &["ls"]);
    assert!(
        table.starts_with("web\n  STATE  stopped\n  IMAGE  tiny\n"),
        "{table}"
    );
    // In a pipe, lines are whole, so that they can be searched.
    let piped = host.ends(0, &["ls"]);
    assert_eq!(piped.lines().count(), 2, "{piped}");
    // A terminal that does not know its size.
    assert_eq!(host.on_terminal(0, &["ls"]).lines().count(), 2);
}
