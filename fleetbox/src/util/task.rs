//! Runs blocking work of an async program.

use crate::util::readable::readable_debug;

/// The current tokio runtime is shutting down.
///
/// ```
/// assert_eq!(fleetbox::ShuttingDown.to_string(), "the tokio runtime is shutting down");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tokio runtime is shutting down")]
pub struct ShuttingDown;

readable_debug!(ShuttingDown);

/// Runs blocking work on a separate thread.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<ShuttingDown> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ShuttingDown.into()),
        },
    }
}
