//! OpenSSH's own client with the configuration that `ssh-config` prints.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::guest::Guest;
use crate::host::{Host, said, succeeded};

#[test]
fn what_ssh_config_prints_is_enough_for_openssh() {
    if Command::new("ssh").arg("-V").output().is_err() {
        eprintln!("skipped: OpenSSH's client is missing");
        return;
    }
    for (stem, state) in [
        ("plain", "state"),
        ("pct", "100% %d"),
        ("odd", r"it's a\b * [x]? $HOME"),
    ] {
        let host = Host::with_state(stem, state);
        succeeded(host.up().output().unwrap());
        let guest = Guest::start(host.home(), &host.dir.path().join("guest"));
        let config = host.dir.path().join("config");
        // As many write it: without the end of the last line.
        std::fs::write(&config, "Host other\n  User me").unwrap();
        let append = || {
            let mut file = OpenOptions::new().append(true).open(&config).unwrap();
            let printed = succeeded(host.run(&["ssh-config"]));
            file.write_all(&printed.stdout).unwrap();
        };
        append();
        let hello = || {
            let mut ssh = Command::new("ssh");
            let ssh =
                ssh.arg("-F")
                    .arg(&config)
                    .args(["-o", "BatchMode=yes", &host.stem, "echo hello"]);
            let ssh = ssh.stdin(Stdio::null());
            ssh.env("FLEETBOX_FAKE_GUEST", guest.socket())
                .output()
                .unwrap()
        };
        let answer = succeeded(hello());
        assert_eq!(answer.stdout, b"hello\n", "{state}: {}", said(&answer));
        // A new VM of the same name has another key, which OpenSSH accepts.
        succeeded(host.run(&["rm", "--force", &host.stem]));
        succeeded(host.up().output().unwrap());
        let answer = succeeded(hello());
        assert_eq!(answer.stdout, b"hello\n", "{state}: {}", said(&answer));
        succeeded(host.run(&["rm", "--force", &host.stem]));
    }
}
