//! The queue of the host.
//!
//! A start draws a ticket: a file `NUMBER-RANDOM.waiting` that says what it needs and that its
//! process keeps locked. When it is granted, the file is renamed to `….granted` until the VMs run.
//! Each running VM has a file `….running`, held by its machine process. For VMs of the own state
//! directory, locks and records are used instead. A file that no process has locked was left by a
//! kill. The directory is locked, for moments, while it is read or changed.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::BudgetError;
use super::shared::{self, Entry, FileName, Guard, Kind, Seen};
use crate::model::names::Name;
use crate::model::size::Size;
use crate::store::Store;

/// Maximum number of VMs that a message names.
const NAMED: usize = 8;

/// A VM to start, and its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Want {
    cluster: Name,
    name: Name,
    memory: Size,
}

impl Want {
    pub(crate) fn new(cluster: Name, name: Name, memory: Size) -> Self {
        Self {
            cluster,
            name,
            memory,
        }
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }
}

/// The memory of all `wants` together.
pub(super) fn sum(wants: &[Want]) -> Size {
    let bytes = wants.iter().map(|want| want.memory.bytes());
    Size::from_bytes(bytes.fold(0, u64::saturating_add))
}

/// The identity of a state directory, independent of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Home {
    device: u64,
    inode: u64,
}

impl Home {
    pub(super) fn of(path: &Path) -> Result<Self, BudgetError> {
        let found = std::fs::metadata(path).map_err(|source| BudgetError::Queue {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// The content of a file of the queue.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    home: Home,
    vms: Vec<Want>,
}

/// Encodes the content of a file of the queue.
pub(super) fn text(queue: &Path, home: Home, wants: &[Want]) -> Result<Vec<u8>, BudgetError> {
    let text = Text {
        home,
        vms: wants.to_vec(),
    };
    serde_json::to_vec(&text).map_err(|error| BudgetError::Queue {
        path: queue.to_owned(),
        source: error.into(),
    })
}

/// The owner of a VM. A claim of another user never counts for a VM of this state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// This state directory.
    Here,
    /// Another state directory of this user.
    Home(Home),
    /// Another user.
    User(u32, Home),
}

/// State directory, cluster and name of a VM.
type Key = (Owner, Name, Name);

/// The queue, as processes with one state directory see it.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    path: PathBuf,
    store: Store,
    home: Home,
    user: u32,
}

impl Queue {
    /// The host's queue, or the one that the environment names.
    pub(super) fn of(store: &Store) -> Result<Self, BudgetError> {
        Self::at(shared::path(store.home()), store)
    }

    pub(super) fn at(path: PathBuf, store: &Store) -> Result<Self, BudgetError> {
        Ok(Self {
            path,
            store: store.clone(),
            home: Home::of(store.home())?,
            user: geteuid().as_raw(),
        })
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn owner(&self, user: u32, home: Home) -> Owner {
        match (user == self.user, home == self.home) {
            (true, true) => Owner::Here,
            (true, false) => Owner::Home(home),
            (false, _) => Owner::User(user, home),
        }
    }

    /// The running VMs of this state directory.
    fn running(&self) -> Result<BTreeMap<Key, Size>, BudgetError> {
        let mut running = BTreeMap::new();
        for vm in self.store.vms()? {
            if !vm.is_running()? {
                continue;
            }
            match vm.record() {
                Ok(record) => {
                    let key = (Owner::Here, vm.cluster().clone(), vm.name().clone());
                    running.insert(key, record.memory);
                }
                // Removed in this moment, or damaged: what it has cannot be known.
                Err(error) => {
                    tracing::debug!(vm = %vm.name(), %error, "ignoring a VM whose record cannot be read")
                }
            }
        }
        Ok(running)
    }

    /// Adds the VMs in a file of the queue to `holders`, which has those known to run here.
    fn add(&self, seen: &Seen, holders: &mut BTreeMap<Key, Size>) {
        let text: Text = match serde_json::from_slice(&seen.content) {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(name = %seen.name, %error, "ignoring a file of the memory queue that cannot be parsed");
                return;
            }
        };
        let owner = self.owner(seen.user, text.home);
        for want in text.vms {
            let Want {
                cluster,
                name,
                memory,
            } = want;
            let here = (Owner::Here, cluster.clone(), name.clone());
            // The superuser runs VMs in the state directories of others: these count once.
            if text.home == self.home && holders.contains_key(&here) {
                continue;
            }
            let held = holders
                .entry((owner.clone(), cluster, name))
                .or_insert(memory);
            *held = memory.max(*held);
        }
    }
}

/// The memory granted to a start that is under way.
#[derive(Debug)]
pub(crate) struct Lease(#[expect(dead_code, reason = "held until it is dropped")] Ticket);

/// A place in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Queue,
    wants: Vec<Want>,
    entry: Entry,
}

/// The answer to a ticket.
pub(super) enum Verdict {
    Granted(Lease),
    Wait(Ticket, QueueView),
}

/// A view of the queue: which VMs have memory, and which starts come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueView {
    limit: Option<Size>,
    holders: BTreeMap<Key, Size>,
    before: Vec<FileName>,
}

impl fmt::Display for QueueView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = total(&self.holders);
        match self.limit {
            Some(limit) => write!(f, "{used} of {limit} are in use")?,
            None => write!(f, "{used} are in use")?,
        }
        for (index, ((owner, _, name), memory)) in self.holders.iter().take(NAMED).enumerate() {
            let separator = if index == 0 { " by " } else { ", " };
            write!(f, "{separator}{name} ({memory}")?;
            match owner {
                Owner::Here => f.write_str(")")?,
                Owner::Home(_) => f.write_str(", of another state directory)")?,
                Owner::User(user, _) => write!(f, ", of the user with id {user})")?,
            }
        }
        if let Some(more @ 1..) = self.holders.len().checked_sub(NAMED) {
            write!(f, " and {more} more")?;
        }
        match self.before.len() {
            0 => Ok(()),
            1 => f.write_str("; another start comes first"),
            n => write!(f, "; {n} other starts come first"),
        }
    }
}

fn total(holders: &BTreeMap<Key, Size>) -> Size {
    let bytes = holders.values().map(|memory| memory.bytes());
    Size::from_bytes(bytes.fold(0, u64::saturating_add))
}

impl Ticket {
    /// Joins the queue at its end.
    pub(super) fn draw(queue: Queue, wants: Vec<Want>) -> Result<Self, BudgetError> {
        let text = text(&queue.path, queue.home, &wants)?;
        let guard = Guard::enter(&queue.path)?;
        let last = guard.look()?.last().map_or(0, |last| last.name.number);
        let entry = guard.create(last.saturating_add(1), Kind::Waiting, &text)?;
        Ok(Self {
            queue,
            wants,
            entry,
        })
    }

    /// Asks for the ticket's memory. It is granted if it fits and no start comes first. A start
    /// without a limit never waits.
    pub(super) fn ask(mut self, limit: Option<Size>) -> Result<Verdict, BudgetError> {
        // Before the queue is locked: a VM that starts running meanwhile has a claim there, too.
        let mut view = QueueView {
            limit,
            holders: self.queue.running()?,
            before: Vec::new(),
        };
        // Another process may have started some of these meanwhile.
        let missing = self.wants.iter().filter(|want| {
            let key = (Owner::Here, want.cluster.clone(), want.name.clone());
            !view.holders.contains_key(&key)
        });
        let missing: Vec<Want> = missing.cloned().collect();
        let guard = Guard::enter(&self.queue.path)?;
        let mine = self.entry.name();
        if !guard.has(&self.entry) {
            // The file was removed, for example by a cleaner of /tmp. The place stays the same.
            let text = text(&self.queue.path, self.queue.home, &self.wants)?;
            self.entry = guard.create(mine.number, Kind::Waiting, &text)?;
        }
        for seen in guard.look()? {
            if seen.name.kind != Kind::Waiting {
                self.queue.add(&seen, &mut view.holders);
            } else if seen.name.is_before(&mine) && seen.name != self.entry.name() {
                view.before.push(seen.name);
            }
        }
        let fits = limit.is_none_or(|limit| {
            let free = limit.bytes().saturating_sub(total(&view.holders).bytes());
            view.before.is_empty() && sum(&missing).bytes() <= free
        });
        if !fits && !missing.is_empty() {
            return Ok(Verdict::Wait(self, view));
        }
        guard.change(&mut self.entry, Kind::Granted)?;
        Ok(Verdict::Granted(Lease(self)))
    }
}
