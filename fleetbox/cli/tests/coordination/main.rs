//! Programs that use the same VMs at the same time, and what is left when one of them is killed: the command line with
//! a script in place of the VMM. What the library leaves when its owner is killed is tested beside it.
//!
//! Library and program are built with `--cfg fleetbox_fake` for it, which `cargo xtask test unit` does.

#[cfg(fleetbox_fake)]
mod cases;
#[cfg(fleetbox_fake)]
mod guest;
#[cfg(fleetbox_fake)]
mod host;
#[cfg(fleetbox_fake)]
mod openssh;
#[cfg(fleetbox_fake)]
mod outputs;
#[cfg(fleetbox_fake)]
mod races;
#[cfg(fleetbox_fake)]
mod stress;

/// Where the compiler is wrapped to give the flag, as that command does, the cases must be there.
#[cfg(not(fleetbox_fake))]
#[test]
fn without_the_flag_there_are_no_cases() {
    assert_eq!(option_env!("RUSTC_WORKSPACE_WRAPPER"), None);
}
