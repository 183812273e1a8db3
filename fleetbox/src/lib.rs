//! Real Linux VMs as Rust test fixtures.
//!
//! ```no_run
//! # async fn example() -> fleetbox::Result<()> {
//! use fleetbox::{Size, Vm};
//!
//! let vm = Vm::test().image("debian-12").memory(Size::gib(1)).start().await?;
//! let out = vm.ssh("uname -a").await?;
//! assert!(out.status.success());
//! println!("{}", out.stdout_text());
//! # Ok(())
//! # } // dropped here: the VM is destroyed
//! ```
//!
//! A [`Cluster`] is several of them in one network.
//!
//! A VM made by [`Vm::test`] lives as long as its handle; one made by [`Vm::builder`] has a name
//! and a disk that stays. [`blocking`] has the same for a plain `#[test]`.
//!
//! The processes that run a VM are this very program, started again: a constructor that runs
//! before `main` makes them of it, so there is nothing to install. A program
//! that links this crate as a dynamic library which it loads at run time cannot use it.

pub mod blocking;
mod bridge;
pub mod budget;
mod builder;
mod cluster;
mod configure;
mod error;
mod event;
mod extra_disk;
pub mod files;
pub mod fixture;
pub mod guest;
pub mod images;
mod launch;
mod lifecycle;
mod links;
pub mod logs;
pub mod names;
pub mod preflight;
mod process;
pub mod proxy;
mod ready;
mod resize;
mod resources;
pub mod seed;
pub mod size;
pub mod ssh;
pub mod ssh_config;
pub mod store;
mod stream;
pub mod testing;
mod timing;
mod vm;
pub mod workspace;

pub use bridge::{BridgeError, InvalidNetwork, Network};
pub use builder::{DEFAULT_BOOT_TIMEOUT, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_MEMORY, VmBuilder};
pub use cluster::{Cluster, ClusterBuilder};
pub use error::{Error, Left, Result};
pub use event::{Event, Events, TimedEvent};
pub use extra_disk::{ExtraDisk, MAX_EXTRA_DISKS};
pub use fleetbox_macros::test;
pub use links::{LinkConditions, LinkEnd};
pub use preflight::nested_virt_supported;
pub use process::ProcessError;
pub use ready::Ready;
pub use resize::{Resize, resize};
pub use size::Size;
pub use ssh::{ExitStatus, Output};
pub use stream::Stream;
pub use timing::{Phase, Timings};
pub use vm::{
    Published, Resolution, STOP_DEADLINE, Stopped, Vm, VmInfo, VmState, find, list, prune,
    prune_only, remove, resolve, stop,
};

// The expansion of the attribute, which tests in here use too, names the crate.
#[cfg(test)]
extern crate self as fleetbox;

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod configure_test;
#[cfg(test)]
mod fake_home;
#[cfg(test)]
mod vm_test;
