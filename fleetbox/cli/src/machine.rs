//! From the options of a new VM to its builder, for `up` and `run`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetbox::names::{Name, Reference};
use fleetbox::seed::SeedError;
use fleetbox::{Error, ProcessError, Resolution, Result, Vm, VmBuilder};

use crate::args::Machine;
use crate::output::{Context, complain};
use crate::values;

/// How many random names are tried.
const ATTEMPTS: usize = 100;

/// What is in the files that the options name. They are read once: a pipe cannot be read again.
pub(crate) struct UserData {
    /// Documents for cloud-init.
    documents: Vec<String>,
    keys: Vec<String>,
    variables: Vec<(String, String)>,
}

impl UserData {
    fn read(machine: &Machine) -> Result<Self> {
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).map_err(|error| in_file(path, error));
        let documents: Result<_> = machine.user_data.iter().map(read).collect();
        let documents = documents?;
        let mut keys = Vec::new();
        for path in &machine.ssh_key {
            keys.extend(public_keys(path, &read(path)?)?);
        }
        let mut variables = Vec::new();
        for path in &machine.env_file {
            for (number, line) in lines(&read(path)?) {
                let variable = values::variable(line);
                variables.push(variable.map_err(|error| in_line(path, number, error))?);
            }
        }
        // What is on the command line wins.
        variables.extend(machine.env.iter().cloned());
        Ok(Self {
            documents,
            keys,
            variables,
        })
    }
}

/// The lines of a file that are neither empty nor comments, and their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(index, line)| (index + 1, line))
}

/// The keys of a file such as `id_ed25519.pub` or `authorized_keys`.
fn public_keys(path: &Path, text: &str) -> Result<Vec<String>> {
    if text.contains("PRIVATE KEY-----") {
        let why = "this is a private key, which stays here; give the public key beside it, \
                   which ends in .pub";
        return Err(in_file(path, why));
    }
    let keys: Vec<String> = lines(text)
        .map(|(number, line)| {
            let checked = Vm::builder("any").ssh_key(line).check();
            checked
                .map(|()| line.to_owned())
                .map_err(|error| in_line(path, number, error))
        })
        .collect::<Result<_>>()?;
    if keys.is_empty() {
        return Err(in_file(path, "there is no key in it"));
    }
    Ok(keys)
}

/// Checks what the command line's parser cannot check, before anything is created. Errors are usage errors. Returns
/// what it has read.
pub(crate) fn check(machine: &Machine) -> Result<UserData> {
    let read = UserData::read(machine)?;
    for (path, document) in machine.user_data.iter().zip(&read.documents) {
        let checked = with_user(Vm::builder("any"), machine)
            .user_data(document)
            .check();
        checked.map_err(|error| match error {
            Error::Seed(SeedError::UserData { why }) => user_data_error(path, why),
            error => user_data_error(path, error),
        })?;
    }
    let mut hosts = BTreeSet::new();
    if let Some((host, _)) = machine
        .publish
        .iter()
        .find(|(host, _)| !hosts.insert(*host))
    {
        return Err(unpublishable(*host, "given twice"));
    }
    configure(Vm::builder("any"), machine, &read).check()?;
    Ok(read)
}

/// What is wrong with a document, and which one it is.
fn user_data_error(path: &Path, why: impl Display) -> Error {
    let why = format!("{}: {why}", path.display());
    SeedError::UserData { why }.into()
}

/// What is wrong with a file that an option names.
fn in_file(path: &Path, why: impl Display) -> Error {
    Error::Io {
        action: "use a file",
        source: std::io::Error::other(format!("{}: {why}", path.display())),
    }
}

fn in_line(path: &Path, number: usize, why: impl Display) -> Error {
    in_file(path, format_args!("line {number}: {why}"))
}

/// Checks, before anything is created, that the host's ports are free.
pub(crate) fn check_ports(machine: &Machine) -> Result<()> {
    for (host, _) in &machine.publish {
        TcpListener::bind((Ipv4Addr::LOCALHOST, *host))
            .map_err(|error| unpublishable(*host, error))?;
    }
    Ok(())
}

fn unpublishable(host: u16, why: impl Display) -> Error {
    Error::Io {
        action: "publish a port",
        source: std::io::Error::other(format!(
            "port {host} of this host: {why}; choose another with --publish HOST:GUEST"
        )),
    }
}

/// Publishes the ports of a running VM.
pub(crate) async fn publish(context: &Context, vm: &Vm, machine: &Machine) -> Result<()> {
    for (host, guest) in &machine.publish {
        let address = vm.publish(*host, *guest).await?;
        context.note(format_args!(
            "{address} -> guest port {guest} of {}",
            vm.reference()
        ));
    }
    Ok(())
}

/// A builder of the VM with these options.
pub(crate) fn builder(
    context: &Context,
    name: impl AsRef<str>,
    machine: &Machine,
    user_data: &UserData,
) -> VmBuilder {
    let builder = configure(Vm::builder(name.as_ref()), machine, user_data);
    match context.home() {
        Some(home) => builder.home(home),
        None => builder,
    }
}

/// Sets the options that were given.
pub(crate) fn configure(
    mut builder: VmBuilder,
    machine: &Machine,
    user_data: &UserData,
) -> VmBuilder {
    builder = with_user(builder, machine);
    for document in &user_data.documents {
        builder = builder.user_data(document);
    }
    for key in &user_data.keys {
        builder = builder.ssh_key(key);
    }
    for (name, value) in &user_data.variables {
        builder = builder.env(name, value);
    }
    for package in &machine.package {
        builder = builder.package(package);
    }
    for command in &machine.commands {
        builder = builder.run_command(command);
    }
    for disk in &machine.extra_disk {
        builder = builder.extra_disk(disk.clone());
    }
    for ready in &machine.wait {
        builder = builder.wait_for(ready.clone());
    }
    builder = builder.boot_timeout(Duration::from_secs(machine.timeout));
    if let Some(image) = &machine.image {
        builder = builder.image(image);
    }
    if let Some(cpus) = machine.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = machine.memory {
        builder = builder.memory(memory);
    }
    if let Some(disk) = machine.disk {
        builder = builder.disk(disk);
    }
    if let Some(network) = machine.network {
        builder = builder.network(network);
    }
    for fixture in &machine.fixture {
        builder = builder.fixture(fixture.host(), fixture.guest());
    }
    builder
}

fn with_user(builder: VmBuilder, machine: &Machine) -> VmBuilder {
    match &machine.user {
        Some(user) => builder.user(user),
        None => builder,
    }
}

/// A random name that no VM and no cluster has.
pub(crate) async fn free_name(context: &Context) -> Result<Name> {
    for _ in 0..ATTEMPTS {
        let name = Name::random();
        match context.fleet().resolve(name.as_str()).await {
            Ok(Resolution::Nothing) => return Ok(name),
            Ok(_) | Err(Error::Ambiguous { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Io {
        action: "find a free name; choose one yourself",
        source: std::io::ErrorKind::AlreadyExists.into(),
    })
}

/// Reports a failed start. If the machine failed, its VM may still exist, and the error is followed by what to do
/// with it. Other errors say that themselves.
pub(crate) async fn failed(
    context: &Context,
    name: &Reference,
    error: Error,
    status: u8,
) -> Result<u8> {
    let machine = matches!(
        error,
        Error::Process(ProcessError::Failed(_) | ProcessError::NotStarted(_))
    );
    if !machine || context.fleet().find(name.as_str()).await.is_err() {
        return Err(error);
    }
    complain(error);
    complain(format_args!(
        "{name} and its disk are kept: `fleetbox logs {name}` prints its console, `fleetbox up {name}` \
         starts it again, `fleetbox rm {name}` deletes it"
    ));
    Ok(status)
}
