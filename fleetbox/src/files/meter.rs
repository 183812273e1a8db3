//! Counting copied files and bytes, to enforce limits and to report progress.

use crate::util::sync::lock;
use std::sync::{Arc, Mutex};

use super::{CopySummary, ENTRY_LIMIT, FileProgress, FilesError, Listener, shown};

/// Bytes between two progress reports.
const STEP: u64 = 256 << 10;

/// The counters of one copy, shared by files that are copied at the same time.
pub(crate) struct Meter {
    state: Mutex<State>,
    listener: Option<Arc<Listener>>,
    total: Option<u64>,
    limit: u64,
}

#[derive(Default)]
struct State {
    copied: CopySummary,
    entries: usize,
    told: u64,
}

impl Meter {
    pub(super) fn new(listener: Option<Arc<Listener>>, total: Option<u64>, limit: u64) -> Self {
        let meter = Self {
            state: Mutex::default(),
            listener,
            total,
            limit,
        };
        meter.tell(&mut meter.state(), "");
        meter
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn tell(&self, state: &mut State, path: &str) {
        state.told = state.copied.bytes;
        if let Some(listener) = &self.listener {
            listener(&FileProgress {
                path: shown(path),
                bytes: state.copied.bytes,
                total: self.total,
                files: state.copied.files,
            });
        }
    }

    /// Counts copied bytes of `path`.
    ///
    /// # Errors
    /// [`FilesError::TooLarge`] beyond the limit.
    pub(super) fn bytes(&self, path: &str, count: u64) -> Result<(), FilesError> {
        let mut state = self.state();
        state.copied.bytes = state.copied.bytes.saturating_add(count);
        if state.copied.bytes > self.limit {
            return Err(FilesError::TooLarge {
                path: shown(path),
                limit: self.limit,
            });
        }
        if state.copied.bytes - state.told >= STEP {
            self.tell(&mut state, path);
        }
        Ok(())
    }

    /// Counts an entry of a directory.
    ///
    /// # Errors
    /// [`FilesError::TooMany`] beyond the limit.
    pub(super) fn entry(&self, directory: &str) -> Result<(), FilesError> {
        let mut state = self.state();
        state.entries += 1;
        if state.entries > ENTRY_LIMIT {
            return Err(FilesError::TooMany {
                path: shown(directory),
            });
        }
        Ok(())
    }

    pub(super) fn file(&self, path: &str) {
        let mut state = self.state();
        state.copied.files += 1;
        self.tell(&mut state, path);
    }

    pub(super) fn directory(&self) {
        self.state().copied.directories += 1;
    }

    pub(super) fn link(&self) {
        self.state().copied.links += 1;
    }

    pub(super) fn copied(&self) -> CopySummary {
        self.state().copied
    }
}
