//! The user's cloud-config documents.

use super::SeedError;
use super::yaml::{self, Mapping, Yaml};

/// Maximum bytes of one document.
const LIMIT: usize = 1 << 20;

/// Protected keys: they set the guest's identity and how it is reached, which the host must know.
const PROTECTED: &[&str] = &[
    "hostname",
    "fqdn",
    "manage_etc_hosts",
    "ssh_keys",
    "ssh_deletekeys",
];

/// Keys that are lists to fleetbox or cloud-init. Another value would replace fleetbox's list, or have no effect.
const LISTS: &[&str] = &[
    "users",
    "mounts",
    "packages",
    "bootcmd",
    "runcmd",
    "write_files",
    "ssh_authorized_keys",
];

/// Keys that tell cloud-init how to merge documents. fleetbox has merged them by its own rule then.
const MERGING: &[&str] = &["merge_how", "merge_type"];

/// Reads a cloud-config document.
///
/// # Errors
/// [`SeedError::UserData`], with line and column if cloud-init could not read it, or if it is not a mapping or is in
/// another of cloud-init's formats; [`SeedError::ProtectedKey`].
pub(super) fn parse(text: &str) -> Result<Mapping, SeedError> {
    if text.len() > LIMIT {
        return Err(wrong(format!("it is larger than {LIMIT} bytes")));
    }
    check_header(text)?;
    let value = yaml::load(text).map_err(|error| wrong(error.to_string()))?;
    let mut document = match value {
        Yaml::Map(document) => document,
        // Only comments.
        Yaml::Null => Mapping::default(),
        _ => {
            let why = "it is not a mapping; write `key: value` lines such as `runcmd: [...]`";
            return Err(wrong(why.to_owned()));
        }
    };
    if let Some(key) = PROTECTED.iter().find(|key| document.get(key).is_some()) {
        let key = (*key).to_owned();
        return Err(SeedError::ProtectedKey { key });
    }
    for key in LISTS {
        let value = document.get(key);
        if value.is_some_and(|value| !matches!(value, Yaml::List(_))) {
            return Err(wrong(format!("{key} is not a list")));
        }
    }
    for key in MERGING {
        document.remove(key);
    }
    Ok(document)
}

fn wrong(why: String) -> SeedError {
    SeedError::UserData { why }
}

/// Refuses the formats of user data that are not cloud-config.
fn check_header(text: &str) -> Result<(), SeedError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let first = text
        .split(['\n', '\r'])
        .next()
        .unwrap_or_default()
        .trim_end();
    if first.starts_with("#!") {
        let why = "it is a script; pass its lines as run commands, or put them under `runcmd:`";
        return Err(wrong(why.to_owned()));
    }
    let other = [
        "## template:",
        "#include",
        "#cloud-boothook",
        "#part-handler",
        "#cloud-config-",
    ];
    let lower = first.to_ascii_lowercase();
    let mime = ["content-type:", "mime-version:"];
    if other.iter().any(|header| first.starts_with(header))
        || mime.iter().any(|header| lower.starts_with(header))
    {
        let shown: String = first.chars().take(100).collect();
        return Err(wrong(format!(
            "it begins with {shown:?}, but only documents of the kind #cloud-config can be merged"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn documents_are_read_as_cloud_init_reads_them() {
        let text = "#cloud-config\n# a comment\nwrite_files:\n- path: /a\n  content: |\n    x\n    y\n  \
                    append: yes\n  permissions: '0644'\nmode: 0644\nnothing:\nbase: &b {a: 1}\nmore: *b\n";
        let document = parse(text).unwrap();
        let read: serde_json::Value = serde_json::from_str(&document.to_string()).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "write_files": [{
                    "path": "/a", "content": "x\ny\n", "append": true, "permissions": "0644",
                }],
                "mode": 0o644,
                "nothing": null,
                "base": {"a": 1},
                "more": {"a": 1},
            })
        );
        for empty in ["#cloud-config\n", "", "\u{feff}#cloud-config\r\n"] {
            assert!(parse(empty).unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_in_plain_words() {
        let told = error("a: 1\nb: [1, 2\nc: 3");
        assert!(
            told.starts_with("invalid user data: line 3, column 2: "),
            "{told}"
        );
        for bad in [
            "- a\n- b",
            "hello",
            "a: 1\na: 2",
            "a: 1\n---\nb: 2",
            "#!/bin/sh\ntrue",
            "\u{feff}#!/bin/sh\ntrue",
            "## template: jinja\n#cloud-config\n",
            "#include\nhttp://x/",
            "Content-Type: multipart/mixed; boundary=x\n\n",
            "MIME-Version: 1.0\n\n",
            "a: *nobody",
            "a: !!binary |\n  x",
            "users: default",
            "runcmd:",
            "ssh_authorized_keys: ssh-ed25519 AAAA",
            &"x".repeat(LIMIT + 1),
        ] {
            let told = error(bad);
            // Names of a program's parts say nothing to a user.
            let internal = ["::", "from_str", "Policy", "Options", "Err("];
            assert!(!internal.iter().any(|name| told.contains(name)), "{told}");
        }
        for key in PROTECTED {
            let told = error(&format!("{key}: x"));
            assert!(told.contains(key), "{told}");
        }
    }

    #[test]
    fn lists_append_and_mappings_merge() {
        let mapping = |text: &str| parse(text).unwrap();
        let mut into = mapping("{l: [1], m: {a: 1, l: [1]}, s: 1, 1: [a]}");
        into.merge(mapping("{l: [2], m: {b: 2, l: [2]}, s: 2, n: [3], 1: [b]}"));
        assert_eq!(
            into,
            mapping("{l: [1, 2], m: {a: 1, l: [1, 2], b: 2}, s: 2, 1: [a, b], n: [3]}")
        );
    }
}
