//! The VMs and clusters that tests get, and the builders that start them.

use std::future::Future;
use std::sync::Arc;

use crate::blocking;
use crate::error::Result;
use crate::progress;
use crate::progress::Progress;
use crate::vm::Vm;
use crate::vm::builder::VmBuilder;
use crate::vm::cluster::{Cluster, ClusterBuilder};

mod sealed {
    pub trait Sealed {}
}

/// A builder that starts the VM or cluster of an asynchronous test: [`VmBuilder`] or
/// [`ClusterBuilder`].
///
/// ```
/// use fleetbox::testing::{self, Fixture};
/// use fleetbox::{Cluster, Vm};
///
/// fn is_fixture(_: &impl Fixture) {}
///
/// is_fixture(&Vm::test());
/// is_fixture(&Cluster::test().count(3));
/// ```
#[diagnostic::on_unimplemented(
    message = "an asynchronous test gets a `fleetbox::Vm` or a `fleetbox::Cluster`",
    note = "pass a builder, such as `Vm::test()` or `Cluster::test()`"
)]
pub trait Fixture: sealed::Sealed + Sized {
    /// What the test gets.
    type Subject;

    #[doc(hidden)]
    fn needs_host(&self) -> bool;
    #[doc(hidden)]
    fn for_test(self, path: &str) -> Self;
    #[doc(hidden)]
    fn start_fixture(self) -> impl Future<Output = Result<Self::Subject>>;
    #[doc(hidden)]
    fn handles(running: &Self::Subject) -> Vec<Arc<Vm>>;
}

impl sealed::Sealed for VmBuilder {}
impl sealed::Sealed for ClusterBuilder {}

impl Fixture for VmBuilder {
    type Subject = Vm;

    fn needs_host(&self) -> bool {
        self.needs_kvm()
    }

    fn for_test(self, path: &str) -> Self {
        self.named_after(path)
    }

    fn start_fixture(self) -> impl Future<Output = Result<Vm>> {
        self.start()
    }

    fn handles(running: &Vm) -> Vec<Arc<Vm>> {
        vec![Arc::new(running.another())]
    }
}

impl Fixture for ClusterBuilder {
    type Subject = Cluster;

    fn needs_host(&self) -> bool {
        self.needs_kvm()
    }

    fn for_test(self, path: &str) -> Self {
        self.named_after(path)
    }

    fn start_fixture(self) -> impl Future<Output = Result<Cluster>> {
        self.start()
    }

    fn handles(running: &Cluster) -> Vec<Arc<Vm>> {
        running.members().to_vec()
    }
}

/// The parameter of an asynchronous `#[fleetbox::test]`: [`Vm`] or [`Cluster`].
///
/// ```
/// use fleetbox::testing::Subject;
///
/// fn is_subject<T: Subject>() {}
///
/// is_subject::<fleetbox::Vm>();
/// is_subject::<fleetbox::Cluster>();
/// ```
#[diagnostic::on_unimplemented(
    message = "an `async` test gets a `fleetbox::Vm` or a `fleetbox::Cluster`",
    label = "fleetbox cannot provide this type here",
    note = "to use a `fleetbox::blocking::Vm`, write the test without `async`"
)]
pub trait Subject: sealed::Sealed {
    /// The builder that starts it.
    type Builder: Fixture<Subject = Self>;

    /// A builder that prints progress to standard error.
    fn builder() -> Self::Builder;
}

impl sealed::Sealed for Vm {}
impl sealed::Sealed for Cluster {}

fn display() -> Arc<dyn Progress> {
    progress::stderr().into()
}

impl Subject for Vm {
    type Builder = VmBuilder;

    fn builder() -> VmBuilder {
        Self::test().progress(display())
    }
}

impl Subject for Cluster {
    type Builder = ClusterBuilder;

    fn builder() -> ClusterBuilder {
        Self::test().progress(display())
    }
}

/// A builder that starts the VM or cluster of a blocking test: [`blocking::VmBuilder`] or
/// [`blocking::ClusterBuilder`].
///
/// ```
/// use fleetbox::blocking::{Cluster, Vm};
/// use fleetbox::testing::BlockingFixture;
///
/// fn is_fixture(_: &impl BlockingFixture) {}
///
/// is_fixture(&Vm::test());
/// is_fixture(&Cluster::test().count(3));
/// ```
#[diagnostic::on_unimplemented(
    message = "a blocking test gets a `fleetbox::blocking::Vm` or a `fleetbox::blocking::Cluster`",
    note = "pass a builder, such as `blocking::Vm::test()` or `blocking::Cluster::test()`"
)]
pub trait BlockingFixture: sealed::Sealed {
    /// What the test gets.
    type Subject;

    #[doc(hidden)]
    type Async: Fixture;
    #[doc(hidden)]
    fn into_async(self) -> Self::Async;
    #[doc(hidden)]
    fn blocking(running: <Self::Async as Fixture>::Subject) -> Self::Subject;
}

impl sealed::Sealed for blocking::VmBuilder {}
impl sealed::Sealed for blocking::ClusterBuilder {}

impl BlockingFixture for blocking::VmBuilder {
    type Subject = blocking::Vm;
    type Async = VmBuilder;

    fn into_async(self) -> VmBuilder {
        self.into()
    }

    fn blocking(running: Vm) -> blocking::Vm {
        running.into()
    }
}

impl BlockingFixture for blocking::ClusterBuilder {
    type Subject = blocking::Cluster;
    type Async = ClusterBuilder;

    fn into_async(self) -> ClusterBuilder {
        self.into()
    }

    fn blocking(running: Cluster) -> blocking::Cluster {
        running.into()
    }
}

/// The parameter of a blocking `#[fleetbox::test]`: [`blocking::Vm`] or [`blocking::Cluster`].
///
/// ```
/// use fleetbox::{blocking, testing::BlockingSubject};
///
/// fn is_subject<T: BlockingSubject>() {}
///
/// is_subject::<blocking::Vm>();
/// is_subject::<blocking::Cluster>();
/// ```
#[diagnostic::on_unimplemented(
    message = "a test that is not `async` gets a `fleetbox::blocking::Vm` or a `fleetbox::blocking::Cluster`",
    label = "fleetbox cannot provide this type here",
    note = "to use a `fleetbox::Vm`, make the test `async`"
)]
pub trait BlockingSubject: sealed::Sealed {
    /// The builder that starts it.
    type Builder: BlockingFixture<Subject = Self>;

    /// A builder that prints progress to standard error.
    fn builder() -> Self::Builder;
}

impl sealed::Sealed for blocking::Vm {}
impl sealed::Sealed for blocking::Cluster {}

impl BlockingSubject for blocking::Vm {
    type Builder = blocking::VmBuilder;

    fn builder() -> blocking::VmBuilder {
        <Vm as Subject>::builder().into()
    }
}

impl BlockingSubject for blocking::Cluster {
    type Builder = blocking::ClusterBuilder;

    fn builder() -> blocking::ClusterBuilder {
        <Cluster as Subject>::builder().into()
    }
}
