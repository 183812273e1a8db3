//! The events of a running VM.

use tokio::net::UnixStream;

use crate::error::Result;
use crate::model::event::TimedEvent;
use crate::process::EventStream;

/// The events of one run of a VM; see [`Vm::events`](crate::Vm::events).
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
/// use fleetbox::Event;
///
/// let mut events = vm.events().await?;
/// while let Some(event) = events.next().await? {
///     if let Event::Panic { message } = event.event {
///         println!("the guest's kernel panicked: {message}");
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events(EventStream);

impl Events {
    pub(crate) fn new(cluster: &str, stream: UnixStream) -> Self {
        Self(EventStream::new(cluster, stream))
    }

    /// Waits for the next event; `None` after the last event of the run. This is not cancel-safe:
    /// if the future is dropped before it is ready, the stream of events can no longer be used.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let mut events = vm.events().await?;
    /// while let Some(event) = events.next().await? {
    ///     println!("{} ms: {:?}", event.at, event.event);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Process`](crate::Error::Process) if the worker has gone.
    pub async fn next(&mut self) -> Result<Option<TimedEvent>> {
        Ok(self.0.next().await?)
    }
}
