//! The memory that all VMs of a host may use together, and the queue for it.
//!
//! If too little memory is left, a start waits until other VMs have ended, instead of driving the host into swap or its
//! OOM killer. All processes on the host share the budget, for all users and all state directories: the tests of one
//! binary, several test binaries, `fleetbox up` and `sudo fleetbox up`.
//!
//! - ***How much**: three quarters of the host's memory, or of the limit of the process's control group if that is
//!   less. `FLEETBOX_MEMORY_BUDGET` changes it to a size such as `8GiB`, a share of the host such as `50%`, or
//!   `unlimited`. Each start uses the value of its own process.
//! - ***What counts**: the memory of every running VM, and of every start that was granted and is under way. Their
//!   processes keep files locked for them, so the memory of a killed process is free at once.
//! - ***Where**: the files are in `/tmp/fleetbox-memory`, or in the directory that `FLEETBOX_BUDGET_DIR` names.
//!   Processes with another directory have another queue. This is the case in containers that do not share `/tmp`.
//! - **Order**: first come, first served. A small start does not overtake a large one that waits
//!   before it, so every start has its turn once those before it have ended.
//! - **All at once**: the members of a cluster are granted together or wait together.
//! - A start that is larger than the whole budget is an error at once.
//! - Two processes that each hold a VM and start a second one may wait for each other. So start VMs that belong
//!   together as one cluster. A start gives up if no VM has started or ended for half an hour.

mod changes;
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

use self::changes::{Changes, SECOND_LOOK};
pub(crate) use self::claim::{Claim, Held};
pub(crate) use self::queue::{Lease, Want};
use self::queue::{Queue, QueueView, Ticket, Verdict};
pub use self::shared::{QUEUE_VARIABLE, QueueDir};
use crate::model::size::Size;
use crate::progress::{Progress, ProgressEvent};
use crate::store::{Store, StoreError};
use crate::util::readable::readable_debug;
use crate::util::task::{ShuttingDown, blocking};

/// Environment variable for the budget: a size, a share of the host in percent, or `unlimited`.
pub const BUDGET_VARIABLE: &str = "FLEETBOX_MEMORY_BUDGET";

/// The default budget, in percent of the host's memory. The rest is for the host itself, and for the VMs' disks in its
/// page cache.
pub const DEFAULT_PERCENT: u64 = 75;

/// How long a start waits without any VM starting or ending before it gives up.
const STALL: Duration = Duration::from_secs(30 * 60);

/// How much memory all VMs of the host may use together.
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

    /// A budget of `limit`.
    pub const fn of(limit: Size) -> Self {
        Self {
            limit: Some(limit),
            stall: STALL,
        }
    }

    /// The budget in `FLEETBOX_MEMORY_BUDGET`, or else [`DEFAULT_PERCENT`] percent of the host's memory.
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
    /// [`BudgetError::Value`] if the variable's value is invalid.
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

    /// A share of the host's memory in percent, in whole mebibytes.
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

/// The directory of the memory queue for VMs of the state directory `home`. Nothing is created: a missing one will
/// belong to this user.
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
/// [`BudgetError::Queue`] if it is not a directory, or this user may not write to it. Then no VM can start.
pub fn queue_dir(home: &Path) -> Result<QueueDir, BudgetError> {
    shared::probe(shared::path(home))
}

/// Memory of this host, or the limit of its control group if that is less.
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
                _ => Err(wrong("a share must be between 1% and 100%".to_owned())),
            };
        }
        match text.parse::<Size>() {
            Ok(size) => Ok(Self::of(size)),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

/// Why a start gets no memory.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// It would not fit if nothing else ran.
    #[error(
        "cannot start {who}: it needs {wanted} of memory, but all VMs together may use {limit}; give it less, or raise FLEETBOX_MEMORY_BUDGET (default: {DEFAULT_PERCENT} % of this host's memory)"
    )]
    TooLarge {
        /// The VM, or the first of several.
        who: String,
        /// What was asked for.
        wanted: Size,
        /// The whole budget.
        limit: Size,
    },
    /// It has waited for a long time, and no VM has ended or started meanwhile.
    #[error(
        "cannot start {who}: it waits for {wanted} of memory, and no VM has started or ended in {waited:?}; {usage}. Stop some of them, raise FLEETBOX_MEMORY_BUDGET, or start VMs that belong together as one cluster"
    )]
    Stalled {
        /// The VM, or the first of several.
        who: String,
        /// What was asked for.
        wanted: Size,
        /// How long no VM has started or ended.
        waited: Duration,
        /// Which VMs use the memory.
        usage: String,
    },
    /// The variable's value is invalid.
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
    /// The runtime is shutting down.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    /// The queue cannot be used.
    #[error(
        "cannot use the queue for memory in {}: {source}; it must be a directory that every user of this host may write to (mode 1777); set FLEETBOX_BUDGET_DIR to use another one", path.display()
    )]
    Queue {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

readable_debug!(BudgetError);

/// Waits until there is memory for all of `wants` at once. Hold the lease until the VMs are running; from then on their
/// own locks and claims count.
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
    let path = queue.path().to_owned();
    let mut ticket = blocking(move || Ticket::draw(queue, wants)).await?;
    let mut seen: Option<QueueView> = None;
    let mut moved = Instant::now();
    let mut reported = false;
    loop {
        // Anew each time, since the directory may be replaced.
        let changes = Changes::of(&path);
        let verdict = blocking(move || ticket.ask(budget.limit)).await?;
        let view = match verdict {
            Verdict::Granted(lease) => {
                if seen.is_some() {
                    tracing::info!(vm = %who, "memory granted");
                    progress.event(ProgressEvent::MemoryGranted);
                }
                return Ok(lease);
            }
            Verdict::Wait(waiting, view) => {
                ticket = waiting;
                view
            }
        };
        if seen.is_none() {
            let why = format!("it needs {wanted}, and {view}");
            tracing::info!(vm = %who, why, "waits for memory");
            progress.event(ProgressEvent::WaitingForMemory {
                vm: &who,
                why: &why,
            });
        }
        if seen.as_ref() != Some(&view) {
            moved = Instant::now();
            seen = Some(view);
        } else if moved.elapsed() > budget.stall {
            progress.event(ProgressEvent::Failed);
            let usage = view.to_string();
            let waited = budget.stall;
            return Err(BudgetError::Stalled {
                who,
                wanted,
                waited,
                usage,
            });
        }
        let left = budget.stall.saturating_sub(moved.elapsed()) + Duration::from_millis(1);
        let limit = if reported {
            left.min(SECOND_LOOK)
        } else {
            left
        };
        reported = changes.next(limit).await;
    }
}

fn describe(wants: &[Want]) -> String {
    match wants {
        [] => "no VM".to_owned(),
        [one] => one.name().to_string(),
        [first, rest @ ..] => format!("{} and {} more", first.name(), rest.len()),
    }
}
