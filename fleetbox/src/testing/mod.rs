//! VMs and clusters as fixtures of tests: [`#[fleetbox::test]`](macro@crate::test), and the same
//! as functions.
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
//! - **Names** of VMs and clusters are made of the test's path and something random.
//! - **Where VMs cannot run** the test is skipped: it passes, and says so and why on standard error.
//!   With `FLEETBOX_REQUIRE=1` it fails instead, with `FLEETBOX_SHORT=1` it is always skipped.
//! - **When a test fails**, by a panic or an error, its output has the end of each VM's console
//!   and, where the guest runs systemd, the units that have failed.
//! - **`FLEETBOX_KEEP=1`** lets the VMs of a failed test run on, and prints how to enter them. They
//!   have their memory until they are removed. Those of a test that is killed go with it.
//! - **Memory** is shared by all tests, see [`budget`](crate::budget): a test may wait for others.
//!
//! The VM lives until the test has ended, even if the test drops its handle earlier.

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

/// Starts the VM or cluster of `builder`, gives it to `body`, and fails as it does; for a plain
/// `#[test]`.
///
/// A name that was given by [`Vm::builder`](crate::Vm::builder) stays; one of
/// [`Vm::test`](crate::Vm::test) is made of the path of the function that `body` is written in.
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
/// If the test fails: that is how a test says so.
pub fn run<B, F, T>(builder: B, body: F)
where
    B: Fixture,
    F: AsyncFnOnce(B::Running) -> T,
    T: Outcome,
{
    expansion::run(Call::of(&body), builder, body);
}

/// As [`run`], for a `#[tokio::test]`.
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
/// As [`run`].
pub async fn run_async<B, F, T>(builder: B, body: F)
where
    B: Fixture,
    F: AsyncFnOnce(B::Running) -> T,
    T: Outcome,
{
    let call = Call::of(&body);
    let end = drive(&call, Settings::from_env(), builder, body).await;
    end.conclude(&call);
}

/// As [`run`], with the blocking façade.
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
/// As [`run`].
pub fn run_blocking<B, F, T>(builder: B, body: F)
where
    B: BlockingFixture,
    F: FnOnce(B::Running) -> T,
    T: Outcome,
{
    expansion::run_blocking(Call::of(&body), builder, body);
}

/// What a test may return: nothing, or a `Result<(), E>` whose error has [`Debug`].
///
/// ```
/// fn is_outcome<T: fleetbox::testing::Outcome>() {}
///
/// is_outcome::<()>();
/// is_outcome::<Result<(), std::io::Error>>();
/// ```
#[diagnostic::on_unimplemented(
    message = "a fleetbox test returns `()` or a `Result<(), E>` whose error has `Debug`",
    label = "returns `{Self}`"
)]
pub trait Outcome: sealed::Outcome {}

impl Outcome for () {}
impl<E: Debug + 'static> Outcome for Result<(), E> {}

mod sealed {
    pub trait Outcome {
        /// Why the test has failed, if it has.
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
        self.err().map(|error| describe(&error))
    }
}

/// An error for people: those of this crate are written to be shown, others may have no more than
/// `Debug`.
fn describe<E: Debug + 'static>(error: &E) -> String {
    type Boxed = Box<dyn std::error::Error>;
    type BoxedSend = Box<dyn std::error::Error + Send + Sync>;
    let any: &dyn Any = error;
    let own = any
        .downcast_ref::<crate::error::Error>()
        .or_else(|| any.downcast_ref::<Boxed>()?.downcast_ref())
        .or_else(|| any.downcast_ref::<BoxedSend>()?.downcast_ref());
    match own {
        Some(own) => own.to_string(),
        None => format!("{error:?}"),
    }
}

/// How a test ended, and what there is to say about it.
struct End {
    verdict: Verdict,
    /// What is said about the VMs.
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
    /// Says it to the test's harness, in the way that it understands.
    fn conclude(self, call: &Call) {
        // Harnesses show what is printed, and only that, where a test has failed.
        if !self.report.is_empty() {
            eprint!("{}", self.report);
        }
        match self.verdict {
            Verdict::Passed => {}
            Verdict::Skipped(reason) => {
                // Not captured, as it is the only trace of a test that did not run.
                let line = format!("fleetbox: skipped {}: {reason}\n", call.path);
                let _ = std::io::stderr().write_all(line.as_bytes());
                if let Some(expected) = call.should_panic {
                    panic::resume_unwind(Box::new(format!("{expected} (skipped: {reason})")));
                }
            }
            Verdict::Failed(why) => {
                eprintln!("Error: {why}");
                // The place of a panic in here would tell nothing.
                panic::resume_unwind(Box::new(why));
            }
            Verdict::Panicked(panic) => panic::resume_unwind(panic),
        }
    }
}

/// How a test's body ended: with a failure, without one, or with a panic.
type Ended = Result<Option<String>, Box<dyn Any + Send>>;

/// A test that runs.
struct Session {
    keep: bool,
    /// Handles of their own, so that the VMs outlive the test's.
    vms: Vec<Arc<Vm>>,
}

impl Session {
    /// Starts what the test is given, or says how the test ends without.
    async fn begin<B: Fixture>(
        call: &Call,
        settings: Settings,
        builder: B,
    ) -> Result<(Self, B::Running), End> {
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
            // It has the console's end.
            Err(error) => Err(Verdict::Failed(error.to_string()).into()),
        }
    }

    /// Says what there is to say about the VMs of a test that has failed, and keeps them if that
    /// is asked for.
    async fn finish(self, call: &Call, ended: Ended) -> End {
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
    F: AsyncFnOnce(B::Running) -> T,
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

/// A runtime for one test. Background work of the library goes on while the test's own code
/// blocks its thread.
fn runtime() -> Result<tokio::runtime::Runtime, End> {
    if tokio::runtime::Handle::try_current().is_ok() {
        let why = "this test runs in a tokio runtime already: use fleetbox::testing::run_async";
        return Err(Verdict::Failed(why.to_owned()).into());
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fleetbox-test")
        .enable_all()
        .build()
        .map_err(|error| Verdict::Failed(format!("cannot start threads: {error}")).into())
}

/// What the attribute's expansion calls. Not for use by hand: it may change with each version.
#[doc(hidden)]
pub mod expansion {
    use super::{
        AssertUnwindSafe, BlockingFixture, Fixture, Outcome, Session, Settings, drive, panic,
        runtime, sealed,
    };

    /// Which test it is.
    #[derive(Debug, Clone)]
    pub struct Call {
        /// Module path and name of the function.
        pub path: &'static str,
        /// The test is to panic, with a message that contains this.
        pub should_panic: Option<&'static str>,
    }

    impl Call {
        /// The test that a closure or function belongs to, by the path in the name of its type.
        pub(super) fn of<F>(_: &F) -> Self {
            let path = std::any::type_name::<F>();
            Self {
                // The function is what its closures are in.
                path: path.split("::{").next().unwrap_or(path),
                should_panic: None,
            }
        }
    }

    /// Gives the builder to the function that the test configures it by.
    pub fn configure<B>(builder: B, configure: impl FnOnce(B) -> B) -> B {
        configure(builder)
    }

    /// Runs an asynchronous test.
    pub fn run<B, F, T>(call: Call, builder: B, body: F)
    where
        B: Fixture,
        F: AsyncFnOnce(B::Running) -> T,
        T: Outcome,
    {
        let end = match runtime() {
            Ok(runtime) => {
                let end = runtime.block_on(drive(&call, Settings::from_env(), builder, body));
                // What the test has left running is not waited for.
                runtime.shutdown_background();
                end
            }
            Err(end) => end,
        };
        end.conclude(&call);
    }

    /// Runs a test that blocks.
    pub fn run_blocking<B, F, T>(call: Call, builder: B, body: F)
    where
        B: BlockingFixture,
        F: FnOnce(B::Running) -> T,
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
