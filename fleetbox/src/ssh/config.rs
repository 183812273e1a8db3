//! Configuration for OpenSSH. With it `ssh NAME`, and every tool built on ssh, reaches VMs.
//!
//! The VMs are listed in a file in the state directory. The user's own configuration gets a single
//! `Include` of that file at its beginning. Removal takes out exactly that. Nothing else in the
//! user's file is touched.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::store::ephemeral;
use crate::store::{Store, StoreError, VmRecord};
use crate::util::fs::{remove_file_if_there, write_atomic};
use crate::util::readable::readable_debug;

/// First line of the text that is added to a user's configuration.
const MARK: &str = "# Added by `fleetbox ssh-config --install`, removed by `--uninstall`";
/// The same line, for a file that was created for it.
const MARK_NEW: &str =
    "# Added by `fleetbox ssh-config --install`, removed by `--uninstall` with this file";

/// The top-level name of guests.
const DOMAIN: &str = "fleetbox";

/// Maximum bytes of a user's configuration that are read.
const LIMIT: u64 = 16 << 20;

/// Why OpenSSH's configuration could not be changed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SshConfigError {
    /// The home directory is not known.
    #[error("cannot find ~/.ssh/config: HOME is not set; set HOME, or give the file with --file")]
    NoHome,
    /// OpenSSH's configuration cannot express a path.
    #[error("cannot write {} into OpenSSH's configuration: {why}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The state directory cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

readable_debug!(SshConfigError);

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SshConfigError {
    let path = path.to_owned();
    move |source| SshConfigError::Io {
        action,
        path,
        source,
    }
}

/// OpenSSH's configuration for the VMs of a state directory.
///
/// ```
/// use fleetbox::ssh_config::SshConfig;
/// use fleetbox::store::Store;
///
/// let home = tempfile::tempdir().unwrap();
/// let store = Store::open(home.path()).unwrap();
/// let config = SshConfig::new(&store, "/usr/bin/fleetbox".as_ref());
/// let file = home.path().join("config");
/// std::fs::write(&file, "Host other\n").unwrap();
/// assert!(config.install(&file).unwrap());
/// assert!(config.uninstall(&file).unwrap());
/// assert_eq!(std::fs::read_to_string(&file).unwrap(), "Host other\n");
/// ```
#[derive(Debug, Clone)]
pub struct SshConfig {
    store: Store,
    program: PathBuf,
}

impl SshConfig {
    /// The configuration for the VMs in `store`. OpenSSH reaches them through the `fleetbox`
    /// command at `program`.
    pub fn new(store: &Store, program: &Path) -> Self {
        Self {
            store: store.clone(),
            program: program.to_owned(),
        }
    }

    /// The path of the user's configuration: `~/.ssh/config`.
    ///
    /// # Errors
    /// [`SshConfigError::NoHome`] if the home directory is not known.
    pub fn default_file() -> Result<PathBuf, SshConfigError> {
        match std::env::home_dir() {
            Some(home) if !home.as_os_str().is_empty() => Ok(home.join(".ssh").join("config")),
            _ => Err(SshConfigError::NoHome),
        }
    }

    /// The file in the state directory that a user's configuration includes.
    pub fn included(&self) -> PathBuf {
        self.store.home().join("ssh").join("config")
    }

    fn known_hosts(&self) -> PathBuf {
        self.store.home().join("ssh").join("known_hosts")
    }

    /// The text of the file: a `Host` block for each VM, with the names `NAME.CLUSTER` and, if it
    /// is unambiguous, `NAME`. Both also work with `.fleetbox` appended. The file of host keys that the text names is
    /// written.
    ///
    /// # Errors
    /// A damaged record, an error of the file system, or a path that OpenSSH's configuration cannot
    /// express.
    pub fn text(&self) -> Result<String, SshConfigError> {
        let hosts = self.hosts()?;
        let text = self.blocks(&hosts)?;
        self.write_known_hosts(&hosts)?;
        Ok(text)
    }

    fn hosts(&self) -> Result<Vec<Host>, SshConfigError> {
        let mut hosts = Vec::new();
        for vm in self.store.vms()? {
            match vm.record() {
                Ok(record) => hosts.push(Host {
                    record,
                    passing: ephemeral::is_ephemeral(&vm),
                }),
                // It was removed just now.
                Err(StoreError::Gone { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(hosts)
    }

    fn blocks(&self, hosts: &[Host]) -> Result<String, SshConfigError> {
        let key = argument(&self.store.keys_dir().join("id_ed25519"))?;
        let known_hosts = argument(&self.known_hosts())?;
        let program = command_word(&self.program)?;
        let home = command_word(self.store.home())?;
        let mut text = String::new();
        for host in hosts {
            let VmRecord {
                name,
                cluster,
                ssh_user: user,
                ..
            } = &host.record;
            let aliases = host.aliases(hosts).join(" ");
            let host = host.name();
            text.push_str(&format!(
                "Host {aliases}\n\
                 \x20   HostName {host}\n\
                 \x20   User {user}\n\
                 \x20   IdentityFile {key}\n\
                 \x20   IdentitiesOnly yes\n\
                 \x20   UserKnownHostsFile {known_hosts}\n\
                 \x20   StrictHostKeyChecking yes\n\
                 \x20   ProxyCommand {program} --home {home} dial {cluster}/{name} 22\n\n"
            ));
        }
        Ok(text)
    }

    /// Updates the included file, and the file of host keys, to the current VMs. Those that do not exist are created only
    /// if `create` is true.
    ///
    /// # Errors
    /// Those of [`SshConfig::text`].
    pub fn refresh(&self, create: bool) -> Result<(), SshConfigError> {
        let included = self.included();
        let includes = create || included.exists();
        if !includes && !self.known_hosts().exists() {
            return Ok(());
        }
        let hosts = self.hosts()?;
        let text = self.blocks(&hosts)?;
        self.write_known_hosts(&hosts)?;
        if includes {
            write_atomic(&included, text.as_bytes()).map_err(failed("write", &included))?;
        }
        Ok(())
    }

    fn write_known_hosts(&self, hosts: &[Host]) -> Result<(), SshConfigError> {
        let hosts: String = hosts
            .iter()
            .map(|host| format!("{} {}\n", host.name(), host.record.host_key.trim()))
            .collect();
        private_dir(&self.store.home().join("ssh"))?;
        let path = self.known_hosts();
        write_atomic(&path, hosts.as_bytes()).map_err(failed("write", &path))
    }

    /// Adds the `Include` to the configuration `file`; false if it is already there. If `file` is a
    /// symbolic link, it stays one.
    ///
    /// ```
    /// use fleetbox::ssh_config::SshConfig;
    /// use fleetbox::store::Store;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let home = dir.path();
    ///
    /// let config = SshConfig::new(&Store::open(home)?, "/usr/bin/fleetbox".as_ref());
    /// assert!(config.install(&home.join("config"))?);
    /// assert!(!config.install(&home.join("config"))?); // it is there already
    /// # Ok::<(), fleetbox::Error>(())
    /// ```
    ///
    /// # Errors
    /// An error of the file system, or a path that OpenSSH's configuration cannot express.
    pub fn install(&self, file: &Path) -> Result<bool, SshConfigError> {
        self.refresh(true)?;
        let include = format!("Include {}\n\n", pattern(&self.included())?);
        let old = read(file)?;
        let ours = [MARK, MARK_NEW].map(|mark| format!("{mark}\n{include}").into_bytes());
        let content = old.as_deref().unwrap_or_default();
        if ours.iter().any(|block| find(content, block).is_some()) {
            return Ok(false);
        }
        let [known, new] = ours;
        // It must be at the beginning: after a `Host` line it would apply to that host only.
        let mut changed = if old.is_some() { known } else { new };
        changed.extend_from_slice(content);
        if let Some(dir) = file.parent().filter(|dir| !dir.exists()) {
            private_dir(dir)?;
        }
        replace(file, &changed)?;
        Ok(true)
    }

    /// Removes from `file` what [`SshConfig::install`] added, and nothing else; false if there is
    /// nothing to remove. If the file was created for it and is otherwise empty, it is deleted.
    ///
    /// # Errors
    /// An error of the file system, or a path that OpenSSH's configuration cannot express.
    pub fn uninstall(&self, file: &Path) -> Result<bool, SshConfigError> {
        let include = format!("Include {}\n\n", pattern(&self.included())?);
        let old = read(file)?.unwrap_or_default();
        let mut found = false;
        for mark in [MARK, MARK_NEW] {
            let block = format!("{mark}\n{include}").into_bytes();
            let Some(at) = find(&old, &block) else {
                continue;
            };
            let mut rest = old.get(..at).unwrap_or_default().to_vec();
            rest.extend_from_slice(old.get(at + block.len()..).unwrap_or_default());
            if rest.is_empty() && mark == MARK_NEW {
                fs::remove_file(file).map_err(failed("remove", file))?;
            } else {
                replace(file, &rest)?;
            }
            found = true;
            break;
        }
        // The host keys stay: blocks that the user has copied name them.
        let included = self.included();
        remove_file_if_there(&included).map_err(failed("remove", &included))?;
        Ok(found)
    }
}

/// A VM in OpenSSH's configuration.
struct Host {
    record: VmRecord,
    /// True if the VM ends with the test that created it.
    passing: bool,
}

impl Host {
    /// A name that is unique among all VMs. The VM's host key is looked up by it.
    fn name(&self) -> String {
        let VmRecord { name, cluster, .. } = &self.record;
        if name == cluster {
            return format!("{name}.{DOMAIN}");
        }
        format!("{name}.{cluster}.{DOMAIN}")
    }

    /// The names by which a user reaches this VM among `all`.
    fn aliases(&self, all: &[Self]) -> Vec<String> {
        let VmRecord { name, cluster, .. } = &self.record;
        let namesakes = || all.iter().filter(|host| host.record.name == *name);
        let lasting = namesakes().filter(|host| !host.passing).count();
        // A bare name means the same VM as in `find`.
        let meant = match lasting {
            0 => namesakes().count() == 1,
            lasting => lasting == 1 && !self.passing,
        };
        let mut aliases = Vec::new();
        if meant {
            aliases.extend([name.to_string(), format!("{name}.{DOMAIN}")]);
        }
        // `web.fleetbox` means a VM `web` of any cluster.
        if cluster.as_str() != DOMAIN {
            aliases.push(format!("{name}.{cluster}"));
        }
        aliases.push(format!("{name}.{cluster}.{DOMAIN}"));
        aliases
    }
}

fn private_dir(dir: &Path) -> Result<(), SshConfigError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create", dir))
}

fn read(file: &Path) -> Result<Option<Vec<u8>>, SshConfigError> {
    match crate::util::fs::read_limited(file, LIMIT) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", file)(error)),
    }
}

/// Position of `part` in `whole`.
fn find(whole: &[u8], part: &[u8]) -> Option<usize> {
    whole.windows(part.len()).position(|window| window == part)
}

/// Replaces a file, or the target of a link, as a whole or not at all. Its permissions stay.
fn replace(file: &Path, content: &[u8]) -> Result<(), SshConfigError> {
    let target = match fs::canonicalize(file) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
        Err(error) => return Err(failed("find", file)(error)),
    };
    let mode = fs::metadata(&target).map_or(0o600, |metadata| metadata.permissions().mode());
    let dir = match target.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let write = || {
        let mut temporary = tempfile::Builder::new()
            .prefix(".fleetbox-")
            .tempfile_in(dir)?;
        temporary.write_all(content)?;
        temporary
            .as_file()
            .set_permissions(Permissions::from_mode(mode & 0o7777))?;
        temporary.as_file().sync_all()?;
        temporary.persist(&target).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed("write", &target))
}

fn checked(path: &Path) -> Result<&str, SshConfigError> {
    let fail = |why| SshConfigError::Path {
        path: path.to_owned(),
        why,
    };
    let text = path.to_str().ok_or_else(|| fail("it is not UTF-8"))?;
    if text.chars().any(|c| c.is_control() || c == '"') {
        return Err(fail("it has a quotation mark or a control character"));
    }
    Ok(text)
}

/// Quotes a path as an argument (ssh_config(5)), where `%` begins a token.
fn argument(path: &Path) -> Result<String, SshConfigError> {
    let text = checked(path)?;
    // OpenSSH before 8.7 knows no escapes, and before 8.4 no variables, so none can be written for all.
    let why = if [r"\\", r"\'"].iter().any(|escape| text.contains(escape)) {
        "it has a backslash before another or before a quotation mark"
    } else if text.contains("${") {
        "OpenSSH would read its ${ as a variable"
    } else {
        return Ok(format!("\"{}\"", text.replace('%', "%%")));
    };
    Err(SshConfigError::Path {
        path: path.to_owned(),
        why,
    })
}

/// Quotes a path as an argument of `Include`, which is a pattern of glob(7). `%` begins a token since OpenSSH 9.9, and a
/// backslash an escape since 8.7, so they are left to the pattern, too.
fn pattern(path: &Path) -> Result<String, SshConfigError> {
    let mut pattern = String::new();
    for c in checked(path)?.chars() {
        match c {
            '*' | '?' | '[' | '$' => pattern.extend(['[', c, ']']),
            '%' | '\\' => pattern.push('?'),
            c => pattern.push(c),
        }
    }
    Ok(format!("\"{pattern}\""))
}

/// Quotes a path as a word of ProxyCommand, which a shell reads after the tokens were replaced.
fn command_word(path: &Path) -> Result<String, SshConfigError> {
    Ok(crate::util::text::quote(checked(path)?).replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home {
        dir: tempfile::TempDir,
        config: SshConfig,
        file: PathBuf,
    }

    fn home() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("state")).unwrap();
        Home {
            config: SshConfig::new(&store, Path::new("/opt/my tools/fleetbox")),
            file: dir.path().join("ssh/config"),
            dir,
        }
    }

    #[test]
    fn twice_in_and_once_out_changes_no_byte() {
        for own in [
            &b""[..],
            b"Host mine\n  User me",
            b"\r\n\tHost x\r\n\xff\xfe\n\n\n",
            b"# Include none\n",
        ] {
            let Home { dir, config, file } = home();
            fs::create_dir(dir.path().join("ssh")).unwrap();
            fs::write(&file, own).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
            assert!(config.install(&file).unwrap());
            let installed = fs::read(&file).unwrap();
            assert!(installed.ends_with(own));
            assert!(!config.install(&file).unwrap());
            assert_eq!(fs::read(&file).unwrap(), installed);
            assert!(config.uninstall(&file).unwrap());
            assert_eq!(fs::read(&file).unwrap(), own);
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
            assert!(!config.uninstall(&file).unwrap());
            assert!(!config.included().exists());
        }
    }

    #[test]
    fn a_file_that_was_made_is_removed_again() {
        let Home { config, file, .. } = home();
        assert!(config.install(&file).unwrap());
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(config.uninstall(&file).unwrap());
        assert!(!file.exists());
    }

    #[test]
    fn lines_that_came_later_stay() {
        let Home { config, file, .. } = home();
        config.install(&file).unwrap();
        let mut content = b"# mine\n".to_vec();
        content.extend(fs::read(&file).unwrap());
        content.extend(b"Host later\n");
        fs::write(&file, content).unwrap();
        assert!(config.uninstall(&file).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"# mine\nHost later\n");
    }

    #[test]
    fn a_link_stays_a_link() {
        let Home { dir, config, file } = home();
        fs::create_dir(dir.path().join("ssh")).unwrap();
        let real = dir.path().join("dotfiles");
        fs::write(&real, "Host a\n").unwrap();
        std::os::unix::fs::symlink(&real, &file).unwrap();
        config.install(&file).unwrap();
        assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().starts_with(MARK));
        config.uninstall(&file).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "Host a\n");
    }

    #[test]
    fn paths_are_quoted_or_refused() {
        let word = |path: &str| command_word(Path::new(path)).unwrap();
        assert_eq!(word("/a b%c"), "'/a b%%c'");
        assert_eq!(argument(Path::new("/a b%c")).unwrap(), "\"/a b%%c\"");
        for bad in ["/a\"b", "/a\nb"] {
            assert!(command_word(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(argument(Path::new(r"/a*\b")).unwrap(), r#""/a*\b""#);
        for bad in [r"/a\\b", r"/a\'b", "/${HOME}/b"] {
            assert!(argument(Path::new(bad)).is_err(), "{bad:?}");
        }
    }

    /// Homes that OpenSSH takes, and homes that are refused before anything is written.
    #[test]
    fn openssh_finds_what_is_included_in_any_home() {
        for (name, works) in [
            ("plain", true),
            ("100%", true),
            ("%d%h", true),
            (r"a\b", true),
            (r"\", true),
            ("two words", true),
            ("it's", true),
            ("a*b?c", true),
            ("[x]", true),
            ("$HOME", true),
            ("#a=~b,c", true),
            ("größe", true),
            (r"a\\b", false),
            (r"a\'b", false),
            ("a\"b", false),
            ("a\nb", false),
            ("${HOME}", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let home = dir.path().join(name);
            let store = Store::open(home.join(".fleetbox")).unwrap();
            let config = SshConfig::new(&store, Path::new("/usr/bin/fleetbox"));
            let file = dir.path().join("config");
            let installed = config.install(&file);
            assert_eq!(installed.is_ok(), works, "{name}: {installed:?}");
            if !works {
                let refused = installed.unwrap_err().to_string();
                assert!(refused.contains("OpenSSH's configuration: "), "{refused}");
                assert!(!file.exists());
                continue;
            }
            fs::write(
                config.included(),
                config.blocks(&[host("web", "web", false)]).unwrap(),
            )
            .unwrap();
            let mut ssh = std::process::Command::new("ssh");
            let Ok(output) = ssh.arg("-G").arg("-F").arg(&file).arg("web").output() else {
                return crate::testing::test_support::skip("OpenSSH's client is missing");
            };
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(
                told.contains("\nhostname web.fleetbox\n"),
                "{name}: {output:?}"
            );
            assert!(config.uninstall(&file).unwrap(), "{name}");
            assert!(!file.exists());
        }
    }

    #[test]
    fn the_text_alone_is_enough_and_its_host_keys_are_kept_up_to_date() {
        let Home { config, file, .. } = home();
        assert_eq!(config.text().unwrap(), "");
        let known_hosts = config.known_hosts();
        assert_eq!(fs::read_to_string(&known_hosts).unwrap(), "");
        assert!(!config.included().exists());
        fs::write(&known_hosts, "an old key\n").unwrap();
        config.refresh(false).unwrap();
        assert_eq!(fs::read_to_string(&known_hosts).unwrap(), "");
        assert!(!config.included().exists());
        // The blocks that were copied still name it.
        config.install(&file).unwrap();
        config.uninstall(&file).unwrap();
        assert!(known_hosts.exists() && !config.included().exists());
    }

    fn host(cluster: &str, name: &str, passing: bool) -> Host {
        Host {
            record: VmRecord {
                name: name.parse().unwrap(),
                cluster: cluster.parse().unwrap(),
                ..sample()
            },
            passing,
        }
    }

    #[test]
    fn a_bare_name_is_one_vms_and_the_clusters_tell_others_apart() {
        let aliases = |hosts: &[Host]| {
            let each = hosts.iter().map(|host| host.aliases(hosts).join(" "));
            each.collect::<Vec<_>>()
        };
        assert_eq!(
            aliases(&[host("web", "web", false), host("shop", "db", true)]),
            [
                "web web.fleetbox web.web web.web.fleetbox",
                "db db.fleetbox db.shop db.shop.fleetbox"
            ]
        );
        // Two that last, and one of a test's.
        let hosts = [
            host("a", "n", false),
            host("b", "n", false),
            host("t", "n", true),
        ];
        assert_eq!(
            aliases(&hosts),
            ["n.a n.a.fleetbox", "n.b n.b.fleetbox", "n.t n.t.fleetbox"]
        );
        // One that lasts.
        assert_eq!(
            aliases(&hosts[1..]),
            ["n n.fleetbox n.b n.b.fleetbox", "n.t n.t.fleetbox"]
        );
        // The domain is no cluster.
        let hosts = [host("fleetbox", "n", false), host("a", "n", false)];
        assert_eq!(aliases(&hosts), ["n.fleetbox.fleetbox", "n.a n.a.fleetbox"]);
    }

    #[test]
    fn openssh_understands_it() {
        let Home { dir, config, file } = home();
        fs::create_dir(dir.path().join("ssh")).unwrap();
        let hosts = [
            host("web", "web", false),
            host("a", "node-1", false),
            host("b", "node-1", false),
        ];
        let text = config.blocks(&hosts).unwrap();
        assert!(text.contains("ProxyCommand '/opt/my tools/fleetbox' --home "));
        fs::write(&file, &text).unwrap();
        for (alias, name, reference) in [
            ("web", "web.fleetbox", "web/web"),
            ("node-1.a", "node-1.a.fleetbox", "a/node-1"),
            ("node-1.b.fleetbox", "node-1.b.fleetbox", "b/node-1"),
            ("node-1", "node-1", ""),
        ] {
            let mut ssh = std::process::Command::new("ssh");
            let Ok(output) = ssh.arg("-G").arg("-F").arg(&file).arg(alias).output() else {
                return crate::testing::test_support::skip("OpenSSH's client is missing");
            };
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{output:?}");
            let has = |line: &str| told.lines().any(|l| l == line);
            assert!(has(&format!("hostname {name}")), "{alias}: {told}");
            let ours = !reference.is_empty();
            assert_eq!(
                told.contains(&format!(" dial {reference} 22\n")),
                ours,
                "{alias}: {told}"
            );
            for line in [
                "user fleetbox",
                "stricthostkeychecking true",
                "identitiesonly yes",
            ] {
                assert_eq!(has(line), ours, "{alias}: {line}: {told}");
            }
        }
    }

    fn sample() -> VmRecord {
        serde_json::from_value(serde_json::json!({
            "name": "x", "cluster": "x",
            "image": {"reference": "tiny", "path": "/x", "sha256": null},
            "cpus": 1, "memory": 1, "disk": 1, "mac": "02:00:00:00:00:01", "ip": "10.0.0.2",
            "created": 0, "instance_id": "x", "ssh_user": "fleetbox", "ssh_key": "k",
            "host_key": "ssh-ed25519 AAAA"
        }))
        .unwrap()
    }
}
