//! No command loses output and succeeds, or hangs: each against a full device, a reader that is gone, and a slow one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guest::Guest;
use crate::host::{Host, eventually, succeeded};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The reader of standard output was gone: see the exit statuses of `fleetbox --help`.
const PIPE: i32 = 141;

/// How a verb is called here.
struct Call {
    /// The verb and its arguments. `VM` is a running VM, `IDLE` one that is stopped, `NEW` one that does not exist,
    /// `IMAGE` an image, `DIR` the directory of them all.
    args: &'static [&'static str],
    /// What comes before it, at each run.
    before: &'static [&'static str],
    /// It goes on until its reader is gone.
    endless: bool,
    /// It prints JSON on demand.
    json: bool,
}

const fn call(args: &'static [&'static str]) -> Call {
    Call {
        args,
        before: &[],
        endless: false,
        json: true,
    }
}

const fn plain(args: &'static [&'static str]) -> Call {
    Call {
        json: false,
        ..call(args)
    }
}

const fn endless(args: &'static [&'static str]) -> Call {
    Call {
        endless: true,
        ..plain(args)
    }
}

const CALLS: &[Call] = &[
    call(&["up", "VM"]),
    call(&["up", "IDLE", "--no-start"]),
    plain(&["ssh", "VM", "--", "echo small"]),
    plain(&["ssh", "VM", "--", "seq 1 300000"]),
    plain(&["ssh", "VM", "--", "echo small >&2; seq 1 9; exit 3"]),
    endless(&["ssh", "VM", "--", "yes"]),
    // Two mebibytes.
    plain(&["exec", "VM", "--", "seq", "1", "300000"]),
    endless(&["exec", "VM", "--", "yes"]),
    plain(&[
        "run", "--rm", "--name", "NEW", "--disk", "8M", "--image", "IMAGE", "--", "seq", "1", "9",
    ]),
    Call {
        before: &["rm", "--force", "NEW"],
        ..plain(&[
            "run", "-d", "--name", "NEW", "--disk", "8M", "--image", "IMAGE",
        ])
    },
    // Before the next `ship`, after which there is nothing to pull.
    plain(&["pull-diff", "VM"]),
    call(&["ship", "VM", "DIR/tree"]),
    call(&["ship", "VM", "DIR/tree", "--dry-run"]),
    call(&["ls"]),
    call(&["show", "VM"]),
    plain(&["logs", "VM"]),
    endless(&["logs", "-f", "VM"]),
    endless(&["console", "VM"]),
    call(&["ports", "VM"]),
    call(&["stats", "VM"]),
    call(&["cp", "VM:small", "DIR/copied"]),
    Call {
        before: &["up", "IDLE", "--no-start"],
        ..call(&["down", "IDLE"])
    },
    Call {
        before: &["down", "VM"],
        ..call(&["restart", "VM"])
    },
    call(&["kill", "IDLE"]),
    call(&["set", "IDLE", "--cpus", "1"]),
    Call {
        before: &[
            "up",
            "NEW",
            "--no-start",
            "--disk",
            "8M",
            "--image",
            "IMAGE",
        ],
        ..call(&["rm", "--force", "NEW"])
    },
    call(&["prune", "--dry-run"]),
    plain(&["dial", "VM", "22"]),
    endless(&["proxy", "--listen", "127.0.0.1:0"]),
    plain(&["ssh-config"]),
    call(&["images", "ls"]),
    call(&["images", "pull", "IMAGE"]),
    plain(&["images", "rm", "debian-12"]),
    call(&["images", "refresh", "IMAGE"]),
    call(&["doctor"]),
    plain(&["completions", "bash"]),
    plain(&["completions", "zsh"]),
    plain(&["man"]),
    call(&["version"]),
    plain(&["help"]),
    plain(&["help", "images", "pull"]),
    plain(&["up", "--help"]),
    plain(&["--version"]),
];

/// A host with a running VM and a stopped one.
struct World {
    host: Host,
    guest: Guest,
}

impl World {
    fn new(stem: &str) -> Self {
        let host = Host::new(stem);
        succeeded(host.up().output().unwrap());
        let guest = Guest::start(host.home(), &host.dir.path().join("guest"));
        let world = Self { host, guest };
        let dir = world.host.dir.path();
        fs::write(world.in_guest("small"), "small").unwrap();
        world.done(&[
            "up",
            "IDLE",
            "--no-start",
            "--disk",
            "8M",
            "--image",
            "IMAGE",
        ]);
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-C").arg(dir.join("tree")).args(arguments);
            git.env("HOME", dir);
            succeeded(git.output().unwrap());
        };
        fs::create_dir(dir.join("tree")).unwrap();
        git(&["init", "-q"]);
        fs::write(dir.join("tree/a"), "a\n").unwrap();
        git(&["add", "a"]);
        let who = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"];
        git(&[&who[..], &["commit", "-qm", "a"]].concat());
        world
    }

    /// A file in the guest.
    fn in_guest(&self, name: &str) -> PathBuf {
        self.host.dir.path().join("guest").join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let host = &self.host;
        let dir = host.dir.path().to_str().unwrap();
        let image = format!("{dir}/disk.raw");
        let args: Vec<String> = args
            .iter()
            .map(|arg| match *arg {
                "IDLE" => format!("{}-idle", host.stem),
                "NEW" => format!("{}-new", host.stem),
                "IMAGE" => image.clone(),
                arg => arg.replace("VM", &host.stem).replace("DIR", dir),
            })
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = host.command(&args);
        command.env("FLEETBOX_FAKE_GUEST", self.guest.socket());
        command
    }

    fn done(&self, args: &[&str]) {
        succeeded(self.command(args).output().unwrap());
    }

    /// A call, with what must come before it done.
    fn ready(&self, call: &Call) {
        if !call.before.is_empty() {
            // `rm` of what is not there fails.
            let _ = self.command(call.before).output().unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in ["NEW", "IDLE", "VM"] {
            let _ = self.command(&["rm", "--force", name]).output();
        }
    }
}

/// The status of a command that ends in time, and what it says on standard error.
#[track_caller]
fn ended(mut command: Command, what: &str) -> (ExitStatus, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    // The other ends of its pipes.
    drop(command);
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, errors.join().unwrap());
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Exit status, and what was read by someone who takes a while; of an endless command only the beginning.
fn slowly(mut command: Command, endless: bool) -> (Option<i32>, Vec<u8>) {
    let (mut reader, writer) = io::pipe().unwrap();
    // As after another program that had the pipe: writing to it does not wait.
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut child = command
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);
    let guard = Pid::from_raw(child.id().try_into().unwrap());
    let (end, ending) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if ending.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            kill(guard, Signal::SIGKILL).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    let mut read = Vec::new();
    let mut buffer = [0; 8 << 10];
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => break,
            n => read.extend_from_slice(&buffer[..n]),
        }
        if endless {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let status = child.wait().unwrap();
    drop(end);
    watch.join().unwrap();
    (status.code(), read)
}

/// The verbs of the command tree, as manual pages name them.
fn pages(world: &World) -> BTreeSet<String> {
    let dir = world.host.dir.path().join("man");
    world.done(&["man", "--dir", "DIR/man"]);
    let names = fs::read_dir(dir).unwrap().flatten();
    names
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_verb_tells_lost_output_and_none_hangs() {
    let world = World::new("out");
    world.done(&["ship", "VM", "DIR/tree"]);
    // Something to pull.
    fs::write(world.in_guest("tree/a"), "b\n").unwrap();
    let mut missing = pages(&world);
    // These only hold others.
    for group in ["fleetbox.1", "fleetbox-images.1"] {
        assert!(missing.remove(group), "{group}");
    }
    for call in CALLS {
        for words in 1..=call.args.len().min(2) {
            missing.remove(&format!("fleetbox-{}.1", call.args[..words].join("-")));
        }
        let mut formats = vec![call.args.to_vec()];
        if call.json {
            formats.push([&["--json"], call.args].concat());
        }
        for args in formats {
            check(&world, call, &args);
        }
        // It must not be the VM that answers next.
        if call.args.contains(&"NEW") {
            let _ = world.command(&["rm", "--force", "NEW"]).output();
        }
    }
    assert!(missing.is_empty(), "add calls of {missing:?}");
}

fn check(world: &World, call: &Call, args: &[&str]) {
    let what = args.join(" ");
    let passes_status = ["ssh", "exec", "run"].contains(&call.args[0]);
    let failure = if passes_status { 255 } else { 1 };

    world.ready(call);
    let mut command = world.command(args);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let (status, errors) = ended(command, &format!("{what} > /dev/full"));
    assert_eq!(status.code(), Some(failure), "{what} > /dev/full: {errors}");
    let told = "fleetbox: cannot write to standard output: No space left on device";
    assert!(errors.contains(told), "{what} > /dev/full: {errors}");

    world.ready(call);
    let mut command = world.command(args);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let (status, errors) = ended(command, &format!("{what} | true"));
    assert_eq!(status.code(), Some(PIPE), "{what} | true: {errors}");
    assert!(
        !errors.contains("standard output"),
        "{what} | true: {errors}"
    );

    // JSON is written as other text is.
    if args[0] == "--json" {
        return;
    }
    world.ready(call);
    let (status, read) = slowly(world.command(args), call.endless);
    assert!(!read.is_empty(), "{what} printed nothing");
    if args.contains(&"300000") || what.contains("seq 1 300000") {
        assert!(
            read.ends_with(b"\n300000\n"),
            "{what}: {} bytes",
            read.len()
        );
    }
    let expected = match () {
        () if call.endless => None,
        () if what.contains("exit 3") => Some(3),
        // It depends on this host.
        () if call.args[0] == "doctor" => status,
        () => Some(0),
    };
    assert_eq!(status, expected, "{what} | slow reader");
}

#[test]
fn a_command_whose_reader_is_gone_is_stopped_in_the_guest_too() {
    let world = World::new("stop");
    // One that ignores the signal ends when its pipe is closed.
    for command in ["exec yes", "trap '' HUP; yes"] {
        let pid = world.in_guest("pid");
        let script = format!("echo $$ > pid; {command}");
        let mut command = world.command(&["ssh", "VM", "--", &script]);
        let (mut reader, writer) = io::pipe().unwrap();
        command.stdout(writer);
        let watching = std::thread::spawn(move || {
            let mut line = [0; 2];
            reader.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"y\n");
        });
        let (status, errors) = ended(command, &script);
        watching.join().unwrap();
        assert_eq!(
            (status.code(), errors.as_str()),
            (Some(PIPE), ""),
            "{script}"
        );
        let pid = fs::read_to_string(pid).unwrap();
        eventually("the command in the guest ends", || {
            // Until its parent waits for it, it is still listed.
            let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        });
    }
}

#[test]
fn a_command_that_writes_nothing_more_runs_to_its_end() {
    let world = World::new("rest");
    let script = "echo started; sleep 1; touch finished";
    let mut command = world.command(&["ssh", "VM", "--", script]);
    let (mut reader, writer) = io::pipe().unwrap();
    command.stdout(writer);
    std::thread::spawn(move || reader.read(&mut [0; 1]).unwrap());
    let (status, _) = ended(command, script);
    assert_eq!(status.code(), Some(0));
    assert!(world.in_guest("finished").exists());
}

#[test]
fn what_the_guest_writes_to_standard_error_is_not_lost_either() {
    let world = World::new("err");
    let mut command = world.command(&["ssh", "VM", "--", "seq 1 300000 >&2"]);
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
    let status = command.stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(255));
}

#[test]
fn a_change_of_vms_is_completed_without_a_reader() {
    let world = World::new("all");
    let mut command = world.command(&["rm", "--force", "IDLE", "VM"]);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let (status, errors) = ended(command, "rm");
    assert_eq!((status.code(), errors.as_str()), (Some(PIPE), ""));
    let left = succeeded(world.command(&["ls", "--json"]).output().unwrap());
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "[]");
}

/// What is written past the one writer would be lost without notice.
#[test]
fn only_one_module_writes_to_standard_output() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for entry in fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.ends_with("stdout.rs") {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        for way in [" println!", " print!", "io::stdout()"] {
            assert!(!text.contains(way), "{way} in {}", path.display());
        }
    }
    assert!(seen > 20, "{seen} modules");
}
