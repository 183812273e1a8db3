//! VMs and clusters as test fixtures: [`#[fleetbox::test]`](macro@crate::test), and the same as
//! functions.
//!
//! ```no_run
//! use fleetbox::{Size, Vm, testing};
//!
//! # /*
//! #[test]
//! # */
//! fn answers() {
//!     let vm = Vm::test().image("debian-12").memory(Size::gib(1));
//!     testing::run(vm, async |vm| -> fleetbox::Result<()> {
//!         assert!(vm.ssh("true").await?.success());
//!         Ok(())
//!     });
//! }
//! # answers();
//! ```
//!
//! - **Names** of VMs and clusters consist of the test's path and a random part.
//! - **Where VMs cannot run**, a test is skipped: it passes, and prints the reason to standard error. With
//!   `FLEETBOX_REQUIRE=1` it fails instead. With `FLEETBOX_SHORT=1` it is always skipped.
//! - **When a test fails**, by a panic or an error, its output contains the end of each VM's
//!   console and, if the guest runs systemd, the failed units.
//! - **`FLEETBOX_KEEP=1`** keeps the VMs of a failed test running, and prints how to log in. They
//!   keep their memory until they are removed. The VMs of a killed test are not kept.
//! - **Memory** is shared by all tests, so a test may wait for others; see
//!   [`budget`](crate::budget).
//!
//! The VM lives until the test ends, even if the test drops its handle earlier.

mod report;
mod settings;
mod subject;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt::Debug;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use futures::FutureExt as _;

use self::expansion::Call;
use self::settings::Settings;
#[cfg(test)]
pub(crate) use self::settings::is_required;
pub use self::settings::{KEEP_VARIABLE, REQUIRE_VARIABLE, SHORT_VARIABLE};
pub use self::subject::{BlockingFixture, BlockingSubject, Fixture, Subject};
use crate::vm::Vm;

/// Starts the VM or cluster of `builder` and runs `body` with it, in a plain `#[test]`. The test
/// fails if `body` does.
///
/// A VM of [`Vm::builder`](crate::Vm::builder) keeps its name. A VM of
/// [`Vm::test`](crate::Vm::test) is named after the function that contains `body`.
///
/// ```no_run
/// # use fleetbox::{Cluster, testing};
/// # /*
/// #[test]
/// # */
/// fn members_reach_each_other() {
///     testing::run(Cluster::test().count(2), async |cluster| -> fleetbox::Result<()> {
///         assert!(cluster.vm("node-1")?.ssh("ping -c 1 node-2").await?.success());
///         Ok(())
///     });
/// }
/// # members_reach_each_other();
/// ```
///
/// # Panics
/// If the test fails.
pub fn run<B, F, T>(builder: B, body: F)
where
    B: Fixture,
    F: AsyncFnOnce(B::Subject) -> T,
    T: Outcome,
{
    expansion::run(Call::of(&body), builder, body);
}

/// Like [`run`], for a `#[tokio::test]`.
///
/// ```no_run
/// # use fleetbox::{Vm, testing};
/// # /*
/// #[tokio::test]
/// # */
/// async fn answers() {
///     testing::run_async(Vm::test(), async |vm| {
///         assert!(vm.ssh("true").await.unwrap().success());
///     })
///     .await;
/// }
/// # drop(answers());
/// ```
///
/// # Panics
/// If the test fails.
pub async fn run_async<B, F, T>(builder: B, body: F)
where
    B: Fixture,
    F: AsyncFnOnce(B::Subject) -> T,
    T: Outcome,
{
    let call = Call::of(&body);
    let end = drive(&call, Settings::from_env(), builder, body).await;
    end.conclude(&call);
}

/// Like [`run`], with the blocking API.
///
/// ```no_run
/// # use fleetbox::{blocking, testing};
/// # /*
/// #[test]
/// # */
/// fn answers() {
///     testing::run_blocking(blocking::Vm::test(), |vm| {
///         assert!(vm.ssh("true").unwrap().success());
///     });
/// }
/// # answers();
/// ```
///
/// # Panics
/// If the test fails.
pub fn run_blocking<B, F, T>(builder: B, body: F)
where
    B: BlockingFixture,
    F: FnOnce(B::Subject) -> T,
    T: Outcome,
{
    expansion::run_blocking(Call::of(&body), builder, body);
}

/// What a test may return: `()`, or a `Result<(), E>` whose error implements [`Debug`].
///
/// ```
/// fn is_outcome<T: fleetbox::testing::Outcome>() {}
///
/// is_outcome::<()>();
/// is_outcome::<Result<(), std::io::Error>>();
/// ```
#[diagnostic::on_unimplemented(
    message = "a fleetbox test returns `()` or a `Result<(), E>` whose error implements `Debug`",
    label = "returns `{Self}`"
)]
pub trait Outcome: sealed::Outcome {}

impl Outcome for () {}
impl<E: Debug + 'static> Outcome for Result<(), E> {}

mod sealed {
    pub trait Outcome {
        /// Why the test failed, if it did.
        fn failure(self) -> Option<String>;
    }
}

impl sealed::Outcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: Debug + 'static> sealed::Outcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        // The errors of this crate have a readable `Debug`.
        self.err().map(|error| format!("{error:?}"))
    }
}

/// How a test ended, and what to report about it.
struct End {
    verdict: Verdict,
    /// The report about its VMs.
    report: String,
}

enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
    Panicked(Box<dyn Any + Send>),
}

impl From<Verdict> for End {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict,
            report: String::new(),
        }
    }
}

impl End {
    /// Reports the result to the test harness.
    fn conclude(self, call: &Call) {
        // Test harnesses show only printed output, and only for failed tests.
        if !self.report.is_empty() {
            eprint!("{}", self.report);
        }
        match self.verdict {
            Verdict::Passed => {}
            Verdict::Skipped(reason) => {
                // Write past the harness's capture: this line is the only trace of a skipped test.
                let line = format!("fleetbox: skipped {}: {reason}\n", call.path);
                let _ = std::io::stderr().write_all(line.as_bytes());
                if let Some(expected) = call.should_panic {
                    panic::resume_unwind(Box::new(format!("{expected} (skipped: {reason})")));
                }
            }
            Verdict::Failed(why) => {
                eprintln!("Error: {why}");
                // The location of a panic in this function would say nothing.
                panic::resume_unwind(Box::new(why));
            }
            Verdict::Panicked(panic) => panic::resume_unwind(panic),
        }
    }
}

/// How the body of a test ended: with or without a failure, or with a panic.
type BodyResult = Result<Option<String>, Box<dyn Any + Send>>;

/// A running test.
struct Session {
    keep: bool,
    /// More handles on the VMs, so that the VMs outlive the test's handles.
    vms: Vec<Arc<Vm>>,
}

impl Session {
    /// Starts the VM or cluster for the test, or returns the test's verdict if that is not
    /// possible.
    async fn begin<B: Fixture>(
        call: &Call,
        settings: Settings,
        builder: B,
    ) -> Result<(Self, B::Subject), End> {
        match settings.skip(builder.needs_host()) {
            Ok(None) => {}
            Ok(Some(reason)) => return Err(Verdict::Skipped(reason).into()),
            Err(why) => return Err(Verdict::Failed(why).into()),
        }
        match builder.for_test(call.path).start_fixture().await {
            Ok(running) => {
                let vms = B::handles(&running);
                let keep = settings.keep;
                Ok((Self { keep, vms }, running))
            }
            // The error contains the end of the console.
            Err(error) => Err(Verdict::Failed(error.to_string()).into()),
        }
    }

    /// Reports on the VMs of a failed test, and keeps them if the user asks for that.
    async fn finish(self, call: &Call, ended: BodyResult) -> End {
        let verdict = match ended {
            Ok(None) => Verdict::Passed,
            Ok(Some(why)) => Verdict::Failed(why),
            Err(panic) => Verdict::Panicked(panic),
        };
        let failed = match &verdict {
            Verdict::Passed | Verdict::Skipped(_) => false,
            Verdict::Failed(_) => true,
            Verdict::Panicked(_) => call.should_panic.is_none(),
        };
        let mut end = End::from(verdict);
        if failed {
            for vm in &self.vms {
                end.report.push_str(&report::describe(vm).await);
            }
            if self.keep {
                for vm in &self.vms {
                    end.report.push_str(&report::keep(vm).await);
                }
            }
        }
        end
    }
}

async fn drive<B, F, T>(call: &Call, settings: Settings, builder: B, body: F) -> End
where
    B: Fixture,
    F: AsyncFnOnce(B::Subject) -> T,
    T: Outcome,
{
    let (session, running) = match Session::begin(call, settings, builder).await {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    let ended = AssertUnwindSafe(body(running)).catch_unwind().await;
    session
        .finish(call, ended.map(sealed::Outcome::failure))
        .await
}

/// A runtime for one test. It has several threads, so the library's background work goes on while
/// the test's code blocks its thread.
fn runtime() -> Result<tokio::runtime::Runtime, End> {
    if tokio::runtime::Handle::try_current().is_ok() {
        let why = "this test already runs in a tokio runtime; use fleetbox::testing::run_async";
        return Err(Verdict::Failed(why.to_owned()).into());
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fleetbox-test")
        .enable_all()
        .build()
        .map_err(|error| Verdict::Failed(format!("cannot start threads: {error}")).into())
}

/// What the expansion of the attribute calls. Do not use it directly: it may change in any version.
#[doc(hidden)]
pub mod expansion {
    use super::{
        AssertUnwindSafe, BlockingFixture, Fixture, Outcome, Session, Settings, drive, panic,
        runtime, sealed,
    };

    /// Identifies a test.
    #[derive(Debug, Clone)]
    pub struct Call {
        /// Module path and name of the function.
        pub path: &'static str,
        /// The test must panic, with a message that contains this text.
        pub should_panic: Option<&'static str>,
    }

    impl Call {
        /// Identifies the test that a closure or function belongs to, by the path in the name of
        /// its type.
        pub(super) fn of<F>(_: &F) -> Self {
            let path = std::any::type_name::<F>();
            Self {
                // Cut off the closures within the function.
                path: path.split("::{").next().unwrap_or(path),
                should_panic: None,
            }
        }
    }

    /// Lets the test's `configure` function change the builder.
    pub fn configure<B>(builder: B, configure: impl FnOnce(B) -> B) -> B {
        configure(builder)
    }

    /// Runs an asynchronous test.
    pub fn run<B, F, T>(call: Call, builder: B, body: F)
    where
        B: Fixture,
        F: AsyncFnOnce(B::Subject) -> T,
        T: Outcome,
    {
        let end = match runtime() {
            Ok(runtime) => {
                let end = runtime.block_on(drive(&call, Settings::from_env(), builder, body));
                // Do not wait for tasks that the test left running.
                runtime.shutdown_background();
                end
            }
            Err(end) => end,
        };
        end.conclude(&call);
    }

    /// Runs a blocking test.
    pub fn run_blocking<B, F, T>(call: Call, builder: B, body: F)
    where
        B: BlockingFixture,
        F: FnOnce(B::Subject) -> T,
        T: Outcome,
    {
        let end = match runtime() {
            Ok(runtime) => {
                let begin = Session::begin(&call, Settings::from_env(), builder.into_async());
                let end = match runtime.block_on(begin) {
                    Ok((session, running)) => {
                        let body = AssertUnwindSafe(|| body(B::blocking(running)));
                        let ended = panic::catch_unwind(body).map(sealed::Outcome::failure);
                        runtime.block_on(session.finish(&call, ended))
                    }
                    Err(end) => end,
                };
                runtime.shutdown_background();
                end
            }
            Err(end) => end,
        };
        end.conclude(&call);
    }
}
