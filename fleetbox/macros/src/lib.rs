//! The attribute `#[fleetbox::test]`. Use it through the crate `fleetbox`, which says what it does.

mod expand;
mod options;

use proc_macro::TokenStream;

/// Makes a test of a function that is given a VM or a cluster.
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
/// The function is `async` and takes a `fleetbox::Vm` or a `fleetbox::Cluster`, or it is not and
/// takes a `fleetbox::blocking::Vm` or `fleetbox::blocking::Cluster`. It returns `()` or a
/// `Result<(), E>` whose error has `Debug`. Other attributes, such as `#[ignore]` and
/// `#[should_panic]`, are kept.
///
/// | option | value | is |
/// |---|---|---|
/// | `image` | text | alias, path or address of the image |
/// | `cpus` | number | vCPUs of each VM |
/// | `memory`, `disk` | `"1GiB"`, or a `fleetbox::Size` | memory and disk of each VM |
/// | `user` | text | the user that commands in the guest run as |
/// | `boot_timeout` | seconds, or a `Duration` | how long a guest may take to boot |
/// | `nodes` | number | members of the cluster |
/// | `configure` | a function | is given the builder and returns it: for all other options |
///
/// What happens when the host cannot run VMs or the test fails is described in
/// `fleetbox::testing`.
#[proc_macro_attribute]
pub fn test(options: TokenStream, function: TokenStream) -> TokenStream {
    expand::expand(options.into(), function.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
