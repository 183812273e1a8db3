//! The command line.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::pty::{Winsize, openpty};

use super::verbs::{self, BOOT, SMALL};
use crate::host;
use crate::report::{Must, uses};
use crate::suite::Suite;

/// How long a command that boots nothing may take.
pub(crate) const QUICK: Duration = Duration::from_secs(60);

/// Runs `fleetbox`, which has to end with `status`.
#[track_caller]
pub(crate) fn run(suite: &Suite, arguments: &[&str], status: i32, limit: Duration) -> Output {
    let output = host::run(suite.fleetbox(arguments), limit);
    assert_eq!(
        output.status.code(),
        Some(status),
        "fleetbox {}: {}",
        arguments.join(" "),
        host::both(&output)
    );
    output
}

/// What `fleetbox` wrote, trimmed.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The line of `ls --json` about a VM.
pub(crate) fn listed(suite: &Suite, name: &str) -> Option<serde_json::Value> {
    let list: serde_json::Value =
        serde_json::from_slice(&run(suite, &["ls", "--json"], 0, QUICK).stdout)
            .must("ls --json is no JSON");
    list.as_array()
        .must_be("an array")
        .iter()
        .find(|vm| vm["name"] == name)
        .cloned()
}

trait MustBe<T> {
    fn must_be(self, what: &str) -> T;
}

impl<T> MustBe<T> for Option<T> {
    #[track_caller]
    fn must_be(self, what: &str) -> T {
        self.unwrap_or_else(|| panic!("not {what}"))
    }
}

/// From `up` to `rm`, with all that is between.
pub(crate) fn life_cycle(suite: &Suite) {
    let name = "cli";
    uses(name);
    let image = suite.tiny();
    let up = [&["up", name, "--image", &image], &SMALL[..]].concat();
    let output = run(suite, &up, 0, BOOT);
    assert!(
        text(&output).starts_with("cli is running;"),
        "{}",
        host::both(&output)
    );
    // There is no terminal, so each phase is a line.
    let phases = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        phases.contains("starting cli\nstarting cli: waiting for SSH\n"),
        "{phases}"
    );
    assert!(text(&run(suite, &up, 0, QUICK)).contains("is running already"));

    let vm = listed(suite, name).must_be("listed");
    assert_eq!(
        (&vm["state"], &vm["image"], &vm["cpus"]),
        (&"running".into(), &"tiny".into(), &1.into()),
        "{vm}"
    );
    assert!(text(&run(suite, &["ls"], 0, QUICK)).contains("cli"));

    assert_eq!(
        text(&run(suite, &["ssh", name, "--", "uname", "-s"], 0, QUICK)),
        "Linux"
    );
    assert_eq!(
        text(&run(suite, &["ssh", name, "--", "hostname"], 0, QUICK)),
        name
    );
    let output = run(
        suite,
        &["ssh", name, "--", "echo out; echo err >&2; exit 7"],
        7,
        QUICK,
    );
    assert_eq!(
        (
            text(&output),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        ("out".to_owned(), "err")
    );

    piped_input(suite, name);
    dialled(suite, name);
    interactive(suite, name);
    verbs::inside(suite, name);
    verbs::restarted(suite, name);

    let sum = verbs::write_much(suite, name);
    let output = verbs::down(suite, name);
    assert!(
        text(&output).contains("cli powered off"),
        "{}",
        host::both(&output)
    );
    host::assert_quiet(&suite.vm_dir(name), name, true);
    assert_eq!(listed(suite, name).must_be("listed")["state"], "stopped");
    run(suite, &["ssh", name, "--", "true"], 255, QUICK);
    verbs::changed(suite, name, &sum);
    asked(suite, name);
    run(suite, &["rm", name], 0, QUICK);
    assert!(listed(suite, name).is_none());
    assert!(!suite.vm_dir(name).exists());
}

fn piped_input(suite: &Suite, name: &str) {
    let mut command = suite.fleetbox(&["ssh", name, "--", "cat; echo end"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().must("cannot start fleetbox");
    child
        .stdin
        .take()
        .must_be("piped")
        .write_all(b"through a pipe\n")
        .must("cannot write");
    let output = host::finish(child, QUICK, "fleetbox ssh");
    assert_eq!(text(&output), "through a pipe\nend");
}

/// `dial` as a ProxyCommand uses it: the first line of the guest's SSH server.
fn dialled(suite: &Suite, name: &str) {
    let mut command = suite.fleetbox(&["dial", name, "22"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().must("cannot start fleetbox");
    let input = child.stdin.take();
    let mut banner = [0; 8];
    child
        .stdout
        .as_mut()
        .must_be("piped")
        .read_exact(&mut banner)
        .must("cannot read the banner");
    assert_eq!(&banner, b"SSH-2.0-");
    drop(input);
    host::finish(child, QUICK, "fleetbox dial");
}

/// A log-in on a terminal: its size arrives, what is typed is run, and the shell's status is that of the command.
fn interactive(suite: &Suite, name: &str) {
    let mut ssh = OnTerminal::start(suite, &["ssh", name]);
    // The prompt says that the guest's terminal is there.
    ssh.wait_for("$");
    // The words are typed in parts, so that their echo is not what is waited for.
    ssh.type_in("echo si''ze $(stty size)\r");
    ssh.wait_for("size 33 111");
    ssh.type_in("exit 5\r");
    assert_eq!(ssh.status(), Some(5));
}

/// Who is asked and says no keeps the VM.
fn asked(suite: &Suite, name: &str) {
    let mut rm = OnTerminal::start(suite, &["rm", name]);
    rm.wait_for("[y/N]");
    rm.type_in("n\r");
    assert_eq!(rm.status(), Some(1));
    assert!(listed(suite, name).is_some());
}

/// A `fleetbox` command on a terminal of 33 rows and 111 columns.
struct OnTerminal {
    child: Child,
    master: File,
    screen: host::Screen,
}

impl OnTerminal {
    fn start(suite: &Suite, arguments: &[&str]) -> Self {
        let size = Winsize {
            ws_row: 33,
            ws_col: 111,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).must("cannot open a terminal");
        let copy = |fd: &OwnedFd| fd.try_clone().must("cannot copy a descriptor");
        let fleetbox = suite.fleetbox(arguments);
        // `setsid` makes the terminal the controlling one, as a log-in would.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg("--wait")
            .arg(fleetbox.get_program())
            .args(fleetbox.get_args())
            .env("TERM", "vt100")
            .stdin(copy(&pty.slave))
            .stdout(copy(&pty.slave))
            .stderr(pty.slave)
            .spawn()
            .must("cannot start fleetbox on a terminal");
        let master = File::from(pty.master);
        let reader = master.try_clone().must("cannot copy a descriptor");
        Self {
            child,
            master,
            screen: host::Screen::read(reader, QUICK),
        }
    }

    #[track_caller]
    fn wait_for(&mut self, wanted: &str) {
        self.screen.wait_for(wanted).must("on the terminal");
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).must("cannot type");
    }

    /// The status that it ends with.
    fn status(mut self) -> Option<i32> {
        let status = host::within(QUICK, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs on".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        status.must("a command on a terminal").code()
    }
}
