//! Parses GRUB's script language into commands.
//!
//! The quotes of words are resolved. Their variables are expanded when the command runs. Characters
//! without a meaning in GRUB's grammar (`|`, `&`, `<`, `>`) are errors.

mod lexer;
mod parser;
mod tree;

use lexer::tokens;
use parser::Parser;
pub(super) use tree::{Block, Command, Piece, SyntaxError, Word};

use super::account::Account;

/// Parses `text`.
///
/// # Errors
/// It is not a valid script, nests too deeply, or costs more than `account` has left.
pub(super) fn parse(text: &str, account: &Account) -> Result<Block, SyntaxError> {
    Parser::new(tokens(text, account)?, account).commands(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let block = parse(text, &Account::ample()).unwrap();
        let [Command::Simple { words, .. }] = &*block else {
            panic!("{block:?}")
        };
        let show = |piece: &Piece| match piece {
            Piece::Text { text, .. } => text.clone(),
            Piece::Variable { name, quoted: true } => format!("<\"{name}\">"),
            Piece::Variable {
                name,
                quoted: false,
            } => format!("<{name}>"),
        };
        words
            .iter()
            .map(|word| word.pieces.iter().map(show).collect())
            .collect()
    }

    fn problem(text: &str) -> (u32, String) {
        let error = parse(text, &Account::ample()).unwrap_err();
        (error.line, error.problem)
    }

    #[test]
    fn quoting() {
        assert_eq!(
            words(r#"a 'b c' "d \"$e\" \n" f\ g"#),
            ["a", "b c", "d \"<\"e\">\" \\n", "f g"]
        );
        assert_eq!(
            words("set prefix=($root)'/boot/grub'"),
            ["set", "prefix=(<root>)/boot/grub"]
        );
        assert_eq!(
            words(r"echo 'it'\''s' $1 ${a}b $? $"),
            ["echo", "it's", "<1>", "<a>b", "<?>", "$"]
        );
        assert_eq!(words("a \\\n  b # comment"), ["a", "b"]);
        assert_eq!(words("a#b \"\""), ["a#b", ""]);
    }

    #[test]
    fn structure() {
        let block = parse(
            "if [ a ]; then b; elif c\nthen\n d\nelse e; fi\n\
             function f { g; }\nfunction h\n{\n}\n\
             for x in 1 2; do y; done\nwhile a; do b; done; until a; do b; done\n\
             menuentry 'x' --id y {\n  linux z; if a; then b; fi\n}\n",
            &Account::ample(),
        )
        .unwrap();
        assert_eq!(block.len(), 7);
        let Some(Command::Simple {
            block: Some(body),
            line: 11,
            words,
        }) = block.last()
        else {
            panic!("{block:?}")
        };
        assert_eq!((body.len(), words.len()), (2, 4));
        let Some(Command::If {
            arms,
            otherwise: Some(_),
        }) = block.first()
        else {
            panic!()
        };
        assert_eq!(arms.len(), 2);
    }

    #[test]
    fn problems_have_their_line() {
        assert_eq!(problem("a\nb 'c\nd").0, 2);
        assert_eq!(problem("a\nif b; then c\n").0, 2);
        assert_eq!(problem("a | b"), (1, "`|` outside quotes".into()));
        assert_eq!(problem("a\n}\n"), (2, "an unexpected `}`".into()));
        assert_eq!(problem("\n\nfi"), (3, "an unexpected `fi`".into()));
        assert_eq!(problem("echo ${").0, 1);
        let deep = "if a; then\n".repeat(1000);
        assert!(problem(&deep).1.contains("deeply"));
    }
}
