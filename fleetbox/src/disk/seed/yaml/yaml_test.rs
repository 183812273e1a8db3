//! Tests of reading and writing by themselves. `oracle_test` compares with the real cloud-init.

use super::*;

fn shown(text: &str) -> String {
    let value = load(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let written = value.to_string();
    assert_eq!(load(&written), Ok(value), "{written}");
    written.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn error(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn words_and_numbers_have_the_types_of_yaml_1_1() {
    assert_eq!(
        shown("[yes, no, on, off, y, n, Y, N, true, False, 'yes']"),
        r#"[ true, false, true, false, "y", "n", "Y", "N", true, false, "yes" ]"#
    );
    assert_eq!(
        shown("{y: 1, n: 2, yes: 3}"),
        r#"{ "y": 1, "n": 2, true: 3 }"#
    );
    assert_eq!(
        shown(
            "[0644, 0o644, 0x1F, 1_000, 1e3, 1.5e3, .5, 12:30:45, 1.10, +1, 09, 0b11, ~, .inf, 1., 685_230.15]"
        ),
        r#"[ 420, "0o644", 31, 1000, "1e3", "1.5e3", 0.5, 45045, 1.1, 1, "09", 3, null, .inf, 1.0, 685230.15 ]"#
    );
    assert_eq!(
        shown(
            "[123456789012345678901234567890, -0xffffffffffffffffffff, 08, 12e5, 1.0e+3, 1.0e+30]"
        ),
        r#"[ 123456789012345678901234567890, -1208925819614629174706175, "08", "12e5", 1000.0, 1.0e+30 ]"#
    );
    assert_eq!(
        shown("[2032-09-01, '2032-09-01', 2001-12-14t21:59:43.10-05:00]"),
        r#"[ 2032-09-01, "2032-09-01", 2001-12-14 21:59:43.1-05:00 ]"#
    );
}

#[test]
fn tags_merge_keys_and_aliases_are_read() {
    assert_eq!(shown("!!binary aGVs bG8="), r#"!!binary "aGVsbG8=""#);
    assert_eq!(shown("!!set {a, b}"), r#"!!set { "a": null, "b": null }"#);
    assert_eq!(
        shown("!!omap [a: 1, b: 2]"),
        r#"!!pairs [ {"a": 1}, {"b": 2} ]"#
    );
    assert_eq!(
        shown("x: &d {o: r, p: 1}\nw: [{<<: *d, p: 2}, {<<: [{o: a}, *d]}]"),
        r#"{ "x": { "o": "r", "p": 1 }, "w": [ { "o": "r", "p": 2 }, { "o": "a", "p": 1 } ] }"#
    );
}

#[test]
fn text_is_written_in_ascii() {
    assert_eq!(
        shown(r#""a\x7f\x80\u0085\u2028\uFFFE\0\e""#),
        r#""a\u007f\u0080\u0085\u2028\ufffe\u0000\u001b""#
    );
    assert_eq!(shown("🚀 naïve"), r#""\U0001F680 na\u00efve""#);
    let key = "k".repeat(1025);
    assert_eq!(
        shown(&format!("? {key}\n: 1")),
        format!("{{ ? \"{key}\" : 1 }}")
    );
}

#[test]
fn errors_say_where_and_why() {
    for (text, place, why) in [
        (
            "a: 1\nb: [1, 2\nc: 3",
            "line 3, column 2",
            "',' or ']' was expected",
        ),
        ("a: 1\nb: x\u{7f}y", "line 2, column 5", "U+007F"),
        ("a: 1\nb: \u{80}", "line 2, column 4", "\"\\u0080\""),
        ("a: \"\\ud83d\\ude80\"", "line 1, column 5", "surrogate"),
        ("a:\n\tb: 1", "line 2, column 1", "a tab cannot be here"),
        ("a: b: c", "line 1, column 5", "put it in quotes"),
        ("a: 1\nb\nc: 2", "line 2, column 1", "not `key: value`"),
        (
            &format!("{}: 1", "k".repeat(1025)),
            "line 1, column 1",
            "more than 1024 characters",
        ),
        ("a: {{ b }}", "line 1, column 5", "template"),
        ("a: *b", "line 1, column 4", "no anchor &b"),
        ("a: &a [*a]", "line 1, column 8", "a part of"),
        ("a: !foo b", "line 1, column 4", "\"!foo\""),
        ("a: 1\nb: 2\na: 3", "line 3, column 1", "in line 1 too"),
        ("1: a\ntrue: b", "line 2, column 1", "in line 1 too"),
        ("a: 2031-02-29", "line 1, column 4", "no such day"),
        ("a: =", "line 1, column 4", "in quotes"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "a second document"),
        ("a: @b", "line 1, column 4", "put the text in quotes"),
        ("a: 'b", "line 1, column 4", "has no end"),
        ("%YAML 2.0\n---\na: 1", "line 1, column 1", "version 1"),
    ] {
        let error = error(text);
        assert!(
            error.starts_with(place) && error.contains(why),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn what_grows_is_bounded() {
    let mut bomb = "a0: &a0 [x]\n".to_owned();
    let mut merges = "a0: &a0 {x: 1}\n".to_owned();
    for i in 1..40 {
        let last = format!("*a{}", i - 1);
        bomb.push_str(&format!("a{i}: &a{i} [{last}, {last}, {last}, {last}]\n"));
        merges.push_str(&format!(
            "a{i}: &a{i} {{<<: [{last}, {last}, {last}, {last}]}}\n"
        ));
    }
    for bomb in [bomb, merges] {
        assert!(error(&bomb).contains("more than 262144 values"));
    }
    let text = "x".repeat(1 << 16);
    let texts = format!("a: &a {text}\nb: [{}]", "*a,".repeat(300));
    assert!(error(&texts).contains("16 MiB"));
    for deep in ["[", "{a: ", "- ", "? "] {
        assert!(error(&deep.repeat(100_000)).contains("nested"), "{deep}");
    }
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(load(&nested(DEPTH)).is_ok());
    assert!(load(&nested(DEPTH + 1)).is_err());
    assert!(load(&format!("a: {}", "9".repeat(4300))).is_ok());
    assert!(error(&format!("a: {}", "9".repeat(4301))).contains("4300"));
    // What looks like a number for long takes no long time.
    assert!(load(&format!("a: 0{}9x", "7".repeat(1 << 19))).is_ok());
    assert!(error(&format!("a: 0x{}", "f".repeat(1 << 19))).contains("4300"));
}

#[test]
fn what_was_read_is_written_so_that_it_is_read_again() {
    let mut read = 0;
    for document in corpus_test::documents() {
        if let Ok(value) = load(&document) {
            let written = value.to_string();
            assert!(written.is_ascii(), "{document:?}: {written}");
            assert_eq!(load(&written), Ok(value), "{document:?}: {written}");
            read += 1;
        }
    }
    assert!(read > 1000, "only {read} documents are read");
}
