//! Which VMs a command is about.

use fleetbox::names::{Name, Reference};
use fleetbox::{Error, Resolution, Result, VmInfo, VmState};

use crate::args::Which;
use crate::exit::FAILURE;
use crate::output::{Context, complain};

/// The VM with that name, or `CLUSTER/NAME`, as `ls` lists it.
pub(crate) async fn info(context: &Context, name: &Reference) -> Result<VmInfo> {
    context.fleet().info(name.as_str()).await
}

/// The unambiguous name of a listed VM.
pub(crate) fn reference(vm: &VmInfo) -> Result<Reference> {
    Ok(Reference::new(vm.cluster.parse()?, vm.name.parse()?))
}

/// The cluster of a VM. A VM that was created alone is the only member of a cluster with the same
/// name.
pub(crate) fn cluster_of(vm: &Reference) -> &Name {
    vm.cluster().unwrap_or(vm.name())
}

/// The VM with that name, or else all members of the cluster with that name.
async fn resolve(context: &Context, name: &Reference) -> Result<Vec<Reference>> {
    match context.fleet().resolve(name.as_str()).await? {
        Resolution::Vm(vm) => Ok(vec![vm.reference()]),
        Resolution::Cluster(members) => Ok(members.iter().map(|vm| vm.reference()).collect()),
        Resolution::Nothing => Err(Error::NoVm {
            name: name.name().clone(),
        }),
    }
}

/// The VMs with these names, each VM once. Unknown names are reported, and make the exit status a failure.
pub(crate) async fn all(context: &Context, names: &[Reference]) -> (Vec<Reference>, u8) {
    let mut status = 0;
    let mut all = Vec::new();
    for name in names {
        match resolve(context, name).await {
            Ok(found) => {
                for vm in found {
                    if !all.contains(&vm) {
                        all.push(vm);
                    }
                }
            }
            Err(error) => {
                complain(error);
                status = FAILURE;
            }
        }
    }
    (all, status)
}

/// The VMs with these names, or with `--all` all running VMs except those of running tests.
pub(crate) async fn which(context: &Context, which: &Which) -> Result<(Vec<Reference>, u8)> {
    if !which.all {
        return Ok(all(context, &which.names).await);
    }
    let mut names = Vec::new();
    let mut ephemeral = 0;
    for vm in context.fleet().list().await? {
        match vm.state {
            VmState::Running if vm.ephemeral => ephemeral += 1,
            VmState::Running => names.push(reference(&vm)?),
            _ => {}
        }
    }
    if ephemeral > 0 {
        context.note(format_args!(
            "skipped VMs of running tests and of `run --rm` ({ephemeral}); name them to include them"
        ));
    }
    Ok((names, 0))
}

/// The names for one line, or their number if there are too many.
pub(crate) fn summary(names: &[Reference]) -> String {
    match names.len() {
        0..=3 => enumerate(names),
        many => format!("{many} VMs"),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn enumerate(names: &[impl std::fmt::Display]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [firsts @ .., last] => {
            let firsts: Vec<_> = firsts.iter().map(ToString::to_string).collect();
            format!("{} and {last}", firsts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_enumerated_as_people_do() {
        let names = ["a", "b", "c"];
        assert_eq!(enumerate(&names[..1]), "a");
        assert_eq!(enumerate(&names[..2]), "a and b");
        assert_eq!(enumerate(&names), "a, b and c");
    }

    #[tokio::test]
    async fn each_vm_is_selected_once_and_unknown_names_fail() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            home: Some(dir.path().to_owned()),
            quiet: true,
            json: false,
        };
        for vm in ["node-1", "node-2"] {
            let path = dir.path().join("clusters/node").join(vm);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("vm.json"), "{}").unwrap();
        }
        let names = ["node", "node-2", "none"].map(|name| name.parse().unwrap());
        let (all, status) = all(&context, &names).await;
        let all: Vec<_> = all.iter().map(Reference::as_str).collect();
        assert_eq!(
            (&all[..], status),
            (&["node/node-1", "node/node-2"][..], FAILURE)
        );
    }
}
