//! Accounts for the work and the memory that a disk causes.
//!
//! Every parser charges what it does where it does it: bytes and reads, entries that it looks at,
//! memory that it keeps, and work that is neither ([`Budget::work`]). The first limit that is
//! exceeded stays exceeded: from then on every charge fails, and [`Budget::check`] names it, so that
//! a parser that takes an error for "not found" cannot hide it.
//!
//! ```ignore
//! budget.charge(Limit::Entries, 1)?;            // an entry of a directory, a piece of a script
//! let _held = budget.hold(bytes.len())?;        // memory, until the guard is dropped
//! budget.keep(name.len() + value.len())?;       // memory, until the plan is made
//! budget.work(block.len())?;                    // bytes compared or hashed
//! ```

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use super::limits::Limits;

/// Units of work after which the clock is read. A unit is about a byte compared or hashed.
const WORK_PER_LOOK: u64 = 64 * 1024;
/// Units of work that a charge costs, whatever its amount.
const WORK_PER_CHARGE: u64 = 256;

/// What is limited. The names are those of the fields of [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Bytes read from the disk.
    Bytes,
    /// Reads.
    Reads,
    /// Entries of tables, directories, journals and menus, and pieces of scripts.
    Entries,
    /// Bytes of configuration files that are parsed.
    Parsed,
    /// Commands run.
    Steps,
    /// Bytes of memory held at a time.
    Memory,
    /// Time.
    Time,
}

/// Number of limits that are amounts: all but the time.
const AMOUNTS: usize = 6;

/// A limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub(super) struct Exceeded {
    limit: Limit,
    /// The limit's value; milliseconds for the time.
    most: u64,
}

impl Exceeded {
    fn text(&self) -> String {
        let most = self.most;
        match self.limit {
            Limit::Bytes => format!("more than {most} bytes would have to be read (limit `bytes`)"),
            Limit::Reads => format!("more than {most} reads are needed (limit `reads`)"),
            Limit::Entries => format!(
                "there are more than {most} entries of directories, tables and scripts to look at \
                 (limit `entries`)"
            ),
            Limit::Parsed => format!(
                "its configuration files have more than {most} bytes together (limit `parsed`)"
            ),
            Limit::Steps => {
                format!("its configuration runs more than {most} commands (limit `steps`)")
            }
            Limit::Memory => {
                format!("more than {most} bytes of memory are needed (limit `memory`)")
            }
            Limit::Time => format!("it takes longer than {most} ms (limit `time`)"),
        }
    }
}

impl From<Exceeded> for io::Error {
    fn from(exceeded: Exceeded) -> Self {
        Self::other(exceeded)
    }
}

/// What one discovery has used, and what it may use.
pub(super) struct Budget {
    used: [Cell<u64>; AMOUNTS],
    most: [u64; AMOUNTS],
    /// Work since the last look at the clock.
    work: Cell<u64>,
    deadline: Instant,
    milliseconds: u64,
    exceeded: Cell<Option<Exceeded>>,
}

impl Budget {
    /// A budget whose time begins now.
    pub(super) fn new(limits: &Limits) -> Rc<Self> {
        let mut most = [0; AMOUNTS];
        for (limit, amount) in [
            (Limit::Bytes, limits.bytes),
            (Limit::Reads, limits.reads),
            (Limit::Entries, limits.entries),
            (Limit::Parsed, limits.parsed),
            (Limit::Steps, limits.steps),
            (Limit::Memory, limits.memory),
        ] {
            most[limit as usize] = amount;
        }
        let now = Instant::now();
        Rc::new(Self {
            used: Default::default(),
            most,
            work: Cell::new(0),
            // A time that no clock can show is no limit; a year is none, either.
            deadline: now
                .checked_add(limits.time)
                .unwrap_or(now + std::time::Duration::from_secs(365 * 86_400)),
            milliseconds: u64::try_from(limits.time.as_millis()).unwrap_or(u64::MAX),
            exceeded: Cell::new(None),
        })
    }

    /// An ample one, for tests.
    #[cfg(test)]
    pub(super) fn ample() -> Rc<Self> {
        Self::new(&Limits::default())
    }

    /// Charges `amount` of what `limit` counts.
    ///
    /// # Errors
    /// It is more than is left, or any limit was exceeded before.
    pub(super) fn charge(&self, limit: Limit, amount: u64) -> Result<(), Exceeded> {
        if let (Some(used), Some(most)) =
            (self.used.get(limit as usize), self.most.get(limit as usize))
        {
            let sum = used.get().saturating_add(amount);
            if sum > *most {
                return Err(self.exceed(limit, *most));
            }
            used.set(sum);
        }
        self.work(0)
    }

    /// Charges work of about `amount` compared or hashed bytes, which only costs time. The clock is
    /// read once in a while.
    ///
    /// # Errors
    /// The time is over, or any limit was exceeded before.
    pub(super) fn work(&self, amount: u64) -> Result<(), Exceeded> {
        if let Some(exceeded) = self.exceeded.get() {
            return Err(exceeded);
        }
        let work = self
            .work
            .get()
            .saturating_add(amount)
            .saturating_add(WORK_PER_CHARGE);
        if work < WORK_PER_LOOK {
            self.work.set(work);
            return Ok(());
        }
        self.check()
    }

    /// Charges one read of `len` bytes.
    ///
    /// # Errors
    /// As for [`Budget::charge`].
    pub(super) fn read(&self, len: u64) -> Result<(), Exceeded> {
        self.charge(Limit::Reads, 1)?;
        self.charge(Limit::Bytes, len)?;
        self.work(len)
    }

    /// Charges `bytes` of memory until the plan is made. Ask before you allocate.
    ///
    /// # Errors
    /// As for [`Budget::charge`].
    pub(super) fn keep(&self, bytes: usize) -> Result<(), Exceeded> {
        self.charge(Limit::Memory, bytes as u64)
    }

    /// Charges `bytes` of memory until the guard is dropped. Ask before you allocate.
    ///
    /// # Errors
    /// As for [`Budget::charge`].
    pub(super) fn hold(self: &Rc<Self>, bytes: usize) -> Result<Held, Exceeded> {
        self.keep(bytes)?;
        Ok(Held {
            budget: self.clone(),
            bytes: bytes as u64,
        })
    }

    /// Fails if the time is over or any limit was exceeded. Reads the clock.
    ///
    /// # Errors
    /// The limit that was exceeded first.
    pub(super) fn check(&self) -> Result<(), Exceeded> {
        if let Some(exceeded) = self.exceeded.get() {
            return Err(exceeded);
        }
        self.work.set(0);
        if Instant::now() > self.deadline {
            return Err(self.exceed(Limit::Time, self.milliseconds));
        }
        Ok(())
    }

    fn exceed(&self, limit: Limit, most: u64) -> Exceeded {
        let exceeded = self.exceeded.get().unwrap_or(Exceeded { limit, most });
        self.exceeded.set(Some(exceeded));
        exceeded
    }
}

/// Memory that counts as long as this lives.
#[must_use]
pub(super) struct Held {
    budget: Rc<Budget>,
    bytes: u64,
}

impl Held {
    /// Charges `bytes` more.
    ///
    /// # Errors
    /// As for [`Budget::charge`].
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.budget.keep(bytes)?;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(used) = self.budget.used.get(Limit::Memory as usize) {
            used.set(used.get().saturating_sub(self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_limit_ends_and_is_named() {
        let limits = Limits {
            bytes: 10,
            reads: 10,
            entries: 10,
            parsed: 10,
            steps: 10,
            memory: 10,
            ..Limits::default()
        };
        for (limit, name) in [
            (Limit::Bytes, "`bytes`"),
            (Limit::Reads, "`reads`"),
            (Limit::Entries, "`entries`"),
            (Limit::Parsed, "`parsed`"),
            (Limit::Steps, "`steps`"),
            (Limit::Memory, "`memory`"),
        ] {
            let budget = Budget::new(&limits);
            budget.charge(limit, 9).unwrap();
            budget.charge(limit, 1).unwrap();
            let error = budget.charge(limit, 1).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("10"), "{error}");
            // It stays so, for everything.
            assert_eq!(
                budget.work(1).unwrap_err(),
                budget.charge(limit, 0).unwrap_err()
            );
            assert_eq!(budget.check().unwrap_err().limit, limit);
            assert!(budget.charge(limit, u64::MAX).is_err());
        }
    }

    #[test]
    fn held_memory_is_given_back() {
        let budget = Budget::new(&Limits {
            memory: 100,
            ..Limits::default()
        });
        for _ in 0..10 {
            let mut held = budget.hold(50).unwrap();
            held.grow(40).unwrap();
        }
        budget.keep(60).unwrap();
        assert!(budget.hold(50).is_err());
    }

    #[test]
    fn work_alone_meets_the_deadline() {
        let budget = Budget::new(&Limits {
            time: Duration::ZERO,
            ..Limits::default()
        });
        let worked = (0..10_000).take_while(|_| budget.work(1).is_ok()).count();
        assert!(worked < 1000, "{worked}");
        assert!(budget.check().unwrap_err().to_string().contains("`time`"));
        // A limit that no clock reaches.
        let budget = Budget::new(&Limits {
            time: Duration::MAX,
            ..Limits::default()
        });
        budget.check().unwrap();
    }
}
