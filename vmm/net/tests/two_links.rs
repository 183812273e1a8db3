//! The example does what it says.

#[path = "../examples/two_links.rs"]
mod two_links;

#[test]
fn two_links_and_a_socket_of_the_host_are_joined() {
    two_links::main().unwrap();
}
