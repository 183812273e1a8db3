//! A writer for a sink that may be slow.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::backlog::Backlog;
use crate::sync::lock;

/// A sink that has accepted nothing for this long counts as stuck.
const PATIENCE: Duration = Duration::from_secs(1);
/// Maximum bytes written at once: a pipe accepts this many completely or not at all.
const CHUNK: usize = 4096;
/// So many writes go to the sink directly, as long as it takes them at once. For more there is a thread.
const DIRECT_WRITES: u32 = 64;
/// How long to wait before trying again to write to a sink that is full.
const RETRY: Duration = Duration::from_millis(10);

/// The note that replaces lost bytes.
type Note = fn(u64) -> String;

#[derive(Debug, Default)]
struct State {
    backlog: Backlog,
    /// Bytes that the thread has taken from the backlog, and the sink has not accepted yet.
    pending: usize,
    /// Number of dropped bytes.
    lost: u64,
    /// How often the sink has accepted something.
    progress: u64,
    /// The sink is stuck: no writer waits for it until it accepts bytes again.
    stuck: bool,
    /// No more output will be written.
    finished: bool,
    /// The thread has ended, with the error if there was one.
    over: bool,
    failed: Option<io::ErrorKind>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    patience: Duration,
    note: Note,
}

/// A writer for a sink that may block. A thread passes the output on, once there is more of it than a few short writes or
/// the sink does not take them at once.
///
/// While the sink accepts bytes, none is lost, because a full [`Backlog`] makes writers wait. If the sink accepts
/// nothing for a second, writers stop waiting for it. Once it accepts bytes again, it gets a note about lost bytes and
/// then the backlog. So no write waits longer than a second for room. A pipe accepts bytes only after 4 KiB have been
/// read from it, so a reader that needs more than a second for these counts as stuck.
///
/// Clones write to the same sink. The thread ends once all of them are gone, or after [`Self::finish`], and the sink
/// has everything.
///
/// ```no_run
/// use fleetbox_vmm::machine::{Machine, MachineConfig};
/// use fleetbox_vmm::output::BoundedWriter;
/// # use std::{error::Error, io, sync::Arc};
/// # fn example(hypervisor: Arc<dyn fleetbox_vmm::hypervisor::Hypervisor>) -> Result<(), Box<dyn Error>> {
///
/// let console = BoundedWriter::start(io::stdout(), |lost| format!("[{lost} bytes lost]\n"));
/// let config = MachineConfig {
///     serial: Some(Box::new(console.clone())),
///     ..MachineConfig::default()
/// };
/// Machine::start(&hypervisor, config)?.wait()?;
/// let lost = console.finish();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct BoundedWriter(Arc<Front>);

impl BoundedWriter {
    /// A writer for `sink`. `note` makes the text that replaces this many lost bytes; it may be empty.
    pub fn start(sink: impl Write + AsFd + Send + 'static, note: fn(u64) -> String) -> Self {
        Self::with_patience(sink, note, PATIENCE)
    }

    fn with_patience(
        sink: impl Write + AsFd + Send + 'static,
        note: Note,
        patience: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            patience,
            note,
        });
        let direct = Direct {
            sink: Box::new(sink),
            left: DIRECT_WRITES,
        };
        Self(Arc::new(Front {
            shared,
            direct: Mutex::new(Some(direct)),
        }))
    }

    /// Waits until the sink has everything, or has accepted nothing for a second. Returns how many bytes it had not
    /// accepted by then. Later writes are lost, too. The error of a failed sink was already returned to the writers,
    /// and is ignored here.
    pub fn finish(&self) -> u64 {
        let shared = &*self.0.shared;
        // Without a thread, the sink has everything.
        let without_thread = lock(&self.0.direct).take().is_some();
        let mut state = shared.lock();
        state.finished = true;
        state.over |= without_thread;
        shared.changed.notify_all();
        let mut waits = true;
        while waits && !state.over {
            (state, waits) = shared.wait_for_progress(state);
        }
        let unread = state.backlog.len() + state.pending;
        state.lost + state.backlog.lost() + unread as u64
    }
}

impl Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

impl Write for &BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &*self.0.shared;
        let taken = self.0.write_directly(bytes)?;
        if taken > 0 {
            // The caller comes back with the rest, for which there is a thread now.
            return Ok(taken);
        }
        // No more than can be kept; the caller comes back with the rest.
        let bytes = bytes.get(..Backlog::CAPACITY).unwrap_or(bytes);
        let mut state = shared.lock();
        while !state.takes(bytes.len()) {
            let waits;
            (state, waits) = shared.wait_for_progress(state);
            state.stuck = !waits;
        }
        if let Some(kind) = state.failed {
            return Err(kind.into());
        }
        if state.finished {
            state.lost += bytes.len() as u64;
            return Ok(bytes.len());
        }
        let idle = state.backlog.is_empty();
        state.backlog.push(bytes);
        if idle {
            shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    /// Does nothing, because the sink is flushed after every write. See [`BoundedWriter::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writers' side. When it is dropped, no more output comes.
#[derive(Debug)]
struct Front {
    shared: Arc<Shared>,
    /// The sink, until there is a thread that has it.
    direct: Mutex<Option<Direct>>,
}

impl Front {
    /// Writes to the sink itself, if there is no thread yet. Returns how much it has taken. If that is not everything,
    /// there is a thread from then on.
    fn write_directly(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut direct = lock(&self.direct);
        let Some(front) = &mut *direct else {
            return Ok(0);
        };
        let result = front.write(bytes);
        if matches!(&result, Ok(taken) if *taken == bytes.len()) {
            return result;
        }
        let Some(Direct { sink, .. }) = direct.take() else {
            return result;
        };
        if let Err(error) = &result {
            let mut state = self.shared.lock();
            state.failed = Some(error.kind());
            state.over = true;
            return result;
        }
        let thread = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || thread.pass_on(sink));
        if let Err(error) = started {
            let mut state = self.shared.lock();
            state.failed = Some(error.kind());
            state.over = true;
            return Err(error);
        }
        result
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.lock().finished = true;
        self.shared.changed.notify_all();
    }
}

/// A sink whose readiness can be asked for.
trait Sink: Write + AsFd + Send {}

impl<T: Write + AsFd + Send> Sink for T {}

/// A sink without a thread.
struct Direct {
    sink: Box<dyn Sink>,
    /// How many writes may still go to it.
    left: u32,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Direct {
    /// Writes as much as the sink takes without waiting, which is nothing if it is not certain.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 || bytes.len() > CHUNK {
            return Ok(0);
        }
        self.left -= 1;
        let mut fds = [PollFd::new(self.sink.as_fd(), PollFlags::POLLOUT)];
        if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            return Ok(0);
        }
        match self.sink.write(bytes) {
            Ok(taken) => {
                self.sink.flush()?;
                Ok(taken)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

impl State {
    /// True if a writer of `len` bytes need not wait for the sink.
    fn takes(&self, len: usize) -> bool {
        let room = Backlog::CAPACITY.saturating_sub(self.backlog.len());
        // However much it is, nothing waits in front of it then.
        len <= room || self.backlog.is_empty() || self.stuck || self.finished || self.over
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until the sink has accepted something or the thread has ended. Returns false if neither happened in time.
    fn wait_for_progress<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, bool) {
        let before = state.progress;
        let same = |state: &mut State| state.progress == before && !state.over;
        let waited = self.changed.wait_timeout_while(state, self.patience, same);
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        (state, !result.timed_out())
    }

    /// The thread.
    fn pass_on(&self, mut sink: impl Write) {
        let result = self.pass_all(&mut sink);
        let mut state = self.lock();
        state.over = true;
        if let Err(error) = result {
            state.failed = Some(error.kind());
            state.backlog = Backlog::default();
            state.pending = 0;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn pass_all(&self, sink: &mut impl Write) -> io::Result<()> {
        loop {
            let idle = |state: &mut State| state.backlog.is_empty() && !state.finished;
            let waited = self.changed.wait_while(self.lock(), idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            if state.backlog.is_empty() {
                return Ok(());
            }
            let (lost, bytes) = state.backlog.take(CHUNK);
            state.lost += lost;
            state.pending = bytes.len();
            drop(state);
            if lost > 0 {
                self.hand_over(sink, (self.note)(lost).as_bytes(), bytes.len())?;
            }
            self.hand_over(sink, &bytes, 0)?;
            sink.flush()?;
        }
    }

    /// Writes `bytes`. Another `pending` bytes are waiting behind them.
    fn hand_over(&self, sink: &mut impl Write, bytes: &[u8], pending: usize) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    rest = rest.get(taken..).unwrap_or_default();
                    let mut state = self.lock();
                    state.progress = state.progress.wrapping_add(1);
                    state.pending = if pending > 0 { pending } else { rest.len() };
                    state.stuck = false;
                    drop(state);
                    self.changed.notify_all();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process on the same terminal or pipe may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    fn note(lost: u64) -> String {
        format!("[{lost}]\n")
    }

    /// A writer whose sink is one end of a socket pair, and the other end.
    fn pair(patience: Duration) -> (BoundedWriter, UnixStream) {
        let (sink, reader) = UnixStream::pair().unwrap();
        let limit = Some(Duration::from_secs(30));
        reader.set_read_timeout(limit).unwrap();
        let writer = BoundedWriter::with_patience(sink, note, patience);
        (writer, reader)
    }

    /// Lines with numbers, `len` bytes in all.
    fn lines(len: usize) -> Vec<u8> {
        let mut lines = Vec::with_capacity(len + 16);
        for number in 0.. {
            if lines.len() >= len {
                break;
            }
            lines.extend(format!("{number:07}\n").bytes());
        }
        lines
    }

    #[test]
    fn a_few_short_writes_need_no_thread() {
        let (mut writer, mut reader) = pair(SHORT);
        let has_thread = |writer: &BoundedWriter| lock(&writer.0.direct).is_none();
        let mut buffer = [0; 16];
        for _ in 0..DIRECT_WRITES {
            writer.write_all(b"line\n").unwrap();
            assert!(!has_thread(&writer));
            assert_eq!(reader.read(&mut buffer).unwrap(), 5);
        }
        writer.write_all(b"more\n").unwrap();
        assert!(has_thread(&writer));
        reader.read_exact(&mut buffer[..5]).unwrap();
        assert_eq!(&buffer[..5], b"more\n");
        assert_eq!(writer.finish(), 0);
        // What is written after the end is lost, with a thread or without.
        let (mut writer, _reader) = pair(SHORT);
        assert_eq!(writer.finish(), 0);
        writer.write_all(b"late").unwrap();
        assert_eq!(writer.finish(), 4);
    }

    #[test]
    fn short_writes_to_a_full_sink_get_a_thread_and_arrive_in_order() {
        let (mut writer, mut reader) = pair(Duration::from_secs(30));
        let sent = lines(40 * CHUNK);
        // More than a socket holds, in pieces that are written directly as long as they fit.
        for part in sent.chunks(CHUNK - 1) {
            writer.write_all(part).unwrap();
        }
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == sent);
        assert_eq!(writer.finish(), 0);
    }

    #[test]
    fn a_reader_that_is_slow_gets_everything() {
        let (mut writer, mut reader) = pair(Duration::from_secs(30));
        let sent = lines(3 * Backlog::CAPACITY);
        let expected = sent.clone();
        let reading = std::thread::spawn(move || {
            // Longer than it takes to fill the backlog.
            std::thread::sleep(SHORT);
            let mut received = Vec::new();
            let mut buffer = [0; 64 << 10];
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                received.extend_from_slice(&buffer[..len]);
                std::thread::sleep(Duration::from_millis(2));
            }
            received
        });
        for part in sent.chunks(5000) {
            writer.write_all(part).unwrap();
        }
        assert_eq!(writer.finish(), 0);
        drop(writer);
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn no_write_waits_long_for_a_reader_that_does_not_read() {
        let (mut writer, _reader) = pair(SHORT);
        let start = Instant::now();
        for _ in 0..64 {
            writer.write_all(&[b'x'; 128 << 10]).unwrap();
        }
        let lost = writer.finish();
        // Once for all writes, and once at the end.
        let took = start.elapsed();
        assert!(took >= SHORT && took < Duration::from_secs(10), "{took:?}");
        assert!(lost > 6 << 20 && lost < 8 << 20, "{lost}");
        assert!(writer.0.shared.lock().backlog.len() <= Backlog::CAPACITY);
        assert_eq!(writer.write(b"late").unwrap(), 4);
        assert_eq!(writer.finish(), lost + 4);
    }

    #[test]
    fn a_reader_that_goes_on_gets_the_newest_and_a_note() {
        let (mut writer, mut reader) = pair(SHORT);
        let sent = lines(5 * Backlog::CAPACITY);
        for part in sent.chunks(1000) {
            writer.write_all(part).unwrap();
        }
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        // However slow the reader is: the thread goes on until it has everything.
        drop(writer);
        let received = String::from_utf8(reading.join().unwrap()).unwrap();
        let at = received.find('[').unwrap();
        let (before, rest) = received.split_at(at);
        let (noted, after) = rest.split_once('\n').unwrap();
        let noted = noted.trim_matches(['[', ']']);
        let lost: usize = noted.parse().unwrap();
        assert!(sent.starts_with(before.as_bytes()));
        assert!(sent.ends_with(after.as_bytes()));
        // What is left begins with a whole line.
        assert_eq!(after.len() % 8, 0);
        assert_eq!(before.len() + lost + after.len(), sent.len());
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_of_the_writer() {
        let (mut writer, reader) = pair(Duration::from_secs(30));
        drop(reader);
        let end = Instant::now() + Duration::from_secs(10);
        while writer.write(b"anybody there?").is_ok() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(
            writer.write(b"?").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(writer.finish(), 0);
    }

    #[test]
    fn a_sink_that_cannot_take_bytes_now_gets_them_later() {
        let (sink, mut reader) = UnixStream::pair().unwrap();
        sink.set_nonblocking(true).unwrap();
        let mut writer = BoundedWriter::with_patience(sink, note, Duration::from_secs(30));
        let sent = lines(Backlog::CAPACITY);
        writer.write_all(&sent).unwrap();
        // The sink is full by now, or will be.
        std::thread::sleep(Duration::from_millis(30));
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == sent);
        assert_eq!(writer.finish(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn a_backlog_keeps_the_end_and_counts_the_rest(
            parts in prop::collection::vec((0..Backlog::CAPACITY * 2, any::<bool>()), 1..6),
        ) {
            let mut backlog = Backlog::default();
            let mut sent = Vec::new();
            for (len, broken) in parts {
                let part = if broken { lines(len) } else { vec![b'x'; len] };
                sent.extend_from_slice(&part);
                backlog.push(&part);
                prop_assert!(backlog.len() <= Backlog::CAPACITY);
            }
            let (lost, mut kept) = backlog.take(1000);
            let (none, rest) = backlog.take(usize::MAX);
            kept.extend(rest);
            prop_assert_eq!(none, 0);
            prop_assert!(sent.ends_with(&kept));
            prop_assert_eq!(lost as usize + kept.len(), sent.len());
            if sent.len() <= Backlog::CAPACITY {
                prop_assert_eq!(lost, 0);
            }
            prop_assert!(backlog.is_empty());
        }
    }
}
