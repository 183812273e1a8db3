//! The queue in the state directory.
//!
//! A start draws a ticket: a file `budget/NUMBER.waiting` that says what it wants and that its
//! process keeps locked. When it is granted the file becomes `NUMBER.granted`, until the VMs run
//! and count by their own locks. A file that nobody has locked is what a kill has left and is
//! removed by whoever looks next. All looks and changes are made under `budget/lock`, which is
//! held for moments.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BudgetError;
use crate::names::Name;
use crate::store::{Lock, Store, create_private_dir, read_limited};
use crate::{Result, Size};

/// A ticket has a line for each VM; anything larger is not ours.
const TICKET_LIMIT: u64 = 1 << 20;

const WAITING: &str = "waiting";
const GRANTED: &str = "granted";

/// VMs that a message names.
const NAMED: usize = 8;

/// One VM that is to be started.
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

    fn key(&self) -> Key {
        (self.cluster.clone(), self.name.clone())
    }
}

/// What VMs want together.
pub(super) fn sum(wants: &[Want]) -> Size {
    let bytes = wants.iter().map(|want| want.memory.bytes());
    Size::from_bytes(bytes.fold(0, u64::saturating_add))
}

/// Cluster and name of a VM.
type Key = (Name, Name);

/// Granted memory of a start that is under way.
#[derive(Debug)]
pub(crate) struct Lease(#[expect(dead_code, reason = "held until it is dropped")] Ticket);

/// A place in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    wants: Vec<Want>,
    // `None` only while it is dropped.
    lock: Option<Lock>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.lock.take().map(Lock::remove) {
            // Nobody has it locked from now on, so it does not count.
            tracing::debug!(%error, "a ticket of the memory queue is left");
        }
    }
}

/// The answer to a ticket.
pub(super) enum Verdict {
    Granted(Lease),
    Wait(Ticket, Scene),
}

/// Who has memory and who is before one in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scene {
    limit: Option<Size>,
    holders: BTreeMap<Key, Size>,
    before: Vec<u64>,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = total(&self.holders);
        match self.limit {
            Some(limit) => write!(f, "{used} of {limit} are in use")?,
            None => write!(f, "{used} are in use")?,
        }
        for (index, ((_, name), memory)) in self.holders.iter().take(NAMED).enumerate() {
            let separator = if index == 0 { " by " } else { ", " };
            write!(f, "{separator}{name} ({memory})")?;
        }
        if let Some(more @ 1..) = self.holders.len().checked_sub(NAMED) {
            write!(f, " and {more} more")?;
        }
        match self.before.len() {
            0 => Ok(()),
            1 => f.write_str("; another start is before it"),
            n => write!(f, "; {n} other starts are before it"),
        }
    }
}

fn total(holders: &BTreeMap<Key, Size>) -> Size {
    let bytes = holders.values().map(|memory| memory.bytes());
    Size::from_bytes(bytes.fold(0, u64::saturating_add))
}

impl Ticket {
    /// Joins the queue at its end.
    pub(super) fn draw(store: &Store, wants: Vec<Want>) -> Result<Self> {
        let dir = dir(store);
        create_private_dir(&dir).map_err(failed(&dir))?;
        let _guard = guard(store)?;
        let tickets = look(store)?;
        let number = tickets
            .last()
            .map_or(1, |last| last.number.saturating_add(1));
        let path = dir.join(format!("{number:020}.{WAITING}"));
        let text = serde_json::to_vec(&wants).map_err(|error| failed(&path)(error.into()))?;
        // Nobody else has this number: a file of that name is one that could not be removed.
        let Some(lock) = Lock::try_acquire(&path)? else {
            return Err(failed(&path)(std::io::ErrorKind::AlreadyExists.into()).into());
        };
        let ticket = Self {
            number,
            wants,
            lock: Some(lock),
        };
        let write = |path: &Path| -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(path)?;
            file.write_all(&text)
        };
        write(&path).map_err(failed(&path))?;
        Ok(ticket)
    }

    /// Asks for what the ticket is for. It is granted if it fits and nobody waits before it; a
    /// start without a limit waits for nobody.
    pub(super) fn ask(mut self, store: &Store, limit: Option<Size>) -> Result<Verdict> {
        let _guard = guard(store)?;
        let mut scene = Scene {
            limit,
            holders: running(store)?,
            before: Vec::new(),
        };
        // Somebody else may have started some of these meanwhile.
        let missing = self
            .wants
            .iter()
            .filter(|want| !scene.holders.contains_key(&want.key()))
            .cloned()
            .collect::<Vec<_>>();
        for other in look(store)? {
            if other.granted {
                for want in &other.wants {
                    scene.holders.entry(want.key()).or_insert(want.memory);
                }
            } else if other.number < self.number {
                scene.before.push(other.number);
            }
        }
        let fits = limit.is_none_or(|limit| {
            let free = limit.bytes().saturating_sub(total(&scene.holders).bytes());
            scene.before.is_empty() && sum(&missing).bytes() <= free
        });
        if !fits && !missing.is_empty() {
            return Ok(Verdict::Wait(self, scene));
        }
        if let Some(lock) = &mut self.lock {
            let granted = lock.path().with_extension(GRANTED);
            std::fs::rename(lock.path(), &granted).map_err(failed(&granted))?;
            lock.moved_to(granted);
        }
        Ok(Verdict::Granted(Lease(self)))
    }
}

/// A ticket as others see it.
struct Seen {
    number: u64,
    granted: bool,
    wants: Vec<Want>,
}

/// All tickets whose holders live, by number. Called with the guard held.
fn look(store: &Store) -> Result<Vec<Seen>> {
    let dir = dir(store);
    let mut tickets = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(failed(&dir))? {
        let path = entry.map_err(failed(&dir))?.path();
        let Some((number, granted)) = parse(&path) else {
            continue;
        };
        if !Lock::is_held(&path)? {
            // Its holder may be leaving the queue this moment and remove it itself.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove an old ticket");
                }
                _ => {}
            }
            continue;
        }
        let wants = match read_limited(&path, TICKET_LIMIT) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                // Its place in the queue counts all the same.
                tracing::warn!(path = %path.display(), %error, "a ticket that cannot be read");
                Vec::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path)(error).into()),
        };
        tickets.push(Seen {
            number,
            granted,
            wants,
        });
    }
    tickets.sort_by_key(|ticket| ticket.number);
    Ok(tickets)
}

fn parse(path: &Path) -> Option<(u64, bool)> {
    let granted = match path.extension()?.to_str()? {
        WAITING => false,
        GRANTED => true,
        _ => return None,
    };
    Some((path.file_stem()?.to_str()?.parse().ok()?, granted))
}

/// The VMs that run.
fn running(store: &Store) -> Result<BTreeMap<Key, Size>> {
    let mut running = BTreeMap::new();
    for vm in store.vms()? {
        if !vm.is_running()? {
            continue;
        }
        match vm.record() {
            Ok(record) => {
                running.insert((vm.cluster().clone(), vm.name().clone()), record.memory);
            }
            // Removed in this moment, or damaged: what it has cannot be known.
            Err(error) => tracing::debug!(vm = %vm.name(), %error, "not counted"),
        }
    }
    Ok(running)
}

fn dir(store: &Store) -> PathBuf {
    store.home().join("budget")
}

fn guard(store: &Store) -> Result<Lock> {
    Ok(Lock::acquire(&dir(store).join("lock"))?)
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> BudgetError {
    let path = path.to_owned();
    move |source| BudgetError::Queue { path, source }
}
