//! The attribute `#[fleetbox::test]`. Use it through the crate `fleetbox`, which documents it.

mod expand;
mod options;

use proc_macro::TokenStream;

/// Turns a function that takes a VM or a cluster into a test.
///
/// ```ignore
/// #[fleetbox::test(image = "debian-12", cpus = 2, memory = "1GiB")]
/// async fn web_server_answers(vm: fleetbox::Vm) -> fleetbox::Result<()> {
///     vm.ssh("sudo systemctl start nginx").await?;
///     vm.connect(80).await?;
///     Ok(())
/// }
///
/// #[fleetbox::test(image = "debian-12", nodes = 3)]
/// async fn three_nodes(cluster: fleetbox::Cluster) {
///     assert_eq!(cluster.members().len(), 3);
/// }
/// ```
///
/// An `async` function takes a `fleetbox::Vm` or a `fleetbox::Cluster`. A function that is not
/// `async` takes a `fleetbox::blocking::Vm` or a `fleetbox::blocking::Cluster`. The function
/// returns `()` or a `Result<(), E>` whose error implements `Debug`. Other attributes, such as
/// `#[ignore]` and `#[should_panic]`, still apply.
///
/// | option | value | meaning |
/// |---|---|---|
/// | `image` | text | alias, path or URL of the image |
/// | `cpus` | number | vCPUs of each VM |
/// | `memory`, `disk` | `"1GiB"`, or a `fleetbox::Size` | memory and disk of each VM |
/// | `user` | text | the user that runs commands in the guest |
/// | `boot_timeout` | seconds, or a `Duration` | how long a guest may take to boot |
/// | `nodes` | number | number of members of the cluster |
/// | `configure` | a function | takes the builder, sets any other options and returns it |
///
/// `fleetbox::testing` describes what happens when the host cannot run VMs and when the test fails.
#[proc_macro_attribute]
pub fn test(options: TokenStream, function: TokenStream) -> TokenStream {
    expand::expand(options.into(), function.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
