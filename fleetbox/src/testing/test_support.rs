//! State directories for tests with a fake machine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::model::names::Name;
use crate::model::size::Size;
use crate::process::Backend;
use crate::process::Role;
use crate::process::fake::Script;
use crate::store::Store;
use crate::vm::attach;
use crate::vm::builder::VmBuilder;
use crate::vm::cluster::ClusterBuilder;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A temporary state directory with an image.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.raw"), vec![7; 1 << 20]).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Describes a VM in this home whose machine follows `script`.
    pub(crate) fn scripted(&self, mut builder: VmBuilder, script: Script) -> VmBuilder {
        builder.backend = Backend::Fake(script);
        let image = self.dir.path().join("disk.raw");
        builder
            .home(self.path())
            .image(image.to_str().unwrap())
            .disk(Size::mib(8))
    }

    /// Starts a VM in this home.
    pub(crate) fn vm(&self, builder: VmBuilder) -> VmBuilder {
        self.scripted(builder, runs())
    }

    /// Starts a cluster in this home.
    pub(crate) fn cluster(&self, builder: ClusterBuilder) -> ClusterBuilder {
        builder.each(|vm| self.vm(vm))
    }

    /// Like [`assert_served`], for a cluster of this home.
    pub(crate) async fn assert_served(&self, cluster: &str) {
        assert_served(&self.path(), cluster).await;
    }

    /// Number of clusters.
    pub(crate) fn clusters(&self) -> usize {
        std::fs::read_dir(self.path().join("clusters"))
            .unwrap()
            .count()
    }
}

/// A machine that boots to a login prompt and obeys its power button.
pub(crate) fn runs() -> Script {
    Script::Run {
        console: "login: ".to_owned(),
    }
}

/// A machine that cannot be started.
pub(crate) fn refuses() -> Script {
    Script::Refuse {
        error: "no such kernel".to_owned(),
    }
}

/// The processes with this role for the VM or cluster `name`, which no other test may use.
pub(crate) fn processes(role: Role, name: &str) -> Vec<Pid> {
    let wanted = format!("fleetbox-{}: {name}\0", role.name());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(wanted.as_bytes()))
    })
    .map(Pid::from_raw)
    .collect()
}

/// Prints that the calling test is skipped, and why. If `FLEETBOX_REQUIRE` is set, the test fails instead.
#[track_caller]
pub(crate) fn skip(why: impl std::fmt::Display) {
    let variable = crate::testing::REQUIRE_VARIABLE;
    assert!(
        !crate::testing::is_required(),
        "{variable} is set, and this test cannot run: {why}"
    );
    eprintln!("skipped: {why}");
}

/// Checks that the worker of a cluster stays although a handle was dropped. A worker that ends with the handle would
/// refuse the request made here.
pub(crate) async fn assert_served(home: &Path, cluster: &str) {
    let store = Store::open(home).unwrap();
    let client = attach::client(&store.cluster(&Name::new(cluster).unwrap()));
    let deadline = Instant::now() + PATIENCE;
    // A worker that was just detached may refuse requests for a moment.
    while let Err(error) = client.list().await {
        assert!(Instant::now() < deadline, "the worker ends: {error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the condition holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
