//! For tests: what the real cloud-init says. `cargo xtask test unit` unpacks its packages and names their directories.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::testing::test_support::skip;

/// The directories of cloud-init and PyYAML, as `PYTHONPATH` has them.
const VARIABLE: &str = "FLEETBOX_CLOUD_INIT";

#[derive(Default, Serialize)]
pub(super) struct Questions {
    pub(super) documents: Vec<Question>,
    /// User data of whole seeds.
    pub(super) seeds: Vec<String>,
}

/// A document, and what fleetbox made of it.
#[derive(Serialize)]
pub(super) struct Question {
    pub(super) document: String,
    pub(super) made: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Answers {
    pub(super) documents: Vec<Answer>,
    pub(super) seeds: Vec<Value>,
}

/// What cloud-init reads from both. A value has the types of all its parts.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) refused: Option<String>,
    pub(super) value: Option<String>,
    pub(super) made: Option<String>,
    pub(super) made_refused: Option<String>,
}

/// None if cloud-init is not here. The calling test is skipped then.
pub(super) fn ask(questions: &Questions) -> Option<Answers> {
    let Some(path) = std::env::var_os(VARIABLE) else {
        skip(format_args!(
            "{VARIABLE} is not set; `cargo xtask test unit` sets it where it can get cloud-init"
        ));
        return None;
    };
    let child = Command::new("python3")
        .args(["-c", include_str!("oracle_test.py")])
        .env("PYTHONPATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            skip(format_args!("python3 cannot be run: {error}"));
            return None;
        }
    };
    let text = serde_json::to_vec(questions).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "the real cloud-init gave no answer"
    );
    Some(serde_json::from_slice(&output.stdout).unwrap())
}
