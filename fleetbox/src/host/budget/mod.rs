//! The memory that all VMs of a host may have together, and the queue for it.
//!
//! A start that finds too little left waits until other VMs have ended, rather than driving the
//! host into swap or its OOM killer. All processes of the host share the budget, of all users and
//! all state directories: tests of one binary, test binaries, `fleetbox up`, `sudo fleetbox up`.
//!
//! - **How much**: three quarters of the host's memory (of what the process's control group may
//!   have, if that is less), or what `FLEETBOX_MEMORY_BUDGET` says: a size such as `8GiB`, a share
//!   of the host such as `50%`, or `unlimited`. Each start goes by the value of its own process.
//! - **What counts**: the memory of every VM that runs, and of every start that was granted and is
//!   under way. Both are told by files that their processes keep locked, so what a killed process
//!   had is free at once.
//! - **Where**: the files are in `/tmp/fleetbox-memory`, or in the directory that
//!   `FLEETBOX_BUDGET_DIR` names. Processes with another directory have another queue: containers
//!   that do not share `/tmp`, and anyone who wants a queue of their own.
//! - **Order**: first come, first served. A small start does not overtake a large one that waits
//!   before it, so every start has its turn once those before it have ended.
//! - **All at once**: the members of a cluster are granted together or wait together.
//! - A start that is larger than the whole budget is an error at once.
//! - A process that holds a VM and waits for a second one may wait for another that does the same:
//!   start what belongs together as one cluster. A start gives up when nothing has moved for half an hour.

mod claim;
mod host;
mod queue;
mod shared;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::claim::{Claim, Held};
pub(crate) use self::queue::{Lease, Want};
use self::queue::{Queue, Scene, Ticket, Verdict};
pub use self::shared::{QUEUE_VARIABLE, QueueDir};
use crate::model::size::Size;
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Store, StoreError};
use crate::util::task::{ShuttingDown, blocking};

/// Environment variable with the budget: a size, a share of the host in percent, or `unlimited`.
pub const BUDGET_VARIABLE: &str = "FLEETBOX_MEMORY_BUDGET";

/// The share of the host's memory that is the budget where none is given, in percent. The rest is
/// for the host itself and for what it keeps in its page cache of the VMs' disks.
pub const DEFAULT_PERCENT: u64 = 75;

/// How often a start that waits looks again.
const POLL: Duration = Duration::from_millis(100);

/// How long nothing may move before a start gives up.
const STALL: Duration = Duration::from_secs(30 * 60);

/// How much memory all VMs of the host may have together.
///
/// ```
/// use fleetbox::Size;
/// use fleetbox::budget::Budget;
///
/// assert_eq!(Budget::of(Size::gib(8)).limit(), Some(Size::gib(8)));
/// assert_eq!("6GiB".parse::<Budget>().unwrap().limit(), Some(Size::gib(6)));
/// assert_eq!("unlimited".parse::<Budget>().unwrap(), Budget::UNLIMITED);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    limit: Option<Size>,
    stall: Duration,
}

impl Budget {
    /// No limit: no start waits.
    pub const UNLIMITED: Self = Self {
        limit: None,
        stall: STALL,
    };

    /// A budget of so much memory.
    pub const fn of(limit: Size) -> Self {
        Self {
            limit: Some(limit),
            stall: STALL,
        }
    }

    /// What `FLEETBOX_MEMORY_BUDGET` says, else [`DEFAULT_PERCENT`] of the host's memory.
    ///
    /// ```no_run
    /// use fleetbox::budget::Budget;
    ///
    /// match Budget::from_env()?.limit() {
    ///     Some(limit) => println!("{limit} for all VMs"),
    ///     None => println!("no limit"),
    /// }
    /// # Ok::<(), fleetbox::budget::BudgetError>(())
    /// ```
    ///
    /// # Errors
    /// [`BudgetError::Value`] if the variable has none of the forms.
    pub fn from_env() -> Result<Self, BudgetError> {
        match std::env::var_os(BUDGET_VARIABLE) {
            Some(value) if !value.is_empty() => value.to_string_lossy().parse(),
            _ => Ok(Self::share(DEFAULT_PERCENT)),
        }
    }

    /// The memory in bytes; `None` without a limit.
    pub fn limit(&self) -> Option<Size> {
        self.limit
    }

    /// Checks that `wants` would fit if nothing else ran.
    ///
    /// # Errors
    /// [`BudgetError::TooLarge`].
    pub(crate) fn check(&self, wants: &[Want]) -> Result<(), BudgetError> {
        let wanted = queue::sum(wants);
        match self.limit {
            Some(limit) if wanted > limit => Err(BudgetError::TooLarge {
                who: describe(wants),
                wanted,
                limit,
            }),
            _ => Ok(()),
        }
    }

    /// So many percent of the host's memory, in whole mebibytes.
    fn share(percent: u64) -> Self {
        match host::memory() {
            Some(memory) => {
                let mib = (memory.bytes() / 100 * percent) >> 20;
                Self::of(Size::mib(mib))
            }
            None => Self::UNLIMITED,
        }
    }

    #[cfg(test)]
    pub(crate) fn stalled_after(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }
}

/// The directory in which starts of VMs of the state directory `home` queue for memory, made if it is
/// not there.
///
/// ```no_run
/// let home = fleetbox::store::Store::default_home()?;
/// match fleetbox::budget::queue_dir(&home) {
///     Ok(queue) => println!("{}", queue.path.display()),
///     Err(error) => println!("no VM starts: {error}"),
/// }
/// # Ok::<(), fleetbox::store::StoreError>(())
/// ```
///
/// # Errors
/// [`BudgetError::Queue`] if it is none or this user may not write to it: no VM starts then.
pub fn queue_dir(home: &Path) -> Result<QueueDir, BudgetError> {
    shared::probe(shared::path(home))
}

/// Memory of this host, or what its control group leaves of it.
pub(crate) fn host_memory() -> Option<Size> {
    host::memory()
}

impl std::str::FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = |why: String| BudgetError::Value {
            text: text.to_owned(),
            why,
        };
        if text == "unlimited" {
            return Ok(Self::UNLIMITED);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::share(percent)),
                _ => Err(wrong("a share is between 1% and 100%".to_owned())),
            };
        }
        match text.parse::<Size>() {
            Ok(size) => Ok(Self::of(size)),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

/// Why there is no memory for a start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// It would not fit if nothing else ran.
    #[error(
        "cannot start {who}: it needs {wanted} of memory and all VMs together may have {limit}; \
         give it less, or raise FLEETBOX_MEMORY_BUDGET (it is {DEFAULT_PERCENT} % of this host's \
         memory where it is not set)"
    )]
    TooLarge {
        /// The VM, or the first of several.
        who: String,
        /// What was asked for.
        wanted: Size,
        /// The whole budget.
        limit: Size,
    },
    /// It has waited, and for a long time no VM has ended or started.
    #[error(
        "cannot start {who}: it has waited for {wanted} of memory, and in {waited:?} nothing has \
         moved; {scene}. End some of these, raise FLEETBOX_MEMORY_BUDGET, or start VMs that are \
         needed together as one cluster"
    )]
    Stalled {
        /// The VM, or the first of several.
        who: String,
        /// What was asked for.
        wanted: Size,
        /// How long nothing has moved.
        waited: Duration,
        /// Who has the memory.
        scene: String,
    },
    /// The variable cannot be read.
    #[error(
        "FLEETBOX_MEMORY_BUDGET is {text:?}: {why}; write a size such as 8GiB, a share of the \
         host's memory such as 50%, or unlimited"
    )]
    Value {
        /// Its value.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The wait was given up.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    /// The queue's files.
    #[error(
        "cannot use the queue for memory in {}: {source}; it is a directory that every user of this \
         host may write to (mode 1777), and FLEETBOX_BUDGET_DIR names another one", path.display()
    )]
    Queue {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Waits until there is memory for `wants`, all of them at once. The lease is to be held until
/// the VMs run: their own locks and claims count from then on.
///
/// Dropping the future leaves the queue.
///
/// # Errors
/// [`BudgetError`].
pub(crate) async fn acquire(
    store: &Store,
    budget: Budget,
    wants: Vec<Want>,
    progress: &dyn Progress,
) -> Result<Lease, BudgetError> {
    budget.check(&wants)?;
    acquire_in(Queue::of(store)?, budget, wants, progress).await
}

async fn acquire_in(
    queue: Queue,
    budget: Budget,
    wants: Vec<Want>,
    progress: &dyn Progress,
) -> Result<Lease, BudgetError> {
    let who = describe(&wants);
    let wanted = queue::sum(&wants);
    let mut ticket = blocking(move || Ticket::draw(queue, wants)).await?;
    let mut seen: Option<Scene> = None;
    let mut moved = Instant::now();
    loop {
        let verdict = blocking(move || ticket.ask(budget.limit)).await?;
        let scene = match verdict {
            Verdict::Granted(lease) => {
                if seen.is_some() {
                    tracing::info!(vm = %who, "has its turn");
                    progress.event(ProgressEvent::MemoryGranted);
                }
                return Ok(lease);
            }
            Verdict::Wait(waiting, scene) => {
                ticket = waiting;
                scene
            }
        };
        if seen.is_none() {
            let why = format!("it needs {wanted}, and {scene}");
            tracing::info!(vm = %who, why, "waits for memory");
            progress.event(ProgressEvent::WaitingForMemory {
                vm: &who,
                why: &why,
            });
        }
        if seen.as_ref() != Some(&scene) {
            moved = Instant::now();
            seen = Some(scene);
        } else if moved.elapsed() > budget.stall {
            progress.event(ProgressEvent::Failed);
            let scene = scene.to_string();
            let waited = budget.stall;
            return Err(BudgetError::Stalled {
                who,
                wanted,
                waited,
                scene,
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn describe(wants: &[Want]) -> String {
    match wants {
        [] => "no VM".to_owned(),
        [one] => one.name().to_string(),
        [first, rest @ ..] => format!("{} and {} more", first.name(), rest.len()),
    }
}
