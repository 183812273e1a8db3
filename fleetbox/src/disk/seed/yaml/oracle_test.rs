//! Compares what documents mean here with what they mean to the real cloud-init.

use super::corpus_test::documents;
use super::*;
use crate::disk::seed::oracle_test::{self as oracle, Question, Questions};

/// What is refused here although PyYAML reads it, because a guest could not use it.
const OURS: &[&str] = &[
    "this key is in line",
    "surrogate",
    "refers to what it is a part of",
    "nested more than",
    "4300 digits",
    "values",
    // PyYAML reads some numbers with tags that it does not write.
    "this is not an integer",
];

#[test]
fn documents_mean_what_they_mean_to_cloud_init() {
    let documents = documents();
    let read: Vec<_> = documents.iter().map(|document| load(document)).collect();
    let questions = documents
        .iter()
        .zip(&read)
        .map(|(document, read)| Question {
            document: document.clone(),
            made: read.as_ref().ok().map(|value| format!("# seed\n{value}\n")),
        });
    let questions = Questions {
        documents: questions.collect(),
        seeds: Vec::new(),
    };
    let Some(answers) = oracle::ask(&questions) else {
        return;
    };
    let mut wrong = Vec::new();
    assert_eq!(answers.documents.len(), documents.len());
    for ((document, read), answer) in documents.iter().zip(&read).zip(&answers.documents) {
        let agree = match read {
            Ok(_) => {
                answer.refused.is_none()
                    && answer.made_refused.is_none()
                    && answer.value == answer.made
            }
            Err(error) => {
                let error = error.to_string();
                answer.refused.is_some() || OURS.iter().any(|ours| error.contains(ours))
            }
        };
        if !agree {
            wrong.push(format!(
                "{document:?}\n  fleetbox: {read:?}\n  cloud-init: {answer:?}"
            ));
        }
    }
    let shown = wrong
        .iter()
        .take(20)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        wrong.is_empty(),
        "{} documents differ, among them\n{shown}",
        wrong.len()
    );
    // Most of the corpus is read, so that agreeing means something.
    let accepted = read.iter().filter(|read| read.is_ok()).count();
    assert!(
        accepted > documents.len() / 3,
        "only {accepted} of {} are read",
        documents.len()
    );
}
