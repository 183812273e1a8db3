//! Checks the packages as they would be published: their manifests, their content, and that cargo can pack them.

use crate::cargo::{Package, cargo, packages};
use crate::error::Result;

/// Files that each package must have.
const FILES: &[&str] = &["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// Other files that a package may have: its sources and tests, the files that cargo adds, and the original manifest.
fn belongs(file: &str) -> bool {
    let added = ["Cargo.lock", "Cargo.toml.orig", ".cargo_vcs_info.json"];
    FILES.contains(&file)
        || added.contains(&file)
        || ["src/", "examples/", "tests/"]
            .iter()
            .any(|dir| file.starts_with(dir))
}

/// The step `package`: checks the packages and packs them, without building the result.
pub(crate) fn list() -> Result<String> {
    let packages = published()?;
    let mut complaints = Vec::new();
    for package in &packages {
        complaints.extend(lacking(package));
        let files = cargo(&["package", "--list", "--allow-dirty", "-p", &package.name]).text()?;
        let files: Vec<_> = files.lines().collect();
        complaints.extend(wrong_files(&package.name, &files));
    }
    super::report(&complaints)?;
    pack(&packages, &["--no-verify"])
}

/// Packs them, and builds each from the packed files.
pub(crate) fn build() -> Result<String> {
    pack(&published()?, &[])
}

fn published() -> Result<Vec<Package>> {
    Ok(packages()?
        .into_iter()
        .filter(Package::is_published)
        .collect())
}

/// Cargo finds the order itself, and uses the packages that it has just packed as dependencies.
fn pack(packages: &[Package], args: &[&str]) -> Result<String> {
    let mut command = cargo(&["package", "--allow-dirty", "--locked"]).args(args);
    for package in packages {
        command = command.args(["-p", &package.name]);
    }
    command.limit(2400).echoed()?;
    let names: Vec<_> = packages.iter().map(|p| p.name.as_str()).collect();
    Ok(names.join(", "))
}

/// Fields of a manifest that a registry needs, or its readers.
fn lacking(package: &Package) -> Vec<String> {
    let fields = [
        ("description", package.description.is_some()),
        ("license", package.license.is_some()),
        ("readme", package.readme.is_some()),
        ("repository", package.repository.is_some()),
    ];
    fields
        .iter()
        .filter(|(_, there)| !there)
        .map(|(field, _)| format!("the manifest of {} has no {field}", package.name))
        .collect()
}

fn wrong_files(package: &str, files: &[&str]) -> Vec<String> {
    let missing = FILES
        .iter()
        .filter(|file| !files.contains(file))
        .map(|file| format!("the package {package} lacks {file}"));
    let others = files
        .iter()
        .filter(|file| !belongs(file))
        .map(|file| format!("the package {package} must not have {file}; see its `include`"));
    missing.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_its_licences_and_nothing_beside_its_sources() {
        let good = [
            "Cargo.toml",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "README.md",
            "src/lib.rs",
        ];
        assert_eq!(wrong_files("p", &good), Vec::<String>::new());
        let found = wrong_files(
            "p",
            &["Cargo.toml", "LICENSE-MIT", "README.md", "docs/a.md"],
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("lacks LICENSE-APACHE"), "{found:?}");
        assert!(found[1].contains("must not have docs/a.md"), "{found:?}");
    }
}
