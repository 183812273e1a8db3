//! `--json`.

use std::fs;
use std::process::Output;

use crate::host::Host;

#[test]
fn json_has_the_documented_shapes() {
    let host = Host::new();
    let image = &host.image();
    let json = |status, args: &[&str]| {
        let text = host.ends(status, &[args, &["--json"]].concat());
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")
    };
    // Verbs that change VMs: a list of what became of each.
    let up = ["up", "web", "--no-start", "--image", image];
    for result in ["created", "exists"] {
        let changed = json(0, &up);
        assert_eq!(changed.as_array().map(Vec::len), Some(1));
        assert_eq!(
            (
                &changed[0]["name"],
                &changed[0]["cluster"],
                &changed[0]["result"]
            ),
            (&"web".into(), &"web".into(), &result.into())
        );
        assert_eq!(changed[0]["state"], "stopped");
    }
    let became =
        |result: &str| serde_json::json!([{"name": "web", "cluster": "web", "result": result}]);
    assert_eq!(json(0, &["down", "web"]), became("not-running"));
    assert_eq!(json(0, &["kill", "web"]), became("not-running"));
    assert_eq!(json(0, &["rm", "web"]), became("deleted"));
    for (status, args) in [
        (1, &["rm", "web"][..]),
        (1, &["down", "web"]),
        (0, &["down", "--all"]),
        (0, &["prune"]),
        (0, &["prune", "--dry-run"]),
        (0, &["ls"]),
        (0, &["stats"]),
        (0, &["images", "rm", "--all"]),
    ] {
        assert_eq!(json(status, args), serde_json::json!([]), "{args:?}");
    }
    // What is one thing is an object.
    assert_eq!(
        json(0, &["version"]),
        serde_json::json!({"name": "fleetbox", "version": env!("CARGO_PKG_VERSION")})
    );
    fs::create_dir(host.dir.path().join(".ssh")).expect("a directory");
    for (option, result) in [
        ("--install", "installed"),
        ("--install", "unchanged"),
        ("--uninstall", "uninstalled"),
        ("--uninstall", "unchanged"),
    ] {
        let told = json(0, &["ssh-config", option]);
        assert_eq!(told["result"], result, "{option}: {told}");
        assert!(
            told["file"]
                .as_str()
                .is_some_and(|file| file.ends_with(".ssh/config")),
            "{told}"
        );
    }
    for check in json_list(&host.run(&["doctor", "--json"])) {
        assert!(check.get("remedy").is_some(), "{check}");
    }
}

fn json_list(output: &Output) -> Vec<serde_json::Value> {
    serde_json::from_slice(&output.stdout).expect("a list as JSON")
}
