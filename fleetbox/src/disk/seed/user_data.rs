//! The user's cloud-config documents: parsed as cloud-init does, and merged into fleetbox's own.

use serde_json::{Map, Value};

use super::SeedError;

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

/// Keys for which fleetbox has lists. A value that is not a list would replace them.
const LISTS: &[&str] = &[
    "users",
    "mounts",
    "packages",
    "bootcmd",
    "runcmd",
    "write_files",
];

/// Parses a cloud-config document.
///
/// # Errors
/// [`SeedError::UserData`], with line and column if it is not YAML, or if it is not a mapping or is
/// in another of cloud-init's formats; [`SeedError::ProtectedKey`].
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, SeedError> {
    let wrong = |why: String| SeedError::UserData { why };
    if text.len() > LIMIT {
        return Err(wrong(format!("it is larger than {LIMIT} bytes")));
    }
    let first = text.lines().next().unwrap_or_default().trim_end();
    if first.starts_with("#!") {
        let why = "it is a script; pass its lines as run commands, or put them under `runcmd:`";
        return Err(wrong(why.to_owned()));
    }
    for header in [
        "## template:",
        "#include",
        "#cloud-boothook",
        "#part-handler",
        "#cloud-config-",
    ] {
        if first.starts_with(header) || first.to_ascii_lowercase().starts_with("content-type:") {
            return Err(wrong(format!(
                "it begins with {first:?}, but only documents of the kind #cloud-config can be merged"
            )));
        }
    }
    // cloud-init reads YAML 1.1, where 0644 is octal and `yes` is true.
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| wrong(error.to_string()))?;
    let document = match value {
        Value::Object(document) => document,
        // Only comments.
        Value::Null => Map::new(),
        _ => {
            let why = "it is not a mapping; write `key: value` lines such as `runcmd: [...]`";
            return Err(wrong(why.to_owned()));
        }
    };
    if let Some(key) = document
        .keys()
        .find(|key| PROTECTED.contains(&key.as_str()))
    {
        return Err(SeedError::ProtectedKey { key: key.clone() });
    }
    let no_list =
        |(key, value): &(&String, &Value)| LISTS.contains(&key.as_str()) && !value.is_array();
    if let Some((key, _)) = document.iter().find(no_list) {
        return Err(wrong(format!("{key} is not a list")));
    }
    Ok(document)
}

/// Merges `more` into `into`: lists are appended, mappings merged, and other values replaced.
pub(super) fn merge(into: &mut Map<String, Value>, more: Map<String, Value>) {
    for (key, value) in more {
        match (into.get_mut(&key), value) {
            (Some(Value::Array(there)), Value::Array(value)) => there.extend(value),
            (Some(Value::Object(there)), Value::Object(value)) => merge(there, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_read_as_cloud_init_reads_them() {
        let text = "#cloud-config\n# a comment\nwrite_files:\n- path: /a\n  content: |\n    x\n    y\n  \
                    append: yes\n  permissions: '0644'\nmode: 0644\nnothing:\nbase: &b {a: 1}\nmore: *b\n";
        let document = parse(text).unwrap();
        assert_eq!(
            Value::Object(document),
            json!({
                "write_files": [{
                    "path": "/a", "content": "x\ny\n", "append": true, "permissions": "0644",
                }],
                "mode": 0o644,
                "nothing": null,
                "base": {"a": 1},
                "more": {"a": 1},
            })
        );
        assert!(parse("#cloud-config\n").unwrap().is_empty());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = parse("a: 1\nb: [1, 2\nc: 3").unwrap_err().to_string();
        assert!(
            error.contains("line 3") || error.contains("line 2"),
            "{error}"
        );
        for bad in [
            "- a\n- b",
            "hello",
            "a: 1\na: 2",
            "#!/bin/sh\ntrue",
            "## template: jinja\n#cloud-config\n",
            "#include\nhttp://x/",
            "Content-Type: multipart/mixed; boundary=x\n\n",
            "a: *nobody",
            "users: default",
            "runcmd:",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        for key in PROTECTED {
            let error = parse(&format!("{key}: x")).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for i in 1..40 {
            let last = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{last}, {last}, {last}, {last}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"x".repeat(LIMIT + 1)).is_err());
    }

    #[test]
    fn lists_append_and_mappings_merge() {
        let object = |value: Value| match value {
            Value::Object(map) => map,
            _ => panic!(),
        };
        let mut into = object(json!({"l": [1], "m": {"a": 1, "l": [1]}, "s": 1}));
        merge(
            &mut into,
            object(json!({"l": [2], "m": {"b": 2, "l": [2]}, "s": 2, "n": [3]})),
        );
        assert_eq!(
            Value::Object(into),
            json!({"l": [1, 2], "m": {"a": 1, "b": 2, "l": [1, 2]}, "s": 2, "n": [3]})
        );
    }
}
