//! A machine that is only a script, so that tests of the life cycle need no KVM.
//!
//! `RUSTFLAGS="--cfg fleetbox_fake"` builds it into programs, the command line among them. It is a `cfg` because a
//! feature could be switched on by any package of a build. Such a program reads three environment
//! variables: `FLEETBOX_FAKE`, a script as JSON that all VMs of the process run; `FLEETBOX_FAKE_PROTOCOL`, another
//! version of the protocol between clients and workers; and `FLEETBOX_FAKE_GUEST`, the socket of a server that stands
//! for every TCP port of every guest. It tests coordination and output only: no guest runs.

use crate::util::sync::lock;
use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use fleetbox_vmm::machine::Event;
use serde::{Deserialize, Serialize};

use super::machine::{Controls, OnEvent, Running};

/// What the fake machine does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Script {
    /// Prints, echoes what is typed, runs until the power button is pressed, and powers off.
    Run { console: String },
    /// As [`Script::Run`], but ignores the power button.
    Deaf,
    /// As [`Script::Run`], on a host that fails to store what the guest writes.
    Full { console: String, error: String },
    /// Cannot be started.
    Refuse { error: String },
    /// Prints and ends with an error.
    Fail { console: String, error: String },
    /// Prints and crashes its process.
    Abort { console: String },
}

/// The script in the environment.
#[cfg(fleetbox_fake)]
pub(super) fn from_env() -> Option<Script> {
    let text = std::env::var("FLEETBOX_FAKE").ok()?;
    match serde_json::from_str(&text) {
        Ok(script) => Some(script),
        Err(error) => Some(Script::Refuse {
            error: format!("FLEETBOX_FAKE is not a valid script: {error}"),
        }),
    }
}

/// The protocol version in the environment.
#[cfg(fleetbox_fake)]
pub(super) fn protocol_from_env() -> Option<u32> {
    std::env::var("FLEETBOX_FAKE_PROTOCOL").ok()?.parse().ok()
}

/// The socket in the environment.
#[cfg(fleetbox_fake)]
pub(super) fn guest_from_env() -> Option<std::path::PathBuf> {
    std::env::var_os("FLEETBOX_FAKE_GUEST").map(Into::into)
}

pub(super) fn start(
    script: Script,
    console: Box<dyn Write + Send>,
    on_event: &OnEvent,
) -> Result<Running, String> {
    let (press, pressed) = mpsc::channel();
    let power_button: Box<dyn Fn() + Send> = Box::new(move || {
        let _ = press.send(());
    });
    let console = Arc::new(Mutex::new(console));
    let echo = Arc::clone(&console);
    let write = |console: &Mutex<Box<dyn Write + Send>>, bytes: &[u8]| {
        let mut console = lock(console);
        let _ = console.write_all(bytes);
    };
    let print = move |text: &str| write(&console, text.as_bytes());
    // Before what lets the starter go on, which may look for it.
    if let Script::Run { console } | Script::Full { console, .. } = &script {
        print(console);
    }
    on_event(Event::Running { boot: 0 });
    if let Script::Full { error, .. } = &script {
        on_event(Event::DeviceError {
            device: "disk".to_owned(),
            error: error.clone(),
        });
    }
    let wait: Box<dyn FnOnce() -> Result<(), String>> = match script {
        Script::Refuse { error } => return Err(error),
        Script::Run { .. } | Script::Full { .. } => Box::new(move || {
            let _ = pressed.recv();
            print("Power down.\n");
            Ok(())
        }),
        Script::Deaf => Box::new(move || {
            loop {
                let _ = pressed.recv();
                std::thread::sleep(Duration::from_millis(10));
            }
        }),
        Script::Fail { console, error } => Box::new(move || {
            print(&console);
            Err(error)
        }),
        Script::Abort { console } => Box::new(move || {
            print(&console);
            std::thread::sleep(Duration::from_millis(200));
            std::process::abort()
        }),
    };
    Ok(Running {
        controls: Controls {
            power_button,
            type_in: Box::new(move |bytes| write(&echo, bytes)),
        },
        wait,
    })
}
