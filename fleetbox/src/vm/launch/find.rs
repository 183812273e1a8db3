//! Finding the members of a start: those that exist, and those to create.

use super::Launch;
use crate::disk::fixture;
use crate::error::{Error, Result};
use crate::images::{Image, ImageRef, Images};
use crate::model::lifetime::Lifetime;
use crate::model::names::Name;
use crate::store::{Lock, Store, StoreError, VmDir, ephemeral};
use crate::util::task::blocking;
use crate::vm::builder::{Plan, VmBuilder};

/// A member that exists or will be created.
pub(super) struct Member {
    pub(super) builder: VmBuilder,
    pub(super) plan: Plan,
    /// The VM that was found at the beginning. The start is about this one: if it is removed meanwhile, that is an
    /// error, and not a reason to create another one.
    pub(super) found: Option<VmDir>,
    /// Its image, if it was not found.
    pub(super) image: Option<Image>,
}

impl Launch {
    /// Plans what to start, with all checks that do not need the state directory.
    pub(super) fn plan(&self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for builder in &self.members {
            members.push(Member {
                plan: builder.plan()?,
                builder: builder.clone(),
                found: None,
                image: None,
            });
        }
        Ok(members)
    }

    /// Refuses members that must not exist yet. This comes before the check of whether this host
    /// can run them. [`super::members::make`] refuses a member that is created later.
    pub(super) async fn refuse_existing(&self, members: &[Member]) -> Result<()> {
        // A search must not create the state directory.
        if !self.fleet.home()?.is_dir() || !members.iter().any(|member| member.builder.create_new) {
            return Ok(());
        }
        let store = self.fleet.store().await?;
        let cluster = store.cluster(&self.cluster);
        for Member { plan, .. } in members.iter().filter(|member| member.builder.create_new) {
            let mut found: Vec<_> = cluster.vm(&plan.name).into_iter().collect();
            if self.anywhere {
                found.extend(others(&store, &plan.name)?);
            }
            if let Some(vm) = found.first() {
                return Err(exists(vm));
            }
        }
        Ok(())
    }

    /// Finds the members that exist, and the cluster that the start is about, with a shared lock on it if it exists.
    /// The lock keeps its members from being pruned while the start waits for an image or for memory. So it is taken
    /// before anything is looked up, and kept until the handles have locks of their own.
    ///
    /// # Errors
    /// [`Error::Differs`] if a member exists with other options than those given.
    pub(super) async fn locate(
        &self,
        store: &Store,
        members: &mut [Member],
    ) -> Result<(Name, Option<Lock>)> {
        loop {
            let cluster = self.resolve_cluster(store, members)?;
            let dir = store.cluster(&cluster);
            let share = blocking(move || dir.share_if_there()).await?;
            // Otherwise it was removed or created in the meantime.
            if self.resolve_cluster(store, members)? == cluster {
                let dir = store.cluster(&cluster);
                for member in members.iter_mut() {
                    member.found = dir.vm(&member.plan.name);
                    if let Some(found) = &member.found {
                        member.builder.agree(&member.plan, found)?;
                    }
                }
                return Ok((cluster, share));
            }
        }
    }

    /// The given cluster, or else the one that has the member.
    fn resolve_cluster(&self, store: &Store, members: &[Member]) -> Result<Name> {
        let elsewhere = existing_elsewhere(store, &self.cluster, members, self.lifetime)?;
        match elsewhere.as_slice() {
            [] => Ok(self.cluster.clone()),
            [vm] if self.anywhere => Ok(vm.cluster().clone()),
            [vm, _, ..] if self.anywhere => Err(Error::Ambiguous {
                name: vm.name().clone(),
                clusters: elsewhere.iter().map(|vm| vm.cluster().clone()).collect(),
            }),
            [vm, ..] => Err(Error::NameTaken {
                name: vm.name().clone(),
                cluster: vm.cluster().clone(),
            }),
        }
    }
}

/// VMs in other clusters that have the name of a member that does not exist. A name may belong to one VM only. VMs
/// that are deleted with their owners do not count, since only their owners use them.
pub(super) fn existing_elsewhere(
    store: &Store,
    cluster: &Name,
    members: &[Member],
    lifetime: Lifetime,
) -> Result<Vec<VmDir>> {
    if lifetime == Lifetime::Ephemeral {
        return Ok(Vec::new());
    }
    for member in members {
        let name = &member.plan.name;
        if store.cluster(cluster).vm(name).is_none() {
            let found = others(store, name)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(Vec::new())
}

/// The VMs with that name in all clusters, except those that are deleted with their owners.
fn others(store: &Store, name: &Name) -> Result<Vec<VmDir>> {
    let mut found = store.find(name)?;
    found.retain(|vm| !ephemeral::is_ephemeral(vm));
    Ok(found)
}

pub(super) fn exists(vm: &VmDir) -> Error {
    let (cluster, name) = (vm.cluster().clone(), vm.name().clone());
    StoreError::Exists { cluster, name }.into()
}

/// Downloads the images of the members that do not exist, each once.
pub(super) async fn images(store: &Store, members: &mut [Member]) -> Result<()> {
    let images = Images::new(store)?;
    let mut known: Vec<(ImageRef, Image)> = Vec::new();
    for member in members {
        if member.found.is_some() {
            continue;
        }
        // Check the fixtures before anything is downloaded. They are copied when the machine is
        // started.
        let fixtures = member.plan.fixtures.clone();
        blocking(move || fixture::probe(&fixtures)).await?;
        let wanted = &member.plan.image;
        if let Some((_, image)) = known.iter().find(|(known, _)| known == wanted) {
            member.image = Some(image.clone());
            continue;
        }
        let resolved = images.resolve(wanted)?;
        let image = images
            .pull(&resolved, member.builder.progress.as_ref())
            .await?;
        known.push((wanted.clone(), image.clone()));
        member.image = Some(image);
    }
    Ok(())
}
