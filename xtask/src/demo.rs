//! The first command of the README: gets an image, boots it on the best available KVM, and shows that it answers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cargo::cargo;
use crate::deps::{self, Need};
use crate::emulate::{Emulation, GuestFile};
use crate::error::{Context, Result};
use crate::image::{Format, Image};
use crate::kvm::Kvm;
use crate::run::Cmd;
use crate::{bail, target_dir};

/// Time limit for the download of the image, in seconds.
const DOWNLOAD_LIMIT: u64 = 1800;

/// Time limit for the guest's answer, in seconds. An emulated host needs minutes.
const BOOT_LIMIT: u64 = 900;

/// The script of the demo, once there is an image.
const SCRIPT: &str = "\
FLEETBOX up demo --image IMAGE --memory 1G --timeout LIMIT || exit 1\n\
echo '$ fleetbox ssh demo -- uname -a'\n\
FLEETBOX ssh demo -- uname -a\n\
status=$?\n\
FLEETBOX rm demo || exit 1\n\
exit $status\n";

/// Runs the demo, and prints how long each step took.
///
/// # Errors
/// The machine lacks something that cannot be installed automatically, or a step fails.
pub fn run() -> Result<()> {
    let start = Instant::now();
    let kvm = Kvm::here();
    eprintln!("  {kvm}");
    let emulated = !kvm.runs_stock_kernels();
    let mut steps = Steps::default();
    if emulated {
        eprintln!(
            "  it cannot run a distribution's kernel; the demo runs in an emulated host, which takes minutes"
        );
        steps.time("check and install programs", || {
            deps::ensure(&[Need::Emulator])
        })?;
    }
    steps.time("build fleetbox", || {
        cargo(&["build", "-p", "fleetbox-cli", "--locked"])
            .limit(2400)
            .passthrough()
    })?;
    let fleetbox = target_dir().join("debug/fleetbox");
    let image = steps.time("get the image debian-12", || image(&fleetbox))?;
    let home = tempfile::tempdir().context(|| "cannot create a state directory")?;
    steps.time("boot, SSH, remove", || {
        if emulated {
            emulate(&image)
        } else {
            let script = script(&fleetbox.display().to_string(), &image);
            Cmd::new("sh")
                .args(["-c", &script])
                .env("FLEETBOX_HOME", home.path())
                .limit(BOOT_LIMIT + 60)
                .passthrough()
        }
    })?;
    eprintln!("== what it took");
    for (step, took) in steps.0 {
        eprintln!("{:>8.1} s  {step}", took.as_secs_f64());
    }
    eprintln!("{:>8.1} s  in total", start.elapsed().as_secs_f64());
    Ok(())
}

#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = work()?;
        self.0.push((name, start.elapsed()));
        Ok(result)
    }
}

fn script(fleetbox: &str, image: &Path) -> String {
    SCRIPT
        .replace("FLEETBOX", &crate::run::shell_quote(fleetbox))
        .replace(
            "IMAGE",
            &crate::run::shell_quote(&image.display().to_string()),
        )
        .replace("LIMIT", &BOOT_LIMIT.to_string())
}

/// The image from the catalogue or, if its server cannot be reached, built from Debian's packages.
fn image(fleetbox: &Path) -> Result<PathBuf> {
    let pull = || {
        Cmd::new(fleetbox)
            .args(["images", "pull", "debian-12"])
            .limit(DOWNLOAD_LIMIT)
    };
    // The first shows its progress; the second finds the image and says where it is.
    match pull().passthrough().and_then(|()| pull().text()) {
        Ok(path) if !path.trim().is_empty() => Ok(path.trim().into()),
        Ok(_) => bail!("`fleetbox images pull` did not print the path of the image"),
        Err(error) => {
            eprintln!("  cannot get the catalogue's image: {error}");
            eprintln!("  building one from Debian's packages instead");
            Image::Debian12.build(Format::Raw)
        }
    }
}

fn emulate(image: &Path) -> Result<()> {
    let inside = Path::new("/images/debian-12.raw");
    let command: Vec<OsString> = ["sh", "-c", &script("fleetbox", inside)]
        .iter()
        .map(OsString::from)
        .collect();
    let mut emulation = Emulation::new(&command)?;
    if !emulation.files.iter().any(|f| f.guest == inside) {
        emulation.files.push(GuestFile {
            host: image.to_owned(),
            guest: inside.to_owned(),
        });
    }
    emulation.timeout = Duration::from_secs(BOOT_LIMIT + 120);
    emulation.succeed()
}
