//! Waiting for a change of the queue, without looking again and again.
//!
//! inotify reports what happens to the files of the queue's directory: they are created, renamed and removed, and closed
//! by the last process that had them locked, however that process ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

/// How often to look although nothing was reported: the queue may be on a file system without reports, and a VM of this
/// state directory counts even if its file in the queue was removed.
const FALLBACK: Duration = Duration::from_secs(5);

/// The same on a host that has no inotify instances left.
const BLIND: Duration = Duration::from_millis(500);

/// How long after a report to look: others follow soon.
const SETTLE: Duration = Duration::from_millis(10);

/// How long after a look for a report to look once more. The last close of a file is reported just before its lock is
/// released, and a busy host may do something else in between.
pub(super) const SECOND_LOOK: Duration = Duration::from_millis(250);

/// Bytes that are read at once. What was reported does not matter, only that something was.
const BUFFER: usize = 4096;

/// A watch of the queue's directory.
pub(super) struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Watches from now on. Look at the queue after this, so that no change is missed.
    pub(super) fn of(queue: &Path) -> Self {
        let watch = watch(queue).map_err(io::Error::from).and_then(|watch| {
            // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the
            // `AsyncFd` that owns it never gives it away.
            let registered = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
            Ok(registered?)
        });
        if let Err(error) = &watch {
            tracing::debug!(path = %queue.display(), %error, "cannot watch the queue for memory");
        }
        Self(watch.ok())
    }

    /// Waits for a change, at most for `limit`. True if there was one, or may have been.
    pub(super) async fn next(&self, limit: Duration) -> bool {
        let Some(watch) = &self.0 else {
            sleep(limit.min(BLIND)).await;
            return false;
        };
        let changed = async {
            let Ok(mut ready) = watch.readable().await else {
                return sleep(BLIND).await;
            };
            ready.clear_ready();
            sleep(SETTLE).await;
        };
        let changed = timeout(limit.min(FALLBACK), changed).await.is_ok();
        let mut buffer = [0; BUFFER];
        while nix::unistd::read(watch, &mut buffer).is_ok_and(|length| length > 0) {}
        changed
    }
}

fn watch(queue: &Path) -> Result<OwnedFd, Errno> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(queue, changes)?;
    Ok(inotify.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn what_ends_a_claim_is_noticed_and_nothing_else_wakes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        let limit = Duration::from_secs(60);
        let noticed = async |what: &str, change: &dyn Fn()| {
            let changes = Changes::of(dir.path());
            change();
            let begun = Instant::now();
            changes.next(limit).await;
            assert!(begun.elapsed() < FALLBACK / 2, "{what}");
        };
        noticed("a new file", &|| std::fs::write(&path, "x").unwrap()).await;
        let held = std::cell::RefCell::new(Some(std::fs::File::options().write(true).open(&path)));
        noticed("the last close", &|| drop(held.take())).await;
        let renamed = path.with_extension("granted");
        noticed("a new name", &|| std::fs::rename(&path, &renamed).unwrap()).await;
        noticed("a removal", &|| std::fs::remove_file(&renamed).unwrap()).await;

        // Who only looks wakes nobody.
        std::fs::write(&path, "x").unwrap();
        let changes = Changes::of(dir.path());
        for _ in 0..3 {
            std::fs::read(&path).unwrap();
            std::fs::read_dir(dir.path()).unwrap().count();
        }
        let begun = Instant::now();
        changes.next(Duration::from_millis(300)).await;
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_watched_is_looked_at_now_and_then() {
        let changes = Changes::of(Path::new("/nonexistent/queue"));
        let begun = Instant::now();
        changes.next(Duration::from_secs(60)).await;
        assert!(begun.elapsed() < FALLBACK / 2);
    }
}
