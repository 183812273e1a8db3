//! Uses this machine's apt: its release, its mirrors, and packages fetched through it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bail;
use crate::cache;
use crate::error::{Context, Error, Result};
use crate::run::Cmd;

/// The code name of this machine's Debian.
///
/// # Errors
/// This machine does not run Debian.
pub fn codename() -> Result<String> {
    let release =
        fs::read_to_string("/etc/os-release").context(|| "cannot read /etc/os-release")?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        (id, _) => bail!(
            "this needs Debian's packages, but this machine runs {}",
            id.unwrap_or("an unknown system")
        ),
    }
}

/// One archive of Debian, as in apt's own sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Address of the archive.
    pub uri: String,
    /// Suite, such as `bookworm-updates`.
    pub suite: String,
}

/// The archives that apt uses for `codename`, starting with the main one; only the component `main`.
///
/// # Errors
/// apt has none.
pub fn sources(codename: &str) -> Result<Vec<Source>> {
    let listing = ask(
        "apt-get",
        &[
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
    )?;
    let sources = parse_sources(&listing, codename);
    if sources.is_empty() {
        bail!(
            "apt's sources have no archive of Debian {codename}; add one to /etc/apt/sources.list.d"
        );
    }
    Ok(sources)
}

/// Another suite of the archive that apt uses for `codename`.
///
/// # Errors
/// apt has no such archive.
pub fn suite_beside(codename: &str, suite: &str) -> Result<Source> {
    let sources = sources(codename)?;
    let Some(main) = sources.into_iter().find(|s| s.suite == codename) else {
        bail!("apt's sources have no archive of Debian {codename}");
    };
    Ok(Source {
        uri: main.uri,
        suite: suite.to_owned(),
    })
}

/// Unpacks packages and their dependencies into the root directory `root`, without configuring them. `options` are
/// passed to mmdebstrap.
///
/// # Errors
/// A package cannot be obtained.
pub fn extract(
    root: &Path,
    suite: &str,
    packages: &str,
    sources_list: &str,
    options: &[&str],
) -> Result<()> {
    Cmd::new("mmdebstrap")
        .args([
            "--variant=extract",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--format=directory",
        ])
        .args(options)
        .arg(format!("--include={packages}"))
        .arg(suite)
        .args([root.as_os_str(), "-".as_ref()])
        .input(sources_list)
        .limit(600)
        .run()
}

fn parse_sources(listing: &str, codename: &str) -> Vec<Source> {
    let wanted = [
        codename.to_owned(),
        format!("{codename}-updates"),
        format!("{codename}-security"),
    ];
    let mut found = Vec::new();
    for suite in wanted {
        for line in listing.lines() {
            let mut words = line.split(' ');
            let (Some(uri), Some(release), Some("main")) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let source = Source {
                uri: uri.to_owned(),
                suite: suite.clone(),
            };
            if release == suite && !found.contains(&source) {
                found.push(source);
            }
        }
    }
    found
}

/// Returns apt's answer. An answer takes a second, and changes only with apt's lists, its configuration and the
/// installed packages. So it is cached under their modification times.
fn ask(program: &str, args: &[&str]) -> Result<String> {
    let mut state = cache::Key::new("apt");
    for path in [
        "/etc/apt",
        "/etc/apt/sources.list",
        "/etc/apt/sources.list.d",
        "/etc/apt/preferences.d",
        "/var/lib/apt/lists",
        "/var/lib/apt/lists/partial",
        "/var/lib/dpkg/status",
    ] {
        let path = Path::new(path);
        if path.exists() {
            state = state.with_file_identity(path)?;
        }
    }
    let answers = cache::artefact("apt", &state.finish(), |_| Ok(()))?;
    let question = args
        .iter()
        .fold(cache::Key::new(program), |key, arg| key.with(arg));
    let path = answers.join(question.finish());
    if let Ok(answer) = fs::read_to_string(&path) {
        return Ok(answer);
    }
    let answer = Cmd::new(program).args(args).env("LC_ALL", "C").text()?;
    let partial = path.with_extension(std::process::id().to_string());
    fs::write(&partial, &answer).context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &path).context(|| format!("cannot rename {}", partial.display()))?;
    Ok(answer)
}

/// Lines for `sources.list`.
pub fn sources_list(sources: &[Source]) -> String {
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    sources
        .iter()
        .map(|s| format!("deb [signed-by={keyring}] {} {} main\n", s.uri, s.suite))
        .collect()
}

/// Fetches apt's lists if this machine has none, like a fresh installation.
fn refresh(package: &str) -> Result<()> {
    if ask("apt-cache", &["show", package]).is_ok() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "apt has no lists of packages; get them with\n  sudo apt-get update\nand run this again"
        );
    }
    Cmd::new("apt-get").args(["update", "-q"]).limit(180).run()
}

/// The package with the newest stock cloud kernel and its version, as `("linux-image-6.1.0-1-cloud-amd64", "6.1.1-1")`.
///
/// # Errors
/// apt knows no such package.
pub fn cloud_kernel() -> Result<(String, String)> {
    refresh("linux-image-cloud-amd64")?;
    let depends = ask(
        "apt-cache",
        &["depends", "--no-recommends", "linux-image-cloud-amd64"],
    )?;
    let package = depends
        .lines()
        .find_map(|l| {
            l.trim()
                .strip_prefix("Depends: ")
                .filter(|p| p.starts_with("linux-image-"))
        })
        .ok_or_else(|| {
            Error::new("apt knows no package linux-image-cloud-amd64; run apt-get update")
        })?;
    Ok((package.to_owned(), version(package)?))
}

/// The version of `package` that apt would install.
fn version(package: &str) -> Result<String> {
    let policy = ask("apt-cache", &["policy", package])?;
    let version = policy
        .lines()
        .find_map(|l| l.trim().strip_prefix("Candidate: "))
        .filter(|v| *v != "(none)")
        .ok_or_else(|| {
            Error::new(format!(
                "apt has no version of {package}; run apt-get update"
            ))
        })?;
    Ok(version.to_owned())
}

/// The directories of Python modules of the release's cloud-init and of its YAML reader. Nothing is installed.
///
/// # Errors
/// This is not Debian, or apt cannot get the packages.
pub fn cloud_init() -> Result<Vec<PathBuf>> {
    codename()?;
    refresh("cloud-init")?;
    let packages = ["cloud-init", "python3-yaml"].map(|package| -> Result<PathBuf> {
        let dir = unpacked(package, &version(package)?)?;
        Ok(dir.join("usr/lib/python3/dist-packages"))
    });
    packages.into_iter().collect()
}

/// The versions of `packages` that apt would install, as text that changes when one of them does.
///
/// # Errors
/// apt cannot be asked.
pub fn candidates(packages: &[&str]) -> Result<String> {
    let policy = ask("apt-cache", &[&["policy"], packages].concat())?;
    Ok(policy
        .lines()
        .filter(|l| !l.starts_with(' ') || l.trim().starts_with("Candidate:"))
        .collect())
}

/// Downloads a package and unpacks it, without installing it. Returns the directory it is unpacked in.
///
/// # Errors
/// apt cannot download it.
pub fn unpacked(package: &str, version: &str) -> Result<PathBuf> {
    let key = cache::Key::new("package")
        .with(package)
        .with(version)
        .finish();
    cache::artefact(&format!("package-{package}"), &key, |dir| {
        let deb = download(package, version, dir)?;
        Cmd::new("dpkg-deb")
            .arg("-x")
            .args([&deb, dir])
            .limit(120)
            .run()?;
        fs::remove_file(&deb).context(|| "cannot remove the package file")
    })
}

fn download(package: &str, version: &str, dir: &Path) -> Result<PathBuf> {
    // apt's own user need not be able to write here; as root it then says so, and goes on as root.
    Cmd::new("apt-get")
        .args([
            "download",
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            &format!("{package}={version}"),
        ])
        .dir(dir)
        .limit(300)
        .run()?;
    let debs: Vec<_> = fs::read_dir(dir)
        .context(|| "cannot list the download")?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "deb"))
        .collect();
    match debs.as_slice() {
        [deb] => Ok(deb.clone()),
        _ => bail!(
            "apt-get download {package} left {} packages in {}",
            debs.len(),
            dir.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_release_its_updates_and_security() {
        let listing = "http://m/debian-security/ bookworm-security main\n\
                       http://m/debian/ bookworm main\nhttp://m/debian/ bookworm main\n\
                       http://m/debian/ bookworm contrib\nhttp://m/debian/ bookworm-backports main\n\
                       http://other/ stable main\n";
        let source = |uri: &str, suite: &str| Source {
            uri: uri.into(),
            suite: suite.into(),
        };
        assert_eq!(
            parse_sources(listing, "bookworm"),
            [
                source("http://m/debian/", "bookworm"),
                source("http://m/debian-security/", "bookworm-security")
            ]
        );
        assert!(parse_sources(listing, "trixie").is_empty());
    }
}
