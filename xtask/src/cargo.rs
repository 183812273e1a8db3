//! Runs cargo for this repository's tasks, and reads the workspace's metadata.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Context, Result};
use crate::run::Cmd;
use crate::workspace;

/// A package of this workspace, from `cargo metadata`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    manifest_path: PathBuf,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) readme: Option<PathBuf>,
    pub(crate) repository: Option<String>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    targets: Vec<Target>,
    dependencies: Vec<Dependency>,
    /// Registries that it may be published to; empty if it must not be published.
    publish: Option<Vec<String>>,
}

/// A library, program, test or the like of a package.
#[derive(Debug, Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Dependency {
    name: String,
}

impl Package {
    /// True if it may be published.
    pub(crate) fn is_published(&self) -> bool {
        self.publish
            .as_ref()
            .is_none_or(|registries| !registries.is_empty())
    }

    /// The directory of its sources.
    pub(crate) fn source_dir(&self) -> PathBuf {
        self.manifest_path.with_file_name("src")
    }

    /// True if it has a library that other crates link.
    pub(crate) fn is_library(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target.kind.iter().any(|kind| kind == "lib"))
    }

    /// Its features, except `default`.
    pub(crate) fn feature_names(&self) -> impl Iterator<Item = &str> {
        self.features
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "default")
    }

    /// True if it depends on `name`, including its tests.
    pub(crate) fn depends_on(&self, name: &str) -> bool {
        self.dependencies.iter().any(|d| d.name == name)
    }
}

/// The packages of this workspace, by name.
///
/// # Errors
/// A manifest is broken.
pub(crate) fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let out = cargo(&["metadata", "--no-deps", "--format-version", "1", "--locked"]).output()?;
    let metadata: Metadata =
        serde_json::from_slice(&out).context(|| "cannot read the output of `cargo metadata`")?;
    let mut packages = metadata.packages;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

pub(crate) fn cargo(args: &[&str]) -> Cmd {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Cmd::new(cargo)
        .args(args)
        .dir(workspace())
        .env("CARGO_TERM_PROGRESS_WHEN", "never");
    // `cargo xtask` runs under cargo, whose variables for this crate are none of the other crates' business: build
    // scripts that look at theirs would run again, and so would all that depends on them, at each change between
    // `cargo xtask` and `cargo`.
    for (name, _) in std::env::vars_os() {
        let of_crate = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        if of_crate
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command = command.env_remove(name);
        }
    }
    command
}

/// Builds and returns the executables of targets of one kind, with the targets' names.
pub(crate) fn executables(build: &[&str], kind: &str) -> Result<Vec<(String, PathBuf)>> {
    let out = cargo(build)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .limit(1800)
        .output()?;
    parse_executables(&out, kind)
}

fn parse_executables(messages: &[u8], kind: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in messages
        .split(|b| *b == b'\n')
        .filter(|l| l.starts_with(b"{"))
    {
        let message: serde_json::Value =
            serde_json::from_slice(line).context(|| "cannot read cargo's output")?;
        let target = &message["target"];
        let is_kind = target["kind"]
            .as_array()
            .is_some_and(|k| k.iter().any(|k| k == kind));
        if let (true, Some(name), Some(path)) = (
            is_kind,
            target["name"].as_str(),
            message["executable"].as_str(),
        ) {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_package_is_known_and_not_published() {
        let packages = packages().unwrap();
        let xtask = packages.iter().find(|p| p.name == "xtask").unwrap();
        assert!(!xtask.is_published() && xtask.is_library());
        assert!(xtask.depends_on("tempfile") && !xtask.depends_on("fleetbox"));
    }

    #[test]
    fn executables_are_told_by_their_kind() {
        let messages = br#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"a"},"executable":"/t/a"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"b"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"c"},"executable":"/t/c"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(
            parse_executables(messages, "bin").unwrap(),
            [("a".to_owned(), PathBuf::from("/t/a"))]
        );
        assert_eq!(parse_executables(messages, "test").unwrap()[0].0, "c");
        assert!(parse_executables(b"{broken", "bin").is_err());
    }
}
