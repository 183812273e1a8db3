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

/// How many random names are tried.
const ATTEMPTS: usize = 100;

/// The documents for cloud-init. They are read once: a pipe cannot be read again.
pub(crate) struct UserData(Vec<String>);

impl UserData {
    fn read(machine: &Machine) -> Result<Self> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| in_file(path, error.to_string()))
        };
        let documents: Result<_> = machine.user_data.iter().map(read).collect();
        documents.map(Self)
    }
}

/// Checks what the command line's parser cannot check, before anything is created. Errors are usage errors. Returns
/// the documents that it has read.
pub(crate) fn check(machine: &Machine) -> Result<UserData> {
    let documents = UserData::read(machine)?;
    for (path, document) in machine.user_data.iter().zip(&documents.0) {
        let checked = Vm::builder("any").user_data(document).check();
        checked.map_err(|error| match error {
            Error::Seed(SeedError::UserData { why }) => in_file(path, why),
            error => in_file(path, error),
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
    configure(Vm::builder("any"), machine, &documents).check()?;
    Ok(documents)
}

/// What is wrong with a document, and which one it is.
fn in_file(path: &Path, why: impl Display) -> Error {
    let why = format!("{}: {why}", path.display());
    SeedError::UserData { why }.into()
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
    for document in &user_data.0 {
        builder = builder.user_data(document);
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
    let machine = matches!(error, Error::Process(ProcessError::Failed(_)));
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
