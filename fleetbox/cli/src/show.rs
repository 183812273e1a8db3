//! `show`.

use std::path::PathBuf;

use fleetbox::fixture::Fixture;
use fleetbox::names::Reference;
use fleetbox::store::now;
use fleetbox::workspace::Workspace;
use fleetbox::{ExtraDisk, PublishedPort, Result, VmInfo, VmState};
use serde::Serialize;

use crate::output::Context;
use crate::{disk, select, stdout, table};

/// Width of the labels.
const LABEL: usize = 14;

/// Everything that is known about a VM: what `ls` shows, and more.
#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    info: VmInfo,
    image_file: PathBuf,
    image_sha256: Option<String>,
    mac: String,
    user: String,
    host_key: String,
    directory: PathBuf,
    console_log: PathBuf,
    /// Bytes that the VM's disk takes on this host.
    disk_used: u64,
    fixtures: Vec<Fixture>,
    extra_disks: Vec<ExtraDisk>,
    /// `None` if the VM runs, but its worker does not answer.
    published: Option<Vec<PublishedPort>>,
    workspace: Option<Tree>,
}

/// The work tree that a VM has.
#[derive(Debug, Serialize)]
struct Tree {
    /// Its top directory on this host.
    host: PathBuf,
    /// The directory in the guest, relative to the user's home.
    guest: String,
    /// The commit that changes are compared with.
    commit: Option<String>,
    /// The branch that was requested.
    branch: Option<String>,
}

impl From<Workspace> for Tree {
    fn from(workspace: Workspace) -> Self {
        Self {
            host: workspace.host,
            guest: workspace.directory,
            commit: workspace.commit,
            branch: workspace.options.branch,
        }
    }
}

pub(crate) async fn run(context: &Context, name: &Reference) -> Result<u8> {
    let vm = context.fleet().find(name.as_str()).await?;
    let name = vm.reference();
    let info = select::info(context, &name).await?;
    let record = vm.record()?;
    let paths = vm.paths();
    let (published, unknown) = match published(context, &name, info.state).await {
        Ok(published) => (Some(published), None),
        Err(error) => (None, Some(error)),
    };
    let workspace = Workspace::of(&context.fleet(), name.as_str()).await?;
    let details = Details {
        info,
        image_file: record.image.path,
        image_sha256: record.image.sha256,
        mac: record.mac.to_string(),
        user: record.ssh_user,
        host_key: record.host_key,
        directory: paths.dir().to_owned(),
        console_log: paths.console_log(),
        disk_used: disk::allocated(&paths.disk_layer()),
        fixtures: record.fixtures,
        extra_disks: record.extra_disks,
        published,
        workspace: workspace.map(Tree::from),
    };
    if context.json {
        context.say_json(&details)?;
    } else {
        let text = details.text();
        match stdout::width() {
            Some(width) => context.say(table::wrap(&text, width, LABEL)),
            None => context.say(text),
        }
    }
    if let Some(error) = unknown {
        context.note(format_args!("cannot list its published ports: {error}"));
    }
    Ok(0)
}

/// The published ports of a VM, which has none while it does not run.
async fn published(
    context: &Context,
    name: &Reference,
    state: VmState,
) -> Result<Vec<PublishedPort>> {
    if state != VmState::Running {
        return Ok(Vec::new());
    }
    let vm = context.fleet().open(name.as_str()).await?;
    vm.published().await
}

impl Details {
    /// For people: a line for each thing that the VM has.
    fn text(&self) -> String {
        let info = &self.info;
        let age = table::age(now().saturating_sub(info.created));
        let used = table::size(self.disk_used);
        let mut text = Text::default();
        text.line("name", &info.name);
        text.line("cluster", &info.cluster);
        text.line("state", info.state);
        text.line("failure", info.failure.as_deref().unwrap_or_default());
        text.line(
            "device error",
            info.device_error.as_deref().unwrap_or_default(),
        );
        text.line("image", &info.image);
        text.line("cpus", info.cpus);
        text.line("memory", info.memory);
        text.line(
            "disk",
            format_args!("{} ({used} used on this host)", info.disk),
        );
        text.lines("extra disk", &self.extra_disks);
        text.lines("fixture", &self.fixtures);
        text.line("ip", info.ip);
        text.line("network", info.network);
        text.lines("published", self.published.iter().flatten());
        text.line("mac", &self.mac);
        text.line("user", &self.user);
        text.line("host key", &self.host_key);
        if let Some(tree) = &self.workspace {
            text.line("workspace", tree);
        }
        text.line("created", format_args!("{age} ago"));
        text.line("directory", self.directory.display());
        text.line("console", self.console_log.display());
        text.line("image file", self.image_file.display());
        text.line(
            "image sha256",
            self.image_sha256.as_deref().unwrap_or_default(),
        );
        text.0
    }
}

impl std::fmt::Display for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} as ~/{}", self.host.display(), self.guest)?;
        match &self.commit {
            Some(commit) => write!(f, ", commit {}", commit.get(..12).unwrap_or(commit))?,
            None => f.write_str(", no commit")?,
        }
        match &self.branch {
            Some(branch) => write!(f, ", branch {branch}"),
            None => Ok(()),
        }
    }
}

/// Names and values beneath each other.
#[derive(Default)]
struct Text(String);

impl Text {
    /// A value, unless it is empty. Its further lines are indented.
    fn line(&mut self, what: &str, value: impl std::fmt::Display) {
        let mut what = what;
        for line in value.to_string().lines() {
            if !self.0.is_empty() {
                self.0.push('\n');
            }
            self.0.push_str(format!("{what:LABEL$}{line}").trim_end());
            what = "";
        }
    }

    fn lines(&mut self, what: &str, values: impl IntoIterator<Item = impl std::fmt::Display>) {
        for value in values {
            self.line(what, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_beneath_each_other_and_empty_ones_are_left_out() {
        let mut text = Text::default();
        text.line("state", "failed");
        text.line("image sha256", "");
        text.line("failure", "it ended:\n\nlast line");
        text.lines("fixture", ["a", "b"]);
        assert_eq!(
            text.0,
            "state         failed\n\
             failure       it ended:\n\n              last line\n\
             fixture       a\n\
             fixture       b"
        );
    }

    #[test]
    fn a_tree_is_one_line() {
        let mut tree = Tree {
            host: "/src/x".into(),
            guest: "x".to_owned(),
            commit: Some("0123456789abcdef".to_owned()),
            branch: None,
        };
        assert_eq!(tree.to_string(), "/src/x as ~/x, commit 0123456789ab");
        tree.branch = Some("try".to_owned());
        tree.commit = None;
        assert_eq!(tree.to_string(), "/src/x as ~/x, no commit, branch try");
    }
}
