//! The table at the end of a run.

use std::time::Duration;

/// Maximum characters of a note in the table.
const NOTE: usize = 100;

/// The result of one part of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed, with a note.
    Passed(Option<String>),
    /// It failed, for this reason.
    Failed(String),
}

/// One part of a run.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) took: Duration,
    pub(super) budget: Option<Duration>,
    pub(super) outcome: Outcome,
}

impl Line {
    fn is_over(&self) -> bool {
        self.budget.is_some_and(|budget| self.took > budget)
    }
}

/// `unit: 201.3 s of 220 s`
pub(super) fn time(line: &Line) -> String {
    let took = line.took.as_secs_f64();
    let budget = line.budget.map(|b| format!(" of {} s", b.as_secs()));
    let over = if line.is_over() { "  OVER" } else { "" };
    format!(
        "  {}: {took:.1} s{}{over}",
        line.name,
        budget.unwrap_or_default()
    )
}

/// The table, and below it the parts that exceeded their budgets.
pub(super) fn summary(lines: &[Line]) -> String {
    let width = lines.iter().map(|l| l.name.len()).max().unwrap_or(0).max(5);
    let mut table = format!("== summary\n{:width$}  result      time   budget\n", "step");
    for line in lines {
        let (result, note) = match &line.outcome {
            Outcome::Passed(note) => ("ok", short(note.as_deref().unwrap_or_default())),
            // The complete reason is printed above.
            Outcome::Failed(reason) => ("FAILED", short(reason)),
        };
        let over = if line.is_over() { "OVER" } else { "" };
        let row = format!(
            "{:width$}  {result:6} {:>7.1} s {} {over:4}  {note}",
            line.name,
            line.took.as_secs_f64(),
            seconds(line.budget),
        );
        table.push_str(row.trim_end());
        table.push('\n');
    }
    let took: Duration = lines.iter().map(|l| l.took).sum();
    let budget: Option<Duration> = lines.iter().map(|l| l.budget).sum();
    let all = format!(
        "{:width$}         {:>7.1} s {}",
        "all",
        took.as_secs_f64(),
        seconds(budget)
    );
    table.push_str(all.trim_end());
    table.push('\n');
    for line in lines.iter().filter(|line| line.is_over()) {
        table.push_str(&format!("WARNING: over budget:{}\n", time(line)));
    }
    table
}

/// The first line of a note, with at most [`NOTE`] characters.
fn short(note: &str) -> String {
    let line = note.lines().next().unwrap_or_default();
    if line.chars().count() <= NOTE {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(NOTE - 1).collect();
    short.push('…');
    short
}

fn seconds(budget: Option<Duration>) -> String {
    budget.map_or_else(
        || " ".repeat(8),
        |budget| format!("{:>6} s", budget.as_secs()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, took: u64, budget: u64, outcome: Outcome) -> Line {
        Line {
            name: name.to_owned(),
            took: Duration::from_secs(took),
            budget: Some(Duration::from_secs(budget)),
            outcome,
        }
    }

    #[test]
    fn a_step_over_its_budget_is_marked_and_said_again_at_the_end() {
        let table = summary(&[
            line("fmt", 1, 10, Outcome::Passed(None)),
            line("unit", 300, 220, Outcome::Passed(Some("here".into()))),
        ]);
        assert!(
            table.contains("\nfmt    ok         1.0 s     10 s\n"),
            "{table}"
        );
        assert!(
            table.contains("\nunit   ok       300.0 s    220 s OVER  here\n"),
            "{table}"
        );
        assert!(
            table.ends_with("WARNING: over budget:  unit: 300.0 s of 220 s  OVER\n"),
            "{table}"
        );
        assert!(
            table.contains("\nall             301.0 s    230 s\n"),
            "{table}"
        );
    }

    #[test]
    fn a_failure_shows_the_first_line_of_its_reason() {
        let table = summary(&[line("doc", 1, 10, Outcome::Failed("why\nmore".into()))]);
        assert!(table.contains("FAILED") && table.contains("why"), "{table}");
        assert!(!table.contains("more"), "{table}");
    }

    #[test]
    fn a_long_note_is_cut_to_one_line() {
        let note = |text: &str| {
            let table = summary(&[line("doc", 1, 10, Outcome::Failed(text.into()))]);
            let row = table.lines().find(|row| row.starts_with("doc")).unwrap();
            row.split_once("10 s").unwrap().1.trim().to_owned()
        };
        assert_eq!(note(&"ä".repeat(NOTE)), "ä".repeat(NOTE));
        assert_eq!(
            note(&format!("{}\nmore", "ä".repeat(NOTE + 1))),
            format!("{}…", "ä".repeat(NOTE - 1))
        );
    }
}
