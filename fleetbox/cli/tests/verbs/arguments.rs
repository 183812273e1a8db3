//! Arguments that are refused before anything is created.

use std::fs;

use crate::host::Host;

#[test]
fn wrong_arguments_leave_nothing_behind() {
    let host = Host::new();
    for wrong in [
        &["up", "MyBox"][..],
        &["up", "my box"],
        &["up", "box.vm"],
        &["up", "-box"],
        &["up", "box", "--cpus", "0"],
        &["up", "box", "--memory", "1"],
        &["up", "box", "--image", "no such"],
        &["up", "box", "--no-start", "--publish", "8080:80"],
        &["up", "box", "--no-start", "--wait", "cloud-init"],
        &["up", "box", "--no-start", "--timeout", "9"],
        &["up", "box", "--wait", "console:["],
        &["up", "box", "--user-data", "/no/such/file"],
        &["up", "box", "--publish", "8080:2", "--publish", "8080:3"],
        &["run", "--wait", "console:[", "--", "true"],
        &["exec", "box"],
        &["down"],
        &["set", "box"],
        &["no-such-verb"],
    ] {
        let output = host.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    assert!(!host.state().exists(), "something was created");
}

#[test]
fn wrong_user_data_is_a_wrong_argument() {
    let host = Host::new();
    for (text, why) in [("- a\n", "not a mapping"), ("hostname: x\n", "hostname")] {
        let file = host.dir.path().join("setup.yaml");
        fs::write(&file, text).expect("a file");
        let file = file.to_str().expect("UTF-8");
        for command in [&["up", "web"][..], &["up"], &["run", "--rm"]] {
            let output = host.run(&[command, &["--user-data", file]].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(
                error.contains("setup.yaml: ") && error.contains(why),
                "{error}"
            );
        }
    }
    assert!(!host.state().exists(), "something was created");
}
