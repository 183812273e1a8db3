//! A machine that is only a script: tests of the life cycle need no KVM.

use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Running;

/// What the fake machine does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Script {
    /// Prints, runs until the power button is pressed, and powers off.
    Run { console: String },
    /// As [`Script::Run`], but deaf to the power button.
    Deaf,
    /// Cannot be started.
    Refuse { error: String },
    /// Prints and ends with an error.
    Fail { console: String, error: String },
    /// Prints and takes its process down.
    Abort { console: String },
}

pub(super) fn start(script: Script, mut console: Box<dyn Write + Send>) -> Result<Running, String> {
    let (press, pressed) = mpsc::channel();
    let power_button: Box<dyn Fn() + Send> = Box::new(move || {
        let _ = press.send(());
    });
    let mut print = move |text: &str| {
        let _ = console.write_all(text.as_bytes());
    };
    let wait: Box<dyn FnOnce() -> Result<(), String>> = match script {
        Script::Refuse { error } => return Err(error),
        Script::Run { console } => Box::new(move || {
            print(&console);
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
    Ok(Running { power_button, wait })
}
