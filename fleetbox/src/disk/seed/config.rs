//! The user's configuration of a guest: user data, packages, commands, environment and keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::yaml::Mapping;
use super::{SeedError, user_data, users};
use crate::model::keys::PublicKey;

/// Maximum bytes of an environment variable's name and value; `pam_env` reads lines of 1024.
const VARIABLE_LIMIT: usize = 1000;

/// The user's configuration of a guest. It takes effect at the first boot.
///
/// ```
/// use fleetbox::seed::GuestConfig;
///
/// let mut config = GuestConfig::default();
/// assert!(config.is_empty());
/// config.add_user_data("timezone: Europe/Berlin\n")?;
/// config.packages.push("nginx".to_owned());
/// config.check()?;
/// # Ok::<(), fleetbox::seed::SeedError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestConfig {
    /// Cloud-config documents in the order in which they were given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_data: Vec<Mapping>,
    /// Packages of the guest's distribution.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Shell commands that root runs at the end of the first boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Environment variables of logins.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Public keys that may log in, besides fleetbox's own, in OpenSSH's one-line format.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
}

impl GuestConfig {
    /// True if nothing is configured.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a cloud-config document.
    ///
    /// ```
    /// use fleetbox::seed::{GuestConfig, SeedError};
    ///
    /// let mut config = GuestConfig::default();
    /// config.add_user_data("timezone: Europe/Berlin\n")?;
    /// let refused = config.add_user_data("hostname: other\n"); // that is fleetbox's to set
    /// assert!(matches!(refused, Err(SeedError::ProtectedKey { .. })));
    /// # Ok::<(), fleetbox::seed::SeedError>(())
    /// ```
    ///
    /// # Errors
    /// [`SeedError::UserData`], [`SeedError::ProtectedKey`].
    pub fn add_user_data(&mut self, text: &str) -> Result<(), SeedError> {
        self.user_data.push(user_data::parse(text)?);
        Ok(())
    }

    /// Checks everything except the user data, which is checked when it is added.
    ///
    /// # Errors
    /// [`SeedError::Value`] names what is wrong.
    pub fn check(&self) -> Result<(), SeedError> {
        for package in &self.packages {
            let name = package
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric())
                && package
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+-._:~=/@".contains(&b));
            if !name {
                let why = "use a package name such as curl or libssl-dev, without options";
                return Err(wrong("package", package, why));
            }
        }
        for command in &self.commands {
            if command.trim().is_empty() || command.contains('\0') {
                let why = "it is empty or contains a zero byte";
                return Err(wrong("command", command, why));
            }
        }
        for (name, value) in &self.environment {
            check_variable(name, value)?;
        }
        for key in &self.authorized_keys {
            if key.contains(char::is_control) || key.parse::<PublicKey>().is_err() {
                let why = "it is no public key in OpenSSH's one-line form, such as the content of \
                     ~/.ssh/id_ed25519.pub";
                return Err(wrong("SSH key", key, why));
            }
        }
        Ok(())
    }

    /// Merges this configuration into fleetbox's own cloud-config for a VM whose user is `user`.
    ///
    /// # Errors
    /// [`SeedError::UserData`] if the user data would lock fleetbox out.
    pub(super) fn merge_into(&self, ours: &mut Mapping, user: &str) -> Result<(), SeedError> {
        for document in &self.user_data {
            let mut document = document.clone();
            users::adopt(ours, &mut document, user)?;
            ours.merge(document);
        }
        users::keep_password(ours, user)?;
        users::check_groups(ours, user)?;
        let mut more = Map::new();
        if !self.packages.is_empty() {
            more.insert("packages".to_owned(), json!(self.packages));
            more.insert("package_update".to_owned(), json!(true));
        }
        if !self.commands.is_empty() {
            more.insert("runcmd".to_owned(), json!(self.commands));
        }
        if !self.environment.is_empty() {
            let lines: String = self
                .environment
                .iter()
                .map(|(name, value)| format!("{name}=\"{value}\"\n"))
                .collect();
            let file = json!({"path": "/etc/environment", "content": lines, "append": true});
            more.insert("write_files".to_owned(), json!([file]));
        }
        ours.merge(more.into());
        Ok(())
    }
}

/// Checks a variable. The guest reads `/etc/environment` with `pam_env`, which has no escapes.
fn check_variable(name: &str, value: &str) -> Result<(), SeedError> {
    let named = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let why = if !named {
        "use only letters, digits and '_' in its name, and do not begin with a digit"
    } else if value.contains(|c: char| c == '"' || c == '#' || (c.is_control() && c != '\t')) {
        "its value has a quotation mark, '#', a line break or another control character, which \
         /etc/environment cannot hold; set it in the command that needs it"
    } else if name.len() + value.len() > VARIABLE_LIMIT {
        "it is longer than 1000 bytes"
    } else {
        return Ok(());
    };
    Err(wrong("environment variable", name, why))
}

fn wrong(what: &'static str, value: &str, why: &'static str) -> SeedError {
    SeedError::Value {
        what,
        value: value.chars().take(100).collect(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::keys::Keypair;

    #[test]
    fn additions_come_after_user_data_and_that_after_ours() {
        let mut config = GuestConfig {
            packages: vec!["curl".into()],
            commands: vec!["echo 2".into()],
            environment: [("A".to_owned(), "b c".to_owned())].into(),
            ..GuestConfig::default()
        };
        config
            .add_user_data("runcmd: [echo 0, [echo, '1']]\npackages:\n- jq\nmounts: [[c, d]]")
            .unwrap();
        config.check().unwrap();
        let ours = json!({"mounts": [["a", "b"]], "ssh_pwauth": false});
        let mut ours = Mapping::from(ours.as_object().unwrap().clone());
        config.merge_into(&mut ours, "fleetbox").unwrap();
        let read: serde_json::Value = serde_json::from_str(&ours.to_string()).unwrap();
        assert_eq!(
            read,
            json!({
                "mounts": [["a", "b"], ["c", "d"]],
                "ssh_pwauth": false,
                "packages": ["jq", "curl"],
                "package_update": true,
                "runcmd": ["echo 0", ["echo", "1"], "echo 2"],
                "write_files": [{
                    "path": "/etc/environment", "content": "A=\"b c\"\n", "append": true,
                }],
            })
        );
    }

    #[test]
    fn wrong_values_are_named() {
        let key = Keypair::generate("me").unwrap().public().to_string();
        let with = |change: &dyn Fn(&mut GuestConfig)| {
            let mut config = GuestConfig::default();
            change(&mut config);
            config.check()
        };
        assert!(GuestConfig::default().is_empty());
        with(&|c| c.authorized_keys.push(key.clone())).unwrap();
        with(&|c| c.packages.push("libc6:amd64=2.36-9+deb12u1".into())).unwrap();
        let variable = |name: &str, value: &str| {
            with(&|c| {
                c.environment.insert(name.into(), value.into());
            })
        };
        variable("_A1", "x = 'y' $z\\").unwrap();
        for (name, value) in [
            ("", "x"),
            ("1A", "x"),
            ("A B", "x"),
            ("A", "x\ny"),
            ("A", "x\u{7f}"),
            ("A", "\u{1b}[0m"),
            ("A", "\u{85}"),
            ("A", "#"),
            ("A", "\""),
            ("A", &"x".repeat(1000)),
        ] {
            let error = variable(name, value).unwrap_err().to_string();
            assert!(error.contains("environment variable"), "{error}");
        }
        for bad in ["", "-y", "a b", "a;b", "a\n"] {
            assert!(with(&|c| c.packages.push(bad.into())).is_err(), "{bad:?}");
        }
        let two = format!("{key}\nssh-ed25519 AAAA");
        for bad in [
            "",
            "hello",
            "ssh-ed25519 AAAA",
            &two,
            &format!("{key}\u{7f}"),
        ] {
            let result = with(&|c| c.authorized_keys.push(bad.into()));
            assert!(result.is_err(), "{bad:?}");
        }
        assert!(with(&|c| c.commands.push(" ".into())).is_err());
    }

    #[test]
    fn it_is_recorded_without_what_is_not_there() {
        let mut config = GuestConfig::default();
        assert_eq!(serde_json::to_string(&config).unwrap(), "{}");
        config
            .add_user_data("#cloud-config\nlocale: C.UTF-8")
            .unwrap();
        config.commands.push("true".into());
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<GuestConfig>(&text).unwrap(), config);

        // What a state directory of an earlier state of the repository has.
        let text = r#"{"user_data":[{"a":[1,-2,2.5,1e30,true,null,"x"],"mode":420}]}"#;
        let earlier: GuestConfig = serde_json::from_str(text).unwrap();
        config = GuestConfig::default();
        config
            .add_user_data("a: [1, -2, 2.5, 1.0e+30, true, null, x]\nmode: 0644")
            .unwrap();
        assert_eq!(earlier, config);
    }
}
