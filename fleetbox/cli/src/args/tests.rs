use super::*;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("fleetbox").chain(args.iter().copied()))
}

#[test]
fn the_arguments_are_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}

#[test]
fn what_is_wrong_is_refused_by_the_parser() {
    for wrong in [
        &["up", "Web"][..],
        &["up", "MyBox"],
        &["up", "my box"],
        &["up", "box.vm"],
        &["up", "-box"],
        &["up", "web", "--cpus", "0"],
        &["up", "web", "--publish", "80"],
        &["up", "web", "--publish", "0:80"],
        &["up", "web", "--publish", "80:99999"],
        &["up", "web", "--publish", "80:80", "-n", "2"],
        &["up", "web", "--no-start", "-n", "2"],
        &["up", "web", "--no-start", "--publish", "80:80"],
        &["up", "web", "--no-start", "--wait", "cloud-init"],
        &["up", "web", "--no-start", "--timeout", "300"],
        &["up", "web", "--wait", "port:0"],
        &["up", "web", "--wait", "lunch"],
        &["up", "web", "--wait", "console:"],
        &["up", "web", "-n", "0"],
        &["up", "web", "-n", "1000"],
        &["cp", "x"],
        &["cp", "Web:x", "y"],
        &["up", "web", "--cpus", "many"],
        &["up", "web", "--memory", "2"],
        &["up", "web", "--memory", "1M"],
        &["up", "web", "--disk", "1.5G"],
        &["up", "web", "--image", "no such"],
        &["up", "web", "--timeout", "0"],
        &["up", "web", "--fixture", "data"],
        &["up", "web", "--fixture", "data:work"],
        &["up", "web", "--fixture", "data:/etc"],
        &["dial", "web", "0"],
        &["dial", "web", "65536"],
        &["down"],
        &["down", "web", "--all"],
        &["restart"],
        &["kill"],
        &["kill", "web", "--signal", "HUP"],
        &["kill", "web", "--signal", "SIGSTOP"],
        &["kill", "web", "--signal", "1"],
        &["kill", "web", "--signal", "09"],
        &["kill", "web", "--signal", ""],
        &["set", "web"],
        &["set", "web", "--cpus", "0"],
        &["set", "web", "--memory", "1"],
        &["rm"],
        &["exec", "web"],
        &["exec", "web", "ls"],
        &["ssh", "../x"],
        &["ssh-config", "--install", "--uninstall"],
        &["images", "rm"],
        &["run", "-d", "--rm"],
        &["run", "-d", "--", "true"],
        &["run", "--name", "My", "--", "true"],
        &["run", "--dry-run"],
        &["run", "--include-untracked"],
        &["run", ".", "--full-copy", "--include-untracked"],
        &["run", ".", "--full-copy", "--branch", "x"],
        &["run", ".", "--from", "HEAD"],
        &["run", "a", "b"],
        &["pull-diff"],
        &["ship", "web"],
        &["ship", "web", ".", "--from", "HEAD"],
        &["ship", "web", ".", "--full-copy", "--include-untracked"],
        &["exec", "web", "--dir", "", "--", "true"],
        &["images", "rm", "x", "--all"],
        &["completions", "no-shell"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_default_is_no_option_that_was_given() {
    let cli = parse(&["up", "web", "--no-start"]).unwrap();
    let Command::Up(up) = cli.command else {
        panic!("{cli:?}")
    };
    assert!(up.no_start);
}

#[test]
fn a_command_is_what_follows_the_dashes() {
    let cli = parse(&["ssh", "web", "--", "ls", "-l"]).unwrap();
    let Command::Ssh(ssh) = cli.command else {
        panic!("{cli:?}")
    };
    assert_eq!(ssh.command, ["ls", "-l"]);
    assert!(!ssh.tty);
}

#[test]
fn flags_for_all_commands_stand_anywhere() {
    for args in [&["--json", "ls"][..], &["ls", "--json"], &["ps", "--json"]] {
        let cli = parse(args).unwrap();
        assert!(cli.json && matches!(cli.command, Command::Ls));
    }
    let cli = parse(&["images", "ls", "-q"]).unwrap();
    assert!(cli.quiet);
}

#[test]
fn what_is_waited_for_and_published_is_read() {
    let cli = parse(&[
        "up",
        "web",
        "--publish",
        "8080:80",
        "--wait",
        "cloud-init",
        "--wait",
        "port:80",
        "--wait",
        "console:login: $",
        "--wait",
        "command:test -e /x",
    ])
    .unwrap();
    let Command::Up(up) = cli.command else {
        panic!("{cli:?}")
    };
    assert_eq!(up.machine.publish, [(8080, 80)]);
    assert_eq!(
        up.machine.wait,
        [
            Ready::CloudInit,
            Ready::Port(80),
            Ready::Console("login: $".to_owned()),
            Ready::Command("test -e /x".to_owned()),
        ]
    );
}

#[test]
fn signals_have_their_usual_names() {
    for (text, signal) in [
        ("KILL", Signal::Kill),
        ("kill", Signal::Kill),
        ("SIGKILL", Signal::Kill),
        ("9", Signal::Kill),
        ("term", Signal::PowerButton),
        ("15", Signal::PowerButton),
        ("sigint", Signal::PowerButton),
        ("2", Signal::PowerButton),
        ("SIGPWR", Signal::PowerButton),
        ("30", Signal::PowerButton),
    ] {
        let cli = parse(&["kill", "web", "--signal", text]).unwrap();
        let Command::Kill(kill) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(kill.signal, signal, "{text}");
    }
    let error = parse(&["kill", "web", "--signal", "HUP"]).unwrap_err();
    assert!(
        error.to_string().contains("not a signal for a VM"),
        "{error}"
    );
}
